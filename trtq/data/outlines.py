"""The pixels of objects, as annotations have them: polygons and run lengths, not yet decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.errors import DataError

POINTS = 6  # numbers of the smallest polygon: x and y of three points


class Packed(TypedDict):
    """Run lengths as pycocotools takes them."""

    size: list[int]
    counts: bytes


class RunLengths(msgspec.Struct, frozen=True):
    """Alternating counts of pixels outside and inside an object, column by column.

    Attributes:
        counts: numbers, or COCO's compressed text.
        size: height and width of the image.
    """

    counts: list[int] | str
    size: tuple[int, int]

    @classmethod
    def packed(cls, runs: Packed) -> RunLengths:
        """Return run lengths of pycocotools.

        Args:
            runs: with counts in COCO's compressed form.
        """
        height, width = runs["size"]
        return cls(runs["counts"].decode(), (height, width))


Outline = list[list[float]] | RunLengths


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """The pixels of the objects of one image.

    Attributes:
        of: for each object polygons (x and y in turn, in pixels) that cover it together, or its
            run lengths.
        size: height and width of the upright original image; None where it is not yet known.
        owner: the image, for errors.
    """

    of: tuple[Outline, ...]
    size: tuple[int, int] | None = None
    owner: str = "an image"

    def __len__(self) -> int:
        return len(self.of)

    def packed(self) -> list[Packed]:
        """Return the run lengths of each object.

        Raises:
            DataError: an outline is damaged, or is for an image of another size.
        """
        try:
            return [self._packed(outline) for outline in self.of]
        except ValueError as exc:
            raise DataError(
                f"Cannot use the mask of an object in {self.owner}",
                str(exc),
                "Export the annotations again",
            ) from exc

    def scaled(self, width: int, height: int) -> Outlines:
        """Return polygons of shares of an image as polygons in pixels.

        Args:
            width: of the image, pixels.
            height: of the image, pixels.
        """
        sides = (width, height)
        of = tuple(
            outline
            if isinstance(outline, RunLengths)
            else [[v * sides[i % 2] for i, v in enumerate(polygon)] for polygon in outline]
            for outline in self.of
        )
        return replace(self, of=of, size=(height, width))

    def decoded(self) -> npt.NDArray[np.bool_]:
        """Return the pixels of each object, bool [N, H, W].

        Raises:
            DataError: an outline is damaged, or is for an image of another size.
        """
        height, width = self.size or (0, 0)
        masks = np.zeros((len(self), height, width), dtype=np.bool_)
        for mask, runs in zip(masks, self.packed(), strict=True):
            lengths = lengths_of(runs["counts"])
            inside = np.arange(len(lengths)) % 2 == 1
            mask[:] = np.repeat(inside, lengths).reshape(width, height).T
        return masks

    def _packed(self, outline: Outline) -> Packed:
        from pycocotools import mask

        assert self.size is not None
        height, width = self.size
        if isinstance(outline, RunLengths):
            return _packed_runs(outline, (height, width))
        if any(len(p) < POINTS or len(p) % 2 for p in outline):
            wrong = next(len(p) for p in outline if len(p) < POINTS or len(p) % 2)
            raise ValueError(f"a polygon has {wrong} numbers, expected x and y of three points")
        if any(not _is_near(p, width, height) for p in outline):
            raise ValueError(f"a polygon is far outside the image of {width}x{height} pixels")
        if not outline:
            return packed(np.zeros((1, height, width), dtype=np.bool_))[0]
        whole: Packed = mask.merge(mask.frPyObjects(outline, height, width))
        return whole


def _is_near(polygon: Sequence[float], width: int, height: int) -> bool:
    """Whether no point is further from an image than the image is wide or high."""
    return all(
        -side <= v <= 2 * side
        for values, side in ((polygon[0::2], width), (polygon[1::2], height))
        for v in values
    )


def packed(masks: npt.NDArray[np.bool_]) -> list[Packed]:
    """Return the run lengths of masks [N, H, W].

    Args:
        masks: bool, one object each.
    """
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(own, dtype=np.uint8)) for own in masks]


def areas(runs: Sequence[Packed]) -> npt.NDArray[np.float64]:
    """Return how many pixels objects have, [N].

    Args:
        runs: of objects.
    """
    from pycocotools import mask

    return np.asarray(mask.area(list(runs)), dtype=np.float64).reshape(len(runs))


def lengths_of(text: bytes) -> list[int]:
    """Return the run lengths of COCO's compressed text.

    A length has groups of 5 bits, the lowest first, in characters from ``0``; bit 5 says that one
    more follows. From the fourth on it is the difference to the length two before.

    Args:
        text: of one object, as pycocotools writes it.

    Returns:
        Counts of pixels outside and inside in turn, outside first.

    Raises:
        ValueError: the text ends within a length.

    >>> lengths_of(b"05")
    [0, 5]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - ord("0")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("it ends within a run length")
    return lengths


def _packed_runs(runs: RunLengths, size: tuple[int, int]) -> Packed:
    """Return run lengths in their compressed form.

    Raises:
        ValueError: they are for an image of another size, or do not cover it.
    """
    from pycocotools import mask

    height, width = size
    if tuple(runs.size) != size:
        raise ValueError(
            f"it is for {runs.size[1]}x{runs.size[0]} pixels, the image has {width}x{height}"
        )
    counts = runs.counts
    lengths = lengths_of(counts.encode()) if isinstance(counts, str) else counts
    if sum(lengths) != height * width or min(lengths) < 0:
        raise ValueError(
            f"its run lengths are {sum(lengths)} pixels, the image has {height * width}"
        )
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    whole: Packed = mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
    return whole
