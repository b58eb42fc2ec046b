"""The raw heads of the YOLO family: one output with a box and scores for each anchor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts, Shape
from trtq.tasks.heads.base import Candidates, Head, best_of, corners, suppressed

if TYPE_CHECKING:
    from trtq.tasks.base import Tensors
    from trtq.tasks.distances import Raw

BOX = 4  # centre, width and height
PYRAMIDS = (  # strides of the maps that heads have one anchor, or more, for each cell of
    (8, 16, 32),
    (4, 8, 16, 32),
    (8, 16, 32, 64),
    (4, 8, 16, 32, 64),
    (16, 32),
    (8, 16, 32, 64, 128),
)
ANCHORS_A_CELL = (1, 3)  # of heads without and with anchor boxes


class Layout(NamedTuple):
    """How one output has its numbers.

    Attributes:
        output: its name.
        channels: numbers for each anchor.
        last: whether these are the last axis.
        per_cell: anchors for each cell of the maps; None where the input's size does not tell.
    """

    output: str
    channels: int
    last: bool
    per_cell: int | None


def layouts(facts: Facts, *, by_name: bool) -> list[Layout]:
    """Return every way to read an output [N, a, b] as anchors with a box and scores.

    Args:
        facts: what is known about the model.
        by_name: take the larger axis for the anchors where their number is unusual.
    """
    shapes = {n: s for n, s in facts.outputs.items() if len(s) == 3}
    certain = [at for n, s in shapes.items() for at in _layouts(n, s, facts, strict=True)]
    if certain or not by_name:
        return certain
    return [at for n, s in shapes.items() for at in _layouts(n, s, facts, strict=False)]


def _layouts(name: str, shape: Shape, facts: Facts, *, strict: bool) -> Iterator[Layout]:
    for last in (False, True):
        anchors, channels = shape[1:] if last else shape[:0:-1]
        if not isinstance(channels, int) or channels <= BOX:
            continue
        if not isinstance(anchors, int):
            yield Layout(name, channels, last, None)
            continue
        per_cell = None if facts.size is None else anchors_a_cell(anchors, facts.size)
        larger = anchors > channels and (facts.size is None or not strict)
        if per_cell is not None or larger:
            yield Layout(name, channels, last, per_cell)


def anchors_a_cell(anchors: int, size: tuple[int, int]) -> int | None:
    """Return how many anchors the cells of the usual maps have; None for another number."""
    cells = [_cells(size, p) for p in PYRAMIDS]
    return next((k for k in ANCHORS_A_CELL for c in cells if anchors == k * c), None)


def cells_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return height and width of a map."""
    return -(-size[0] // stride), -(-size[1] // stride)


@dataclass(frozen=True, kw_only=True)
class Rows(Head):
    """One output of anchors, each with a box, perhaps an objectness, and scores of classes.

    Attributes:
        last: whether the numbers of an anchor are the last axis.
        one_class: a box has its best class only, as detectors are deployed; else every class with
            the least score, which ultralytics' validation counts.
        objectness: how many numbers are between a box and its scores: 1 with objectness, or 0.
        per_cell: anchors for each cell that the head can have.
        tasks: of ultralytics' metadata that the head is for.
    """

    last: bool = False
    one_class: bool = True
    objectness: ClassVar[int]
    per_cell: ClassVar[tuple[int | None, ...]]
    tasks: ClassVar[tuple[str, ...]] = ("detect",)

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        if not by_name and not cls._is_meant(facts):
            return []
        ways = [
            at for at in layouts(facts, by_name=by_name) if cls._has(at, facts, by_name=by_name)
        ]
        return [head for at in ways for head in cls._reading(at, facts)]

    @classmethod
    def _reading(cls, at: Layout, facts: Facts) -> Sequence[Head]:
        """Return the head that reads an output, if it has all that it needs."""
        del facts
        classes = at.channels - BOX - cls.objectness
        return [cls(outputs=(at.output,), classes=classes, last=at.last)] if classes > 0 else []

    @classmethod
    def _is_meant(cls, facts: Facts) -> bool:
        """Whether the metadata and the other outputs are those of such a model."""
        if facts.task is not None and facts.task not in cls.tasks:
            return False
        return facts.task is not None or not (prototypes(facts) or facts.keypoint_shape)

    @classmethod
    def _has(cls, at: Layout, facts: Facts, *, by_name: bool) -> bool:
        """Whether the head writes its numbers in this way."""
        del facts
        return by_name or at.per_cell in cls.per_cell

    def _anchors(self, output: Array, size: tuple[int, int]) -> list[Array]:
        """Return the numbers of each sample, [channels, anchors]."""
        del size
        return [sample.T for sample in output] if self.last else list(output)

    def raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw | None:  # noqa: D102
        from trtq.tasks.distances import Raw

        del size
        if type(self)._anchors is not Rows._anchors:
            return None  # its numbers are no pixels
        given = outputs[self.outputs[0]]
        rows = given if self.last else given.transpose(1, 2)
        first = BOX + self.objectness
        scores = rows[..., first : first + (self.classes or 0)]
        return Raw(rows[..., :BOX], scores * rows[..., BOX:first] if self.objectness else scores)

    def _candidates(self, anchors: Array) -> Candidates:
        first = BOX + self.objectness
        scores = anchors[first : first + (self.classes or 0)]
        if self.objectness:
            scores = scores * anchors[BOX]
        return best_of(scores, self.least_score, one_class=self.one_class)

    def _kept(self, anchors: Array) -> tuple[Detections, Candidates]:
        """Return what is found among anchors, and which these are."""
        candidates = self._candidates(anchors)
        boxes = corners(anchors[:BOX, candidates.rows].T)
        kept = suppressed(boxes, candidates, overlap=self.overlap, most=self.most)
        chosen = candidates.at(kept)
        return Detections.of(boxes[kept], chosen.scores, chosen.classes), chosen

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        return [self._kept(anchors)[0] for anchors in self._anchors(outputs[0], size)]


@dataclass(frozen=True, kw_only=True)
class Yolo(Rows):
    """YOLOv8 to v11: centre, width, height in pixels, scores of classes after the sigmoid."""

    name: ClassVar[str] = "yolo"
    summary: ClassVar[str] = "[N, 4 + classes, anchors] or transposed (YOLOv8, v9, 11, 12)"
    objectness: ClassVar[int] = 0
    per_cell: ClassVar[tuple[int | None, ...]] = (1, None)


@dataclass(frozen=True, kw_only=True)
class YoloObjectness(Rows):
    """YOLOv5, v6 and v7: the same with the objectness before the scores."""

    name: ClassVar[str] = "yolo-objectness"
    summary: ClassVar[str] = "[N, anchors, 5 + classes] or transposed (YOLOv5, v6, v7)"
    objectness: ClassVar[int] = 1
    per_cell: ClassVar[tuple[int | None, ...]] = (1, 3, None)

    @classmethod
    def _has(cls, at: Layout, facts: Facts, *, by_name: bool) -> bool:
        """Heads with one anchor a cell and an objectness have it last."""
        return super()._has(at, facts, by_name=by_name) and (by_name or at.per_cell != 1 or at.last)


@dataclass(frozen=True, kw_only=True)
class YoloX(Rows):
    """YOLOX: offsets from the cells of its maps, and logarithms of sizes in strides."""

    name: ClassVar[str] = "yolox"
    summary: ClassVar[str] = "[N, cells, 5 + classes], boxes relative to the cells (YOLOX)"
    objectness: ClassVar[int] = 1
    per_cell: ClassVar[tuple[int | None, ...]] = (1,)

    @classmethod
    def _has(cls, at: Layout, facts: Facts, *, by_name: bool) -> bool:
        """Cells are counted in any case: boxes without their cells are meaningless."""
        return at.last and (at.per_cell == 1 or (by_name and facts.size is None))

    def _anchors(self, output: Array, size: tuple[int, int]) -> list[Array]:
        places, strides = grid(size, output.shape[1])
        centres = (output[..., :2] + places) * strides
        sizes = np.exp(output[..., 2:BOX]) * strides
        return [s.T for s in np.concatenate([centres, sizes, output[..., BOX:]], axis=-1)]


def grid(size: tuple[int, int], anchors: int) -> tuple[Array, Array]:
    """Return x and y of cells in strides [A, 2], and their strides [A, 1].

    Args:
        size: height and width of the input.
        anchors: how many cells the maps have together.

    Raises:
        UsageError: no usual maps have as many.
    """
    places: list[Array] = []
    widths: list[Array] = []
    for stride in _strides(size, anchors):
        height, width = cells_of(size, stride)
        y, x = np.mgrid[:height, :width]
        places.append(np.stack([x.ravel(), y.ravel()], axis=1))
        widths.append(np.full((height * width, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(widths).astype(np.float32)


def _strides(size: tuple[int, int], anchors: int) -> tuple[int, ...]:
    for strides in PYRAMIDS:
        if _cells(size, strides) == anchors:
            return strides
    raise UsageError(
        "The head yolox cannot place its boxes",
        f"the output has {anchors} boxes, an input of {size[0]}x{size[1]} has "
        f"{_cells(size, PYRAMIDS[0])} cells of 8, 16 and 32 pixels",
        "Give --input-size of the model",
    )


def _cells(size: tuple[int, int], strides: Sequence[int]) -> int:
    """Return how many cells the maps of these strides have."""
    return sum(h * w for h, w in (cells_of(size, s) for s in strides))


def prototypes(facts: Facts) -> tuple[str, int] | None:
    """Return name and channels of the only output of maps, from which masks are made."""
    maps = [(n, s[1]) for n, s in facts.outputs.items() if len(s) == 4]
    if len(maps) != 1 or not isinstance(maps[0][1], int):
        return None
    return maps[0][0], maps[0][1]


@dataclass(frozen=True, kw_only=True)
class YoloSplit(Head):
    """YOLO-NAS, DAMO-YOLO and PP-YOLOE without suppression: corners and scores side by side.

    Attributes:
        last: whether the classes are the last axis of the scores.
    """

    name: ClassVar[str] = "yolo-split"
    summary: ClassVar[str] = (
        "boxes [N, anchors, 4]: left, top, right, bottom in pixels, and scores [N, anchors, "
        "classes] or transposed after the sigmoid (YOLO-NAS, DAMO-YOLO, PP-YOLOE)"
    )
    by_names: ClassVar[bool] = True  # two outputs of the same anchors say as much
    last: bool = True

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        shapes = {n: s for n, s in facts.outputs.items() if len(s) == 3}
        if len(shapes) != 2 or (not by_name and facts.task is not None):
            return []
        return [
            cls(outputs=(boxes, scores), classes=columns, last=last)
            for boxes, scores in (tuple(shapes), tuple(shapes)[::-1])
            for columns, last in _columns(shapes[boxes], shapes[scores], facts, by_name=by_name)
            if not _BOXED.search(scores.lower()) or _BOXED.search(boxes.lower())
        ]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        del size
        return [self._read(*parts) for parts in zip(*outputs, strict=True)]

    def _read(self, boxes: Array, scores: Array) -> Detections:
        best = best_of(scores.T if self.last else scores, self.least_score)
        chosen = boxes[best.rows]
        kept = suppressed(chosen, best, overlap=self.overlap, most=self.most)
        return Detections.of(chosen[kept], best.scores[kept], best.classes[kept])

    def raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw:  # noqa: D102
        import torch

        from trtq.tasks.distances import Raw

        del size
        boxes, scores = (outputs[n] for n in self.outputs)
        first, second = boxes[..., :2], boxes[..., 2:]
        centred = torch.cat([(first + second) / 2, second - first], dim=-1)
        return Raw(centred, scores if self.last else scores.transpose(1, 2))


_BOXED = re.compile("box")


def _columns(
    boxes: Shape, scores: Shape, facts: Facts, *, by_name: bool
) -> Iterator[tuple[int, bool]]:
    """Yield classes and whether they are the last axis, for outputs of the same anchors."""
    anchors = boxes[1]
    if boxes[2] != BOX or not isinstance(anchors, int):
        return
    usual = facts.size is not None and anchors_a_cell(anchors, facts.size) == 1
    if not (usual or by_name):
        return
    for last in (True, False):
        own, columns = scores[1:] if last else scores[:0:-1]
        if own == anchors and isinstance(columns, int) and columns != anchors:
            yield columns, last
