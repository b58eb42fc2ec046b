"""Mean average precision, as COCO counts it, by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import msgspec
import numpy as np

from trtq.data.boxes import Boxes
from trtq.data.outlines import Outlines, RunLengths, areas, packed
from trtq.tasks.base import Figure
from trtq.tasks.coco_counts import (
    Counts,
    Entry,
    Kind,
    count,
    found_entries,
    require_alike,
    wanted_entries,
)
from trtq.tasks.detections import Detections

TRUTH = 0.25  # score of the reference's boxes that another model should find
VISIBLE = 2  # COCO's visibility of a keypoint
HALF, THREE_QUARTERS = 0.5, 0.75


class MeanPrecision:
    """Average precision over images, of boxes, masks or keypoints.

    Groups of objects (COCO's crowd) may be found any number of times or not at all, as difficult
    objects. NaN and infinite boxes and scores are no detections.

    Args:
        classes: names of the classes in index order, where they are known.
        kind: what is compared: the overlap of boxes (``bbox``), of masks (``segm``), or the
            similarity of ``keypoints``.
        sigmas: how exactly each keypoint can be placed, as COCO counts it; None for COCO's own of
            17 keypoints, and 1/K for K others, as ultralytics does.
    """

    def __init__(
        self,
        classes: Sequence[str] = (),
        *,
        kind: Kind = "bbox",
        sigmas: Sequence[float] | None = None,
    ) -> None:
        self.names = tuple(classes)
        self.kind: Kind = kind
        self.sigmas = None if sigmas is None else np.asarray(sigmas, dtype=np.float64)
        self.images = 0
        self._wanted: list[list[Entry]] = []
        self._found: list[list[Entry]] = []

    def add(self, predictions: Sequence[Detections], wanted: Sequence[Boxes] | None) -> None:
        """Count images: what was found in each, and what is in it, in pixels of the same picture.

        Images without known objects, None, do not count.

        Args:
            predictions: in each picture, in any order.
            wanted: in the same pictures; None counts nothing.

        Raises:
            DataError: masks or keypoints are missing, or do not belong together.
        """
        for detections, boxes in (
            zip(predictions, wanted, strict=True) if wanted is not None else ()
        ):
            require_alike(detections, boxes)
            self._found.append(found_entries(detections, self.kind))
            self._wanted.append(wanted_entries(boxes, self.kind))
            self.images += 1
        self.__dict__.pop("_counts", None)

    @cached_property
    def _counts(self) -> Counts:
        return count(self._found, self._wanted, kind=self.kind, sigmas=self.sigmas)

    @property
    def figures(self) -> list[Figure]:
        """Mean average precisions in percent; None where there is nothing to find.

        Empty before images are added.
        """
        if not self.images:
            return []
        counts = self._counts
        values = {
            "mAP": counts.mean(),
            "mAP50": counts.mean(overlap=HALF),
            "mAP75": counts.mean(overlap=THREE_QUARTERS),
            **{f"mAP {area}": counts.mean(area=area) for area in ("small", "medium", "large")},
        }
        return [Figure(name=name, value=value) for name, value in values.items()]

    @property
    def by_class(self) -> list[float | None]:
        """The precision of each class in percent by index, None for a class without objects."""
        counts = self._counts
        last = max(counts.classes, default=-1)
        return [counts.mean(of_class=i) for i in range(max(len(self.names), last + 1))]

    def curve(self, of_class: int | None = None) -> list[tuple[float, float]]:
        """Return recall and precision, 0 to 1, at an overlap of 0.5: 101 points.

        Args:
            of_class: class index; None for the mean over the classes that have objects. There are
                no points without objects.
        """
        return self._counts.curve(HALF, of_class)


class AgreementPrecision:
    """How well a model finds what a reference finds in the same images; no labels are needed.

    Args:
        classes: names of the classes in index order, where they are known.
        kind: what is compared, as for :class:`MeanPrecision`.
    """

    def __init__(self, classes: Sequence[str] = (), *, kind: Kind = "bbox") -> None:
        self.kind: Kind = kind
        self.precision = MeanPrecision(classes, kind=kind)

    def add(self, predictions: Sequence[Detections], reference: Sequence[Detections]) -> None:
        """Count images.

        Args:
            predictions: by the model, in each image.
            reference: by the reference in the same image and the same pixels; its boxes with a
                score of 0.25 and more are what there is to find.

        Raises:
            DataError: masks or keypoints are missing.
        """
        self.precision.add(predictions, [as_truth(r) for r in reference])

    @property
    def figures(self) -> list[Figure]:
        """``agreement mAP`` and ``agreement mAP50`` in percent; None where nothing was found.

        Empty before images are added.
        """
        kept = [f for f in self.precision.figures if f.name in ("mAP", "mAP50")]
        return [msgspec.structs.replace(f, name=f"agreement {f.name}") for f in kept]

    @property
    def by_class(self) -> list[float | None]:
        """The agreement of each class in percent by index, None where nothing was found."""
        return self.precision.by_class


def as_truth(reference: Detections) -> Boxes:
    """Return what a reference is sure of as objects to be found.

    Args:
        reference: in one picture.

    Returns:
        Detections with a score of 0.25 and more, without crowds; every keypoint is visible.
    """
    sure = reference.finite().above(TRUTH)
    boxes = Boxes.of(sure.xyxy, sure.classes)
    if sure.masks is not None and len(sure):
        runs = packed(sure.masks)
        lengths = tuple(RunLengths.packed(r) for r in runs)
        masks = Outlines(of=lengths, size=(sure.masks.shape[1], sure.masks.shape[2]))
        boxes = replace(boxes, masks=masks, areas=areas(runs))
    if sure.keypoints is not None:
        points = sure.keypoints.copy()
        points[..., 2] = VISIBLE  # each is to be found
        boxes = replace(boxes, keypoints=points)
    return boxes
