"""The adapter of images with boxes in YOLO's form: ``data.yaml``, one text file an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtq.data.boxed import boxed_data
from trtq.data.boxes import Boxes
from trtq.data.listing import is_image, list_folder
from trtq.data.opened import Data, Request
from trtq.data.source import FileList
from trtq.errors import DataError, UsageError, listed, reason
from trtq.paths import expand_home

SPLITS = ("val", "train", "test")
BOX = 5  # numbers in a line: class, centre, width and height; more are a polygon
SHOWN = 3


class _Yaml(msgspec.Struct):
    names: list[str] | dict[int, str]
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None


def open_yolo(request: Request) -> Data:
    """Return the images and boxes of one split of a ``data.yaml``.

    Raises:
        DataError: the file is damaged, or images or labels are missing or damaged.
        UsageError: it has no such split.
    """
    path, split = _yaml_and_split(request)
    described = _read(request, path)
    images = _images(request, path, described, split)
    names = described.names
    classes = list(names) if isinstance(names, list) else [names[k] for k in sorted(names)]
    boxes: dict[int, Boxes] = {}
    lacking = []
    source = FileList(request.text, images, request.note)
    for i, image in enumerate(images):
        labels = _labels_of(image)
        if not labels.is_file():
            lacking.append(image.name)
        boxes[i] = _boxes(request, labels, len(classes))
    if len(lacking) == len(images):
        raise DataError(
            f"No image of {request.text} has labels",
            f"looked for files such as {_labels_of(images[0])}",
            "Labels are in a folder labels beside images, one .txt for each image",
        )
    if lacking:
        request.tell(
            f"{len(lacking)} images of {request.text} have no label file and so no objects: "
            f"{listed(lacking, SHOWN)}"
        )
    return boxed_data(request, source, boxes=boxes, classes=classes)


def _yaml_and_split(request: Request) -> tuple[Path, str | None]:
    path = Path(expand_home(request.place, "--data"))
    if path.suffix.lower() in (".yaml", ".yml"):
        return path, None
    return path.parent, path.name


def _read(request: Request, path: Path) -> _Yaml:
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=_Yaml)
    except (OSError, msgspec.MsgspecError) as exc:
        raise DataError(
            f"Cannot read {path} of {request.text}",
            reason(exc),
            "Give a data.yaml with path, train, val and names",
        ) from exc


def _images(request: Request, path: Path, described: _Yaml, split: str | None) -> list[Path]:
    """Return the images of a split in the order of their names.

    Raises:
        DataError: they are missing.
        UsageError: there is no such split.
    """
    known = [s for s in SPLITS if getattr(described, s)]
    if not known or (split is not None and split not in known):
        raise UsageError(
            f"Cannot use --data {request.text}",
            f"{path} has the splits {', '.join(known) or 'none'}",
            f"Write it like yolo:{path}/{(known or SPLITS)[0]}",
        )
    chosen = split or known[0]
    if split is None:
        request.tell(f"{request.text}: the images of its split {chosen!r} are used")
    root = path.parent / (described.path or "")
    if described.path and not root.is_dir():  # many files name a place of another machine
        root = path.parent
    entries: str | list[str] = getattr(described, chosen)
    places = [root / e for e in ([entries] if isinstance(entries, str) else entries)]
    images = [image for place in places for image in _of_place(request, place)]
    if not images:
        raise DataError(f"There are no images in {request.text}", f"looked in {places[0]}")
    missing = [str(i) for i in images if not i.is_file()]
    if missing:
        raise DataError(
            f"{request.text} lacks images that it names",
            f"{len(missing)} of {len(images)}: {listed(missing, SHOWN)}",
            "Add the images, or remove their lines",
        )
    return images


def _of_place(request: Request, place: Path) -> list[Path]:
    """Return the images of a folder, or those that a text file lists."""
    if place.is_dir():
        listing = list_folder(request.text, place)
        return [listing.files[n] for n in sorted(listing.files) if is_image(n)]
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(
            f"Cannot read the images of {request.text}",
            f"{place}: {reason(exc)}",
            "Give a folder of images, or a text file with one path a line",
        ) from exc
    return [place.parent / line.strip() for line in lines if line.strip()]


def _labels_of(image: Path) -> Path:
    """Return the label file of an image: in ``labels`` instead of the last ``images``."""
    parts = list(image.parts)
    at = max((i for i, part in enumerate(parts[:-1]) if part == "images"), default=None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _boxes(request: Request, labels: Path, classes: int) -> Boxes:
    """Return the boxes of a label file, as shares of the image."""
    if not labels.is_file():
        return Boxes.none()
    try:
        lines = labels.read_text(encoding="utf-8-sig").splitlines()
        rows = [_row(line, classes) for line in lines if line.strip()]
    except (OSError, ValueError) as exc:
        raise DataError(
            f"Cannot read the labels {labels.name} of {request.text}",
            reason(exc),
            "A line has a class, then centre, width and height as shares of the image",
        ) from exc
    return Boxes.of([box for _, box in rows], [number for number, _ in rows])


def _row(line: str, classes: int) -> tuple[int, Sequence[float]]:
    """Return class and box of a line, as shares of the image: left, top, right, bottom.

    Raises:
        ValueError: a person reads why it is none.
    """
    values = [float(v) for v in line.split()]
    if len(values) < BOX or (len(values) > BOX and len(values) % 2 == 0):
        raise ValueError(f"a line has {len(values)} numbers: {line!r}")
    number = int(values[0])
    if number != values[0] or not 0 <= number < classes:
        raise ValueError(f"a line has the class {values[0]:g}, there are {classes}: {line!r}")
    if not all(-0.01 <= v <= 1.01 for v in values[1:]):
        raise ValueError(f"a line has numbers that are no shares of the image: {line!r}")
    if len(values) > BOX:
        xs, ys = values[1::2], values[2::2]
        return number, (min(xs), min(ys), max(xs), max(ys))
    _, x, y, w, h = values
    return number, (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
