"""What adapters of images with boxes share: images found by name, sizes compared, samples made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def image_places(source: Source, names: Sequence[str], annotations: str) -> list[int]:
    """Return the positions of images in a source by the names that annotations have for them.

    A name is a path from the root, or the end of exactly one path.

    Raises:
        DataError: names images that are missing, or of which there are several.
    """
    exact = {n: i for i, n in enumerate(source.ids)}
    ends: dict[str, list[int]] = {}
    for i, path in enumerate(source.ids):
        ends.setdefault(PurePosixPath(path).name, []).append(i)
    found = [_place(source, n, exact, ends) for n in names]
    missing = [n for n, place in zip(names, found, strict=True) if place is None]
    if missing:
        raise DataError(
            f"{source.name} lacks images that its annotations name",
            f"{len(missing)} of {len(names)} in {annotations}: {listed(missing, SHOWN)}",
            "Add the images, or remove their entries from the annotations",
        )
    return present(found)


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


def boxed_data(
    request: Request,
    source: Source,
    *,
    boxes: Mapping[int, Boxes],
    classes: Sequence[str],
    sizes: Mapping[int, tuple[int | None, int | None]] | None = None,
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
        DataError: there are no images with annotations.
    """
    if not boxes:
        raise DataError(f"Cannot use {request.text}", "its annotations name no image")
    left_out = len(source) - len(boxes)
    if left_out:
        request.tell(f"{left_out} images of {request.text} have no annotations and are left out")
    source.classes = list(classes)
    checked = CheckedBoxes(source, boxes, sizes)

    def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
        assert picture is not None
        samples = ImageSamples(source=source, picture=picture, indices=sorted(boxes), boxes=checked)
        return samples if needs is None else samples.bound(needs)

    return Data(name=request.text, make=make, source=source)


class CheckedBoxes:
    """Boxes by position, in pixels; the size of an image is read when its boxes are."""

    def __init__(
        self,
        source: Source,
        boxes: Mapping[int, Boxes],
        sizes: Mapping[int, tuple[int | None, int | None]] | None,
    ) -> None:
        self.source, self.boxes, self.sizes = source, boxes, sizes

    def __getitem__(self, index: int) -> Boxes:
        """Return the boxes of an image.

        Raises:
            DataError: the annotations were made for an image of another size.
        """
        boxes = self.boxes[index]
        if self.sizes is None:
            return replace(boxes, xyxy=boxes.xyxy * _corners(self._size(index)))
        wanted = self.sizes[index]
        if None not in wanted and self._size(index) != wanted:
            width, height = self._size(index)
            raise DataError(
                f"The boxes of {self.source.ids[index]} of {self.source.name} do not fit it",
                f"the annotations are for {wanted[0]}x{wanted[1]} pixels, the upright image has "
                f"{width}x{height}",
                "Give the images that were annotated",
            )
        return boxes

    def _size(self, index: int) -> tuple[int, int]:
        """Return width and height of an image that is upright."""
        image = self.source.geometry(index)
        if image.orientation in TURNED:
            return image.height, image.width
        return image.width, image.height


def _corners(size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return width, height, width, height: what turns shares of an image into pixels."""
    return np.asarray((*size, *size), dtype=np.float32)
