"""Instances: boxes with the pixels of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.data.boxes import Boxes
from trtq.errors import UsageError
from trtq.tasks.base import Figure, Score
from trtq.tasks.coco_counts import Kind
from trtq.tasks.detection import Detection, overlaps_of
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.precision import AgreementPrecision, MeanPrecision

Precision = MeanPrecision | AgreementPrecision


class Precisions:
    """Average precisions of several kinds of answers, side by side.

    Args:
        parts: by the word that their figures have before ``mAP``, that which models are compared
            by first.
    """

    def __init__(self, **parts: Precision) -> None:
        self.parts = parts

    def add(self, answer: Sequence[Detections], targets: Any) -> None:
        """Count one batch.

        Args:
            answer: of each picture.
            targets: objects of each picture, or for an agreement the detections of the reference;
                None counts nothing.

        Raises:
            DataError: masks or keypoints are missing, or do not belong together.
        """
        for part in self.parts.values():
            part.add(answer, targets)

    @property
    def figures(self) -> list[Figure]:
        """The figures of all kinds; sizes that a kind does not have are left out."""
        return [
            msgspec.structs.replace(f, name=f.name.replace("mAP", f"{word} mAP"))
            for word, part in self.parts.items()
            for f in part.figures
            if not (part.kind == "keypoints" and f.name.endswith("small"))
        ]

    @property
    def by_class(self) -> list[float | None]:
        """The first precision of each class, percent."""
        return next(iter(self.parts.values())).by_class

    def curve(self) -> list[tuple[float, float]]:
        """Return recall and the first precision, 0 to 1."""
        first = next(iter(self.parts.values()))
        return first.curve() if isinstance(first, MeanPrecision) else []


@dataclass(frozen=True, kw_only=True)
class Instances(Detection):
    """Boxes and masks of objects, each of one class.

    Attributes:
        extra: what a head finds beside boxes.
        word: before ``mAP`` in the figures.
        counted: what is compared beside boxes.
    """

    name = "instances"
    extra: ClassVar[str] = "masks"
    word: ClassVar[str] = "mask"
    counted: ClassVar[Kind] = "segm"

    def bound(self, facts: Facts) -> Detection:
        """Return the task with the head that decodes a model's outputs.

        Raises:
            UsageError: none fits, or several do, or it finds only boxes.
        """
        task = super().bound(facts)
        assert task.head is not None
        if self.extra not in task.head.gives:
            raise UsageError(
                f"Cannot use the task {self.name}",
                f"the head {task.head.name} finds no {self.extra}; known: {facts.words}",
                "Keep all outputs of the model (leave --outputs out), or give --task detection",
            )
        return task

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        del ignore
        own = MeanPrecision(self.classes, kind=self.counted)
        return Precisions(**{self.word: own, "box": MeanPrecision(self.classes)})

    def agreement(self) -> Score:  # noqa: D102
        own = AgreementPrecision(self.classes, kind=self.counted)
        return Precisions(**{self.word: own, "box": AgreementPrecision(self.classes)})

    def mismatch(self, answer: Any, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        reason = super().mismatch(answer, targets)
        if reason or all(self._has_extra(t) for t in targets if len(t)):
            return reason
        return f"its boxes have no {self.extra}"

    def _has_extra(self, boxes: Boxes) -> bool:
        return boxes.masks is not None

    def overlaps(self, own: Detections, theirs: Detections) -> npt.NDArray[np.float64]:
        """Return the intersection over union of each two masks, 0 of other classes.

        Args:
            own: in one picture.
            theirs: in the same picture.

        Returns:
            float [own, theirs], 0 to 1; overlaps of boxes where one side has no masks.
        """
        if own.masks is None or theirs.masks is None or not len(own) or not len(theirs):
            return overlaps_of(own, theirs)
        a, b = (m.reshape(len(m), -1).astype(np.float32) for m in (own.masks, theirs.masks))
        shared = a @ b.T
        union = np.maximum(a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - shared, 1.0)
        return np.where(own.classes[:, None] == theirs.classes[None], shared / union, 0.0)
