"""The adapter of images with boxes in COCO's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from trtq.data.boxed import boxed_data, image_places
from trtq.data.boxes import Boxes
from trtq.data.opened import Data, Request
from trtq.data.source import FileSource, open_source
from trtq.errors import DataError, listed

SHOWN = 3


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: int = 0
    difficult: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def open_coco(request: Request) -> Data:
    """Return images and boxes: a folder or a zip with an annotation file, or the file itself.

    Raises:
        DataError: there is no annotation file or several, it is damaged, or names images, classes
            or annotations that are missing.
    """
    place = Path(request.place)
    wanted = place.name if place.suffix.lower() == ".json" else None
    root = request.place if wanted is None else str(_root_of(place))
    source = open_source(root, None, request.note, forms="flat")
    assert isinstance(source, FileSource)
    source.name = request.text
    name = _annotations(source, wanted)
    file = _read(source, name)
    _require_whole(source.name, name, file)
    places = image_places(source, [i.file_name for i in file.images], name)
    numbers = {c.id: n for n, c in enumerate(sorted(file.categories, key=lambda c: c.id))}
    by_image: dict[int | str, list[_Annotation]] = {i.id: [] for i in file.images}
    for annotation in file.annotations:
        by_image[annotation.image_id].append(annotation)
    empty = sum(not _has_area(a) for a in file.annotations)
    if empty:
        request.tell(f"{empty} annotations of {name} have no box with an area and are left out")
    return boxed_data(
        request,
        source,
        boxes={
            p: _boxes(by_image[i.id], numbers) for p, i in zip(places, file.images, strict=True)
        },
        sizes={p: (i.width, i.height) for p, i in zip(places, file.images, strict=True)},
        classes=[c.name for c in sorted(file.categories, key=lambda c: c.id)],
    )


def _root_of(file: Path) -> Path:
    """Return the folder with annotations and images: COCO has them in folders side by side."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _annotations(source: FileSource, wanted: str | None) -> str:
    """Return the name of the annotation file among the files that are no images."""
    names = [n for n in source.ignored if n.lower().endswith(".json")]
    if wanted is not None:
        names = [n for n in names if PurePosixPath(n).name == wanted]
    if len(names) == 1:
        return names[0]
    place = source.name.partition(":")[2]
    if names:
        raise DataError(
            f"{source.name} has {len(names)} annotation files",
            listed(names, SHOWN),
            f"Choose one: coco:{place}/{names[0]}",
        )
    raise DataError(
        f"There are no annotations in {source.name}",
        "there is no .json file",
        "Put COCO's annotation file beside the folder of images",
    )


def _read(source: FileSource, name: str) -> _File:
    try:
        return msgspec.json.decode(source.read_other(name), type=_File)
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


def _has_area(annotation: _Annotation) -> bool:
    return annotation.bbox is not None and min(annotation.bbox[2:]) > 0.0


def _boxes(annotations: Sequence[_Annotation], numbers: Mapping[int, int]) -> Boxes:
    rows = [(a, a.bbox) for a in annotations if _has_area(a)]
    return Boxes.of(
        [(x, y, x + w, y + h) for _, (x, y, w, h) in ((a, b) for a, b in rows if b is not None)],
        [numbers[a.category_id] for a, _ in rows],
        [bool(a.iscrowd) for a, _ in rows],
        [bool(a.difficult) for a, _ in rows],
    )
