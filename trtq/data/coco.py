"""The adapter of images with boxes in COCO's form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from trtq.artifact import decode_json
from trtq.data.boxed import boxed_data, image_places, tell_ignored
from trtq.data.boxes import Boxes
from trtq.data.opened import Data, Request
from trtq.data.outlines import Outline, Outlines, RunLengths
from trtq.data.source import FileSource, open_source
from trtq.errors import DataError, listed

SHOWN = 3
POINT = 3  # numbers of a keypoint: x, y and visibility
ANNOTATIONS = "annotations"  # COCO's folder of them, beside those of images

SEGMENTATIONS = msgspec.json.Decoder(list[list[float]] | RunLengths | None)
NULL = msgspec.Raw(b"null")


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    id: int | str | None = None
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: int = 0
    difficult: int = 0
    segmentation: msgspec.Raw = NULL
    keypoints: list[float] | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def open_coco(request: Request) -> Data:
    """Return images and boxes: a folder or a zip with an annotation file, or the file itself.

    Class indices follow the order of the categories' ids. Boxes [x, y, width, height] become left,
    top, right and bottom; annotations without an area are left out with a note.

    Args:
        request: what was asked for; its ``text`` names the data.

    Raises:
        DataError: there is no annotation file or several, it is damaged, or names images, classes
            or annotations that are missing.
    """
    place = Path(request.place)
    named = place.suffix.lower() == ".json"
    folder = _root_of(place) if named else place
    wanted = place.relative_to(folder).as_posix() if named else None
    root = str(folder) if named else request.place
    source = open_source(root, None, request.note, forms="flat")
    assert isinstance(source, FileSource)
    source.name = request.text
    name = _annotations(source, wanted)
    tell_ignored(request, source, {name})
    file = _read(source, name)
    _require_whole(source.name, name, file)
    places = image_places(source, [i.file_name for i in file.images], name)
    _require_once(source, name, places)
    numbers = {c.id: n for n, c in enumerate(sorted(file.categories, key=lambda c: c.id))}
    annotations = _usable(request, name, file.annotations)
    points = _keypoints(source.name, name, annotations)
    outlines = _outlines(request, name, annotations)
    by_image: dict[int | str, list[int]] = {i.id: [] for i in file.images}
    for n, annotation in enumerate(annotations):
        by_image[annotation.image_id].append(n)

    def boxes_of(image: _Image) -> Boxes:
        own = by_image[image.id]
        boxes = _boxes([annotations[n] for n in own], numbers, points)
        masks = None if outlines is None else Outlines(of=tuple(outlines[n] for n in own))
        return replace(boxes, masks=masks)

    return boxed_data(
        request,
        source,
        boxes={p: boxes_of(i) for p, i in zip(places, file.images, strict=True)},
        sizes={p: (i.width, i.height) for p, i in zip(places, file.images, strict=True)},
        classes=[c.name for c in sorted(file.categories, key=lambda c: c.id)],
    )


def _root_of(file: Path) -> Path:
    """Return the folder with annotations and images: COCO has them in folders side by side."""
    return file.parent.parent if file.parent.name == ANNOTATIONS else file.parent


def _annotations(source: FileSource, wanted: str | None) -> str:
    """Return the name of the annotation file among the files that are no images."""
    names = [n for n in source.ignored if n.lower().endswith(".json") and wanted in (None, n)]
    if len(names) == 1:
        return names[0]
    place = source.name.partition(":")[2]
    if names:
        near = [n for n in names if PurePosixPath(n).parent.as_posix() in (".", ANNOTATIONS)]
        raise DataError(
            f"{source.name} has {len(names)} annotation files",
            listed(names, SHOWN),
            f"Choose one: coco:{place}/{near[0]}"
            if near
            else f"Move the one to use into {place}/{ANNOTATIONS}",
        )
    raise DataError(
        f"There are no annotations in {source.name}",
        "there is no .json file",
        "Put COCO's annotation file beside the folder of images",
    )


def _read(source: FileSource, name: str) -> _File:
    try:
        return decode_json(source.read_other(name), _File)
    except msgspec.MsgspecError as exc:
        raise DataError(
            f"Cannot read the annotations {name} of {source.name}",
            str(exc),
            "Give a file with images, annotations and categories in COCO's form",
        ) from exc


def _require_whole(source: str, name: str, file: _File) -> None:
    """Refuse annotations of images or classes that the file does not list, and doubled ids."""
    images = [i.id for i in file.images]
    classes = [c.id for c in file.categories]
    known: Mapping[str, tuple[Sequence[object], set[object]]] = {
        "image_id": ([a.image_id for a in file.annotations], set(images)),
        "category_id": ([a.category_id for a in file.annotations], set(classes)),
    }
    for key, (used, ids) in known.items():
        unknown = sorted({str(u) for u in used if u not in ids})
        if unknown:
            raise DataError(
                f"The annotations {name} of {source} do not fit together",
                f"{key} {listed(unknown, SHOWN)} is not listed in the file",
            )
    for key, ids_of in (("images", images), ("categories", classes)):
        if len(set(ids_of)) < len(ids_of):
            raise DataError(
                f"The annotations {name} of {source} do not fit together",
                f"two of its {key} have one id",
            )


def _require_once(source: FileSource, name: str, places: Sequence[int]) -> None:
    """Refuse two entries for one image: the objects of one would be lost."""
    twice = next((p for p, count in Counter(places).items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"The annotations {name} of {source.name} do not fit together",
            f"two of its images are {source.ids[twice]}",
            "Join their annotations under one id",
        )


def _usable(
    request: Request, name: str, annotations: Sequence[_Annotation]
) -> Sequence[_Annotation]:
    """Return annotations of objects, each once, and tell what is left out."""
    boxed = [a for a in annotations if a.bbox is not None and min(a.bbox[2:]) > 0.0]
    if len(boxed) < len(annotations):
        empty = len(annotations) - len(boxed)
        request.tell(f"{empty} annotations of {name} have no box with an area and are left out")
    seen: dict[object, _Annotation] = {}
    usable = [a for a in boxed if a.id is None or seen.setdefault(a.id, a) is a or seen[a.id] != a]
    if len(usable) < len(boxed):
        twice = len(boxed) - len(usable)
        request.tell(f"{twice} annotations of {name} are in it twice and count once")
    if len(seen) < sum(a.id is not None for a in usable):
        request.tell(f"different annotations of {name} have one id: each of them counts")
    return usable


def _outlines(
    request: Request, name: str, annotations: Sequence[_Annotation]
) -> list[Outline] | None:
    """Return the pixels of each object, nothing for those that lack them; None if all do."""
    outlines = [_outline(a.segmentation) for a in annotations]
    lacking = sum(not o for o in outlines)
    if lacking == len(outlines):
        return None
    if lacking:
        request.tell(
            f"{lacking} annotations of {name} have no polygons or run lengths: their objects have "
            "no pixels"
        )
    return outlines


def _outline(raw: msgspec.Raw) -> Outline:
    try:
        return SEGMENTATIONS.decode(raw) or []
    except msgspec.MsgspecError:  # such as another list of numbers
        return []


def _keypoints(source: str, name: str, annotations: Sequence[_Annotation]) -> int | None:
    """Return how many keypoints an object has; None without keypoints.

    Raises:
        DataError: the numbers differ.
    """
    counts = sorted({len(a.keypoints) for a in annotations if a.keypoints})
    if not counts:
        return None
    if len(counts) > 1 or counts[0] % POINT:
        raise DataError(
            f"Cannot read the keypoints of {name} of {source}",
            f"objects have {listed([str(c) for c in counts], SHOWN)} numbers, expected x, y and "
            "visibility of the same keypoints for each",
        )
    return counts[0] // POINT


def _boxes(
    annotations: Sequence[_Annotation], numbers: Mapping[int, int], points: int | None
) -> Boxes:
    """Return the objects of one image without their pixels.

    Args:
        annotations: of the image, with boxes.
        numbers: class indices by category id.
        points: keypoints of an object; None without them.
    """
    sides = [a.bbox for a in annotations if a.bbox is not None]
    boxes = Boxes.of(
        [(x, y, x + w, y + h) for x, y, w, h in sides],
        [numbers[a.category_id] for a in annotations],
        [bool(a.iscrowd) for a in annotations],
        [bool(a.difficult) for a in annotations],
    )
    areas = [
        w * h if a.area is None else a.area
        for a, (_, _, w, h) in zip(annotations, sides, strict=True)
    ]
    unlabelled = [0.0] * (points or 0) * POINT
    keypoints = [a.keypoints or unlabelled for a in annotations]
    return replace(
        boxes,
        areas=np.asarray(areas, dtype=np.float64),
        keypoints=None
        if points is None
        else np.asarray(keypoints, dtype=np.float32).reshape(len(annotations), points, POINT),
    )
