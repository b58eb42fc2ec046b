"""Shared parts of adapters of images with boxes: images by name, compared sizes, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from trtq.data.boxes import Boxes
from trtq.data.decode import TURNED
from trtq.data.model_inputs import InputNeeds
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import ImageSamples, Samples
from trtq.data.source import Source
from trtq.errors import DataError, listed
from trtq.typed import present

SHOWN = 3
LEAST_INSIDE = 0.5  # share of a box that is inside its image, if it is of this image
ROUNDING = 1e-5  # share of an image's side that a box may be outside without a note


def image_places(source: Source, names: Sequence[str], annotations: str) -> list[int]:
    """Return the positions of images in a source by the names that annotations have for them.

    A name is a path from the root, or the end of exactly one path.

    Args:
        source: the images.
        names: one for each annotated image.
        annotations: what errors call the annotations.

    Returns:
        One position for each name, in their order.

    Raises:
        DataError: names images that are missing, or of which there are several.
    """
    exact = {n: i for i, n in enumerate(source.ids)}
    ends: dict[str, list[int]] = {}
    for i, path in enumerate(source.ids):
        ends.setdefault(PurePosixPath(path).name, []).append(i)
    places = [_place(source, n, exact, ends) for n in names]
    missing = [n for n, place in zip(names, places, strict=True) if place is None]
    if missing:
        raise DataError(
            f"{source.name} lacks images that its annotations name",
            f"{len(missing)} of {len(names)} in {annotations}: {listed(missing, SHOWN)}",
            "Add the images, or remove their entries from the annotations",
        )
    return present(places)


def tell_ignored(request: Request, source: Source, used: Collection[str]) -> None:
    """Tell which files are neither images nor annotations.

    Args:
        request: receives the line.
        source: the images and the other files beside them.
        used: names of files that the adapter reads.
    """
    others = sorted(set(source.ignored) - set(used))
    if others:
        request.tell(
            f"{len(others)} files in {request.text} are neither images nor its annotations and "
            f"were ignored, such as {others[0]}"
        )


def _place(
    source: Source, name: str, exact: Mapping[str, int], ends: Mapping[str, list[int]]
) -> int | None:
    path = PurePosixPath(name).as_posix()
    if path in exact:
        return exact[path]
    same = [i for i in ends.get(PurePosixPath(path).name, ()) if source.ids[i].endswith(f"/{path}")]
    if len(same) > 1:
        raise DataError(
            f"{source.name} has several images called {name}",
            listed([source.ids[i] for i in same], SHOWN),
            "Write the whole path into the annotations, or give one folder of images",
        )
    return same[0] if same else None


Sizes = Mapping[int, tuple[int | None, int | None]]


def boxed_data(
    request: Request,
    source: Source,
    *,
    boxes: Mapping[int, Boxes],
    classes: Sequence[str],
    sizes: Sizes | None = None,
) -> Data:
    """Return images with their boxes.

    Args:
        request: what was asked for.
        source: the images.
        boxes: by position in the source; images without an entry are left out.
        classes: names in index order.
        sizes: by position, width and height that the annotations were made for, where known; None
            for boxes that are shares of the image.

    Raises:
        DataError: there are no images with annotations, or a box is far outside its image.
    """
    if not boxes:
        raise DataError(f"Cannot use {request.text}", "its annotations name no image")
    left_out = len(source) - len(boxes)
    if left_out:
        request.tell(f"{left_out} images of {request.text} have no annotations and are left out")
    source.classes = list(classes)
    checked = CheckedBoxes(source, boxes, sizes)
    source.annotations = checked.identity()

    def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
        assert picture is not None
        samples = ImageSamples(source=source, picture=picture, indices=sorted(boxes), boxes=checked)
        return samples if needs is None else samples.bound(needs)

    return Data(name=request.text, make=make, source=source)


class CheckedBoxes:
    """Boxes by position, in pixels and inside their image.

    Boxes are cut at the borders of their image, with one note. Where the annotations do not
    have its size, it is read when the boxes are.

    Args:
        source: the images.
        boxes: by position in the source, in pixels, or in shares where ``sizes`` is None.
        sizes: by position, width and height that the annotations were made for, None where unknown;
            None for shares.

    Raises:
        DataError: a box is more outside its image than inside.
    """

    def __init__(self, source: Source, boxes: Mapping[int, Boxes], sizes: Sizes | None) -> None:
        self.source, self.sizes = source, sizes
        known = {i: self._known_size(i) for i in boxes}
        self.cut = 0
        self.boxes = {
            i: b if (size := known[i]) is None else self._inside(i, b, size)
            for i, b in boxes.items()
        }
        if self.cut:
            source.tell(
                f"{self.cut} boxes of {source.name} are a little outside their images and are cut "
                "at the borders"
            )

    def __getitem__(self, index: int) -> Boxes:
        """Return the boxes of an image.

        Raises:
            DataError: the annotations were made for an image of another size, or a box is more
                outside its image than inside.
        """
        boxes, size = self._named(index), self._size(index)
        if self.sizes is None:
            return scaled(boxes, *size)
        known = self._known_size(index)
        if known is not None and known != size:
            raise DataError(
                f"The boxes of {self.source.ids[index]} of {self.source.name} do not fit it",
                f"the annotations are for {known[0]}x{known[1]} pixels, the upright image has "
                f"{size[0]}x{size[1]}",
                "Give the images that were annotated",
            )
        if known is None:
            before = self.cut
            boxes = self._inside(index, boxes, size)
            if self.cut and not before:
                self.source.tell(
                    f"{self.source.ids[index]} of {self.source.name}: a box is a little outside "
                    "the image and is cut at the border; further such boxes are treated alike"
                )
        if boxes.masks is not None:
            boxes = replace(boxes, masks=replace(boxes.masks, size=size[::-1]))
        return boxes

    def _named(self, index: int) -> Boxes:
        """Return boxes whose masks know which image they are of."""
        boxes = self.boxes[index]
        if boxes.masks is None:
            return boxes
        owner = f"{self.source.ids[index]} of {self.source.name}"
        return replace(boxes, masks=replace(boxes.masks, owner=owner))

    def identity(self) -> str:
        """Return what tells two sets of boxes apart."""
        total = hashlib.sha256()
        for index in sorted(self.boxes):
            total.update(f"{self.source.ids[index]}\0".encode() + self.boxes[index].content())
        return total.hexdigest()

    def _known_size(self, index: int) -> tuple[int, int] | None:
        """Return width and height that the annotations have for an image, 1 and 1 for shares."""
        if self.sizes is None:
            return 1, 1
        width, height = self.sizes[index]
        return None if width is None or height is None else (width, height)

    def _inside(self, index: int, boxes: Boxes, size: tuple[int, int]) -> Boxes:
        """Return boxes that are cut at the borders of their image, and count them."""
        corners = np.asarray((*size, *size), dtype=np.float32)
        cut = np.clip(boxes.xyxy, 0, corners)
        wrong = np.flatnonzero(_areas(cut) < LEAST_INSIDE * _areas(boxes.xyxy))
        if len(wrong):
            box = ", ".join(f"{v:g}" for v in boxes.xyxy[wrong[0]])
            unit = "of 1x1, in shares" if self.sizes is None else f"of {size[0]}x{size[1]} pixels"
            raise DataError(
                f"A box of {self.source.ids[index]} of {self.source.name} is outside its image",
                f"it is {box} (left, top, right, bottom) in an image {unit}",
                "Correct the annotation, or give the image that was annotated",
            )
        far = np.abs(cut - boxes.xyxy).max(axis=1, initial=0.0) > ROUNDING * max(size)
        self.cut += int(far.sum())
        return replace(boxes, xyxy=cut) if len(boxes) else boxes

    def _size(self, index: int) -> tuple[int, int]:
        """Return width and height of an image that is upright."""
        image = self.source.geometry(index)
        if image.orientation in TURNED:
            return image.height, image.width
        return image.width, image.height


def scaled(boxes: Boxes, width: int, height: int) -> Boxes:
    """Return boxes, masks and keypoints that are shares of an image in pixels.

    Args:
        boxes: 0 to 1 in both directions.
        width: of the image, pixels.
        height: of the image, pixels.
    """
    points = boxes.keypoints
    if points is not None:
        points = points * np.asarray([width, height, 1], dtype=np.float32)
    return replace(
        boxes,
        xyxy=boxes.xyxy * np.asarray((width, height) * 2, dtype=np.float32),
        masks=None if boxes.masks is None else boxes.masks.scaled(width, height),
        keypoints=points,
    )


def _areas(xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    sides = xyxy[:, 2:].astype(np.float64) - xyxy[:, :2]
    return np.asarray(sides[:, 0] * sides[:, 1])
