"""Counts of detections by pycocotools, in memory and without its prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trtq.data.boxes import Boxes
from trtq.data.outlines import areas, packed
from trtq.errors import DataError
from trtq.tasks.detections import Detections

Kind = Literal["bbox", "segm", "keypoints"]
Entry = dict[str, object]  # one object, as pycocotools takes it
MOST = {"bbox": 100, "segm": 100, "keypoints": 20}  # detections of a class in an image that count
POSE_SHARE = 0.53  # of its box that a person covers, where no area is known, as ultralytics has it
COCO_POINTS = 17
ABSENT = -1.0  # what pycocotools writes for a class without objects
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Precisions at 101 recalls.

    Attributes:
        precision: [overlaps, recalls, classes, areas], -1 for classes without objects.
        overlaps: the first axis, 0.5 to 0.95.
        recalls: the second axis, 0 to 1.
        classes: the third axis, class indices.
        areas: the fourth axis, ``all``, ``small``, ``medium``, ``large``.
    """

    precision: Floats
    overlaps: Floats
    recalls: Floats
    classes: Sequence[int]
    areas: Sequence[str]

    def mean(
        self, *, overlap: float | None = None, area: str = "all", of_class: int | None = None
    ) -> float | None:
        """Return the average precision in percent; None where there is nothing to find.

        Args:
            overlap: one of the overlaps; None for their mean.
            area: sizes of the objects that count.
            of_class: class index; None for the mean over the classes that have objects.
        """
        if area not in self.areas:
            return None
        chosen = self._of(of_class)[..., self.areas.index(area)]
        if overlap is not None:
            chosen = chosen[np.isclose(self.overlaps, overlap)]
        present = chosen[chosen > ABSENT]
        return round(100.0 * float(present.mean()), 4) if present.size else None

    def curve(self, overlap: float, of_class: int | None) -> list[tuple[float, float]]:
        """Return recall and precision at an overlap; nothing without objects.

        Args:
            overlap: one of the overlaps.
            of_class: class index; None for the mean over the classes that have objects.
        """
        chosen = self._of(of_class)[np.isclose(self.overlaps, overlap)][0, :, :, 0]
        present = chosen[:, (chosen > ABSENT).all(axis=0)]
        if not present.size:
            return []
        return list(zip(self.recalls.tolist(), present.mean(axis=1).tolist(), strict=True))

    def _of(self, of_class: int | None) -> Floats:
        if of_class is None:
            return self.precision
        return self.precision[:, :, [i for i, c in enumerate(self.classes) if c == of_class]]


def count(
    detections: Sequence[Sequence[Entry]],
    wanted: Sequence[Sequence[Entry]],
    *,
    kind: Kind,
    sigmas: Floats | None,
) -> Counts:
    """Return what pycocotools counts.

    Args:
        detections: the detections of each image, best first.
        wanted: the objects of each image.
        kind: what is compared.
        sigmas: of keypoints; None for the usual ones.
    """
    from pycocotools.cocoeval import COCOeval

    evaluation = COCOeval(iouType=kind)
    params = evaluation.params
    classes = sorted({_class(e) for image in wanted for e in image})
    images = list(range(len(wanted)))
    params.imgIds, params.catIds = images, classes
    if kind == "keypoints":
        params.kpt_oks_sigmas = _sigmas(params.kpt_oks_sigmas, wanted, sigmas)
    _give(evaluation, detections, wanted)
    evaluation.ious = {(i, c): _overlaps(evaluation, i, c, kind) for i in images for c in classes}
    evaluation.evalImgs = [
        evaluation.evaluateImg(i, c, area, params.maxDets[-1])
        for c in classes
        for area in params.areaRng
        for i in images
    ]
    evaluation._paramsEval = params
    _silent(COCOeval.accumulate)(evaluation)
    return Counts(
        precision=evaluation.eval["precision"][..., -1],
        overlaps=params.iouThrs,
        recalls=params.recThrs,
        classes=classes,
        areas=params.areaRngLbl,
    )


def require_alike(detections: Detections, wanted: Boxes) -> None:
    """Refuse masks of other pictures, and keypoints of other objects.

    Args:
        detections: in one picture.
        wanted: in the same picture.

    Raises:
        DataError: names both sizes or numbers.
    """
    if (
        detections.masks is not None
        and wanted.masks is not None
        and len(detections)
        and len(wanted)
    ):
        ours, theirs = detections.masks.shape[1:], wanted.masks.size
        if theirs is not None and ours != theirs:
            raise DataError(
                "Cannot compare masks",
                f"the detections' masks are {ours[1]}x{ours[0]} pixels, those of the labels "
                f"{theirs[1]}x{theirs[0]}",
                "Move the detections into the original image first",
            )
    if (
        detections.keypoints is not None
        and wanted.keypoints is not None
        and len(detections)
        and len(wanted)
    ):
        numbers = (detections.keypoints.shape[1], wanted.keypoints.shape[1])
        if numbers[0] != numbers[1]:
            raise DataError(
                "Cannot compare keypoints",
                f"the detections have {numbers[0]} keypoints, the labels have {numbers[1]}",
                "Give labels with the keypoints of the model",
            )


def found_entries(detections: Detections, kind: Kind) -> list[Entry]:
    """Return detections as pycocotools takes them, the best of each class.

    Args:
        detections: in one picture; those that are not finite are left out.
        kind: what is compared.

    Returns:
        Best first, at most 100 of a class (20 for keypoints).

    Raises:
        DataError: they have no masks or keypoints.
    """
    detections = detections.finite()
    order = np.argsort(-detections.scores, kind="stable")
    detections = detections.at(order[_among_best(detections.classes[order], MOST[kind])])
    boxes = _sides(detections.xyxy)
    entries: list[Entry] = [
        {"category_id": c, "score": s, "bbox": box, "area": box[2] * box[3]}
        for c, s, box in zip(
            detections.classes.tolist(), detections.scores.tolist(), boxes.tolist(), strict=True
        )
    ]
    if kind == "segm":
        _add_masks(entries, detections.masks)
    elif kind == "keypoints":
        _add_points(entries, detections.keypoints)
    return entries


def _add_masks(entries: Sequence[Entry], masks: npt.NDArray[np.bool_] | None) -> None:
    runs = packed(_given(masks, entries, "masks", "detections")) if entries else []
    for entry, one, area in zip(entries, runs, areas(runs), strict=True):
        entry.update(segmentation=one, area=float(area))


def _add_points(entries: Sequence[Entry], points: npt.NDArray[np.float32] | None) -> None:
    for entry, one in zip(entries, _given(points, entries, "keypoints", "detections"), strict=True):
        width, height = np.ptp(one[:, :2].astype(np.float64), axis=0)
        entry.update(keypoints=one.ravel().astype(np.float64).tolist(), area=width * height)


def wanted_entries(wanted: Boxes, kind: Kind) -> list[Entry]:
    """Return objects as pycocotools takes them.

    Args:
        wanted: in one picture.
        kind: what is compared.

    Raises:
        DataError: they have no masks or keypoints.
    """
    boxes = _sides(wanted.xyxy)
    share = POSE_SHARE if kind == "keypoints" else 1.0
    sizes = boxes[:, 2] * boxes[:, 3] * share if wanted.areas is None else wanted.areas
    loose = wanted.crowd | wanted.difficult
    entries: list[Entry] = [
        {
            "category_id": int(wanted.classes[i]),
            "bbox": boxes[i].tolist(),
            "area": float(sizes[i]),
            "iscrowd": bool(loose[i]),  # may be found several times
            "group": bool(wanted.crowd[i]),  # a part of it is enough
            "ignore": bool(loose[i]),
        }
        for i in range(len(wanted))
    ]
    if kind == "segm":
        _add_outlines(entries, wanted)
    elif kind == "keypoints":
        _add_labelled(entries, wanted)
    return entries


def _add_outlines(entries: Sequence[Entry], wanted: Boxes) -> None:
    """Add masks to the objects, and their areas where the labels do not have them."""
    if not entries:
        return
    if wanted.masks is None:
        raise _lacking("masks", "labels")
    runs = wanted.masks.packed()
    sizes = areas(runs) if wanted.areas is None else wanted.areas
    for entry, one, area in zip(entries, runs, sizes, strict=True):
        entry.update(segmentation=one, area=float(area))


def _add_labelled(entries: Sequence[Entry], wanted: Boxes) -> None:
    """Add keypoints to the objects; those without a labelled one need not be found."""
    points = _given(wanted.keypoints, entries, "keypoints", "labels")
    for entry, one in zip(entries, points, strict=True):
        entry["keypoints"] = one.ravel().astype(np.float64).tolist()
        entry["ignore"] = bool(entry["ignore"]) or not (one[:, 2] > 0).any()


def _given(
    values: npt.NDArray[Any] | None, entries: Sequence[Entry], what: str, owner: str
) -> npt.NDArray[Any]:
    """Return masks or keypoints of as many objects; none of them are needed for none."""
    if not entries:
        return np.zeros((0, 0, 3))
    if values is None:
        raise _lacking(what, owner)
    return values


def _lacking(what: str, owner: str) -> DataError:
    return DataError(
        f"Cannot count {what}",
        f"the {owner} have none",
        f"Give {owner} with {what}, or count boxes",
    )


def _sides(xyxy: npt.NDArray[np.float32]) -> Floats:
    """Return left, top, width and height."""
    boxes = xyxy.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _among_best(classes: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.bool_]:
    """Return whether each of the detections, best first, is one of the best of its class."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.searchsorted(ordered, ordered)
    best = np.zeros(len(classes), dtype=np.bool_)
    best[order] = np.arange(len(classes)) - starts < most
    return best


def _class(entry: Entry) -> int:
    number = entry["category_id"]
    assert isinstance(number, int)
    return number


def _give(
    evaluation: Any, detections: Sequence[Sequence[Entry]], wanted: Sequence[Sequence[Entry]]
) -> None:
    """Pass objects to pycocotools, each with a number of its own that is not 0."""
    for lists, kept in ((detections, evaluation._dts), (wanted, evaluation._gts)):
        for number, (image, entry) in enumerate(_numbered(lists), start=1):
            kept[image, entry["category_id"]].append({**entry, "id": number, "image_id": image})


def _numbered(lists: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, Entry]]:
    for image, entries in enumerate(lists):
        for entry in entries:
            yield image, entry


def _overlaps(evaluation: Any, image: int, number: int, kind: Kind) -> Any:
    """Return the overlap of each detection with each object.

    A part of a group is enough, of a difficult object it is not.
    """
    from pycocotools import mask

    if kind == "keypoints":
        return evaluation.computeOks(image, number)
    wanted, detections = evaluation._gts[image, number], evaluation._dts[image, number]
    if not wanted and not detections:
        return []
    key = "segmentation" if kind == "segm" else "bbox"
    groups = [int(w["group"]) for w in wanted]
    return mask.iou([f[key] for f in detections], [w[key] for w in wanted], groups)


def _sigmas(usual: Floats, wanted: Sequence[Sequence[Entry]], given: Floats | None) -> Floats:
    """Return how exactly each keypoint can be placed."""
    points = next((e["keypoints"] for image in wanted for e in image), ())
    assert isinstance(points, Sequence)
    number = len(points) // 3
    if given is not None:
        return given
    return usual if number in (0, COCO_POINTS) else np.full(number, 1.0 / number)


def _silent(function: Any) -> FunctionType:
    """Return a function of pycocotools that prints nothing; the rest of the process still does."""
    names = {**function.__globals__, "print": _nothing}
    return FunctionType(function.__code__, names, argdefs=function.__defaults__)


def _nothing(*lines: object) -> None:
    """Print nothing."""
    del lines
