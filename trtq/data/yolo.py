"""The adapter of images with boxes in YOLO's form: ``data.yaml``, one text file an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from trtq.data.boxed import boxed_data
from trtq.data.boxes import Boxes
from trtq.data.listing import is_image, list_folder
from trtq.data.opened import Data, Request
from trtq.data.outlines import Outlines
from trtq.data.source import FileList
from trtq.errors import DataError, UsageError, listed, reason
from trtq.paths import expand_home

SPLITS = ("val", "train", "test")
BOX = 5  # numbers in a line: class, centre, width and height; more are a polygon
SMALLEST_POLYGON = 7  # numbers: class, x and y of three points
X_Y, POINT = 2, 3  # numbers of a keypoint without and with its visibility
VISIBLE = 2.0
SHOWN = 3


class _Yaml(msgspec.Struct):
    names: list[str] | dict[int, str]
    nc: int | None = None
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    kpt_shape: tuple[Annotated[int, msgspec.Meta(ge=1)], Literal[2, 3]] | None = None


def open_yolo(request: Request) -> Data:
    """Return the images and boxes of one split of a ``data.yaml``.

    Args:
        request: its ``text`` is ``yolo:data.yaml`` or ``yolo:data.yaml/SPLIT``; without a split the
            first of val, train and test is used.

    Raises:
        DataError: the file is damaged, or images or labels are missing or damaged.
        UsageError: it has no such split.
    """
    path, split = _yaml_and_split(request)
    described = _read(request, path)
    images = _images(request, path, described, split)
    classes = _classes(request, path, described.names)
    if described.nc not in (None, len(classes)):
        raise DataError(
            f"Cannot read the classes of {request.text}",
            f"nc in {path} is {described.nc}, and names has {len(classes)}",
            "Write the number of names, or leave nc out",
        )
    form = _Form(classes=len(classes), points=described.kpt_shape)
    source = FileList(request.text, images, request.note)
    rows = [_rows(request, _labels_of(image), form) for image in images]
    _tell_lacking(
        request, images, [image for image, own in zip(images, rows, strict=True) if own is None]
    )
    outlined = _has_outlines(request, [row for own in rows for row in own or ()])
    return boxed_data(
        request,
        source,
        boxes={i: _boxes(own or [], form, outlined=outlined) for i, own in enumerate(rows)},
        classes=classes,
    )


def _tell_lacking(request: Request, images: Sequence[Path], lacking: Sequence[Path]) -> None:
    """Tell which images have no label file.

    Raises:
        DataError: none has one.
    """
    if len(lacking) == len(images):
        raise DataError(
            f"No image of {request.text} has labels",
            f"looked for files such as {_labels_of(images[0])}",
            "Labels are in a folder labels beside images, one .txt for each image",
        )
    if lacking:
        request.tell(
            f"{len(lacking)} images of {request.text} have no label file and so no objects: "
            f"{listed([i.name for i in lacking], SHOWN)}"
        )


def _has_outlines(request: Request, rows: Sequence[_Row]) -> bool:
    """Whether objects have polygons; tell where only some do."""
    boxes = sum(row.polygon is None for row in rows)
    if 0 < boxes < len(rows):
        request.tell(
            f"{boxes} of {len(rows)} objects of {request.text} are boxes, the others polygons: as "
            "masks these are filled boxes"
        )
    return boxes < len(rows)


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


def _classes(request: Request, path: Path, names: list[str] | dict[int, str]) -> list[str]:
    """Return the names of classes in index order.

    Raises:
        DataError: an index below the highest has no name.
    """
    if isinstance(names, list):
        return names
    if sorted(names) != list(range(len(names))):
        raise DataError(
            f"Cannot read the classes of {request.text}",
            f"names in {path} has the indices {listed([str(k) for k in sorted(names)], SHOWN)}, "
            f"expected 0 to {len(names) - 1}",
            "Number the classes from 0, as the label files do",
        )
    return [names[k] for k in range(len(names))]


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
    once = list(dict.fromkeys(images))
    if len(once) < len(images):
        request.tell(f"{len(images) - len(once)} images of {request.text} are listed twice")
    return once


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


def _rows(request: Request, labels: Path, form: _Form) -> list[_Row] | None:
    """Return the objects of a label file; None without one.

    Raises:
        DataError: it is damaged.
    """
    if not labels.is_file():
        return None
    try:
        lines = labels.read_text(encoding="utf-8-sig").splitlines()
        return [form.read(line) for line in lines if line.strip()]
    except (OSError, ValueError) as exc:
        raise DataError(
            f"Cannot read the labels {labels.name} of {request.text}", reason(exc), form.hint
        ) from exc


def _boxes(rows: Sequence[_Row], form: _Form, *, outlined: bool) -> Boxes:
    """Return the objects of an image, in shares of it."""
    boxes = Boxes.of([row.box for row in rows], [row.number for row in rows])
    if outlined:
        outlines = tuple([row.polygon or _corners(row.box)] for row in rows)
        boxes = replace(boxes, masks=Outlines(of=outlines))
    if form.points is not None:
        points = np.asarray([row.points for row in rows], dtype=np.float32)
        boxes = replace(boxes, keypoints=points.reshape(len(rows), form.points[0], POINT))
    return boxes


def _corners(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


class _Row(NamedTuple):
    """One object, in shares of the image.

    Attributes:
        number: class index.
        box: left, top, right, bottom.
        polygon: x and y in turn; None where only the box is known.
        points: x, y and visibility of each keypoint.
    """

    number: int
    box: tuple[float, float, float, float]
    polygon: list[float] | None = None
    points: Sequence[Sequence[float]] = ()


class _Form(NamedTuple):
    """Form of a line of a label file.

    Attributes:
        classes: how many there are.
        points: keypoints of an object and numbers of each, 2 or 3; None without keypoints.
    """

    classes: int
    points: tuple[int, int] | None

    @property
    def hint(self) -> str:
        """The expected form of a line."""
        more = ", then the keypoints that kpt_shape says" if self.points else ""
        return f"A line has a class, then centre, width and height as shares of the image{more}"

    def read(self, line: str) -> _Row:
        """Return the object of a line.

        Args:
            line: class, then centre, width and height; or class, then x and y of three points or
                more; keypoints follow a box. All but the class are shares of the image.

        Raises:
            ValueError: a person reads why it is none.
        """
        values = [float(v) for v in line.split()]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"a line has a number that is not finite: {line!r}")
        self._require_count(len(values), line)
        number = int(values[0])
        if number != values[0] or not 0 <= number < self.classes:
            raise ValueError(
                f"a line has the class {values[0]:g}, there are {self.classes}: {line!r}"
            )
        points = self._points(values[BOX:])
        shares = values[1:BOX] if points else values[1:]
        if not all(-0.01 <= v <= 1.01 for v in shares):
            raise ValueError(f"a line has numbers that are no shares of the image: {line!r}")
        if len(shares) > BOX - 1:
            xs, ys = shares[0::2], shares[1::2]
            return _Row(number, (min(xs), min(ys), max(xs), max(ys)), shares)
        x, y, w, h = shares
        return _Row(number, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), None, points)

    def _require_count(self, count: int, line: str) -> None:
        if self.points is not None:
            wanted = BOX + self.points[0] * self.points[1]
            if count != wanted:
                raise ValueError(f"a line has {count} numbers, expected {wanted}: {line!r}")
        elif count < BOX or (count > BOX and (count % 2 == 0 or count < SMALLEST_POLYGON)):
            raise ValueError(f"a line has {count} numbers: {line!r}")

    def _points(self, values: Sequence[float]) -> list[list[float]]:
        """Return x, y and visibility of each keypoint.

        Raises:
            ValueError: one is labelled and not in the image.
        """
        if self.points is None:
            return []
        each = self.points[1]
        points = [[*values[i : i + each], VISIBLE][:POINT] for i in range(0, len(values), each)]
        for point in points:
            if each == X_Y and min(point[:X_Y]) < 0.0:  # how files without visibility leave it out
                point[:] = [0.0, 0.0, 0.0]
            elif point[X_Y] > 0 and not all(-0.01 <= v <= 1.01 for v in point[:X_Y]):
                raise ValueError(f"a line has a keypoint outside the image: {point}")
        return points
