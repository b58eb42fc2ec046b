"""Object detection: boxes of classes, judged by COCO's mean average precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.data.boxes import Boxes
from trtq.errors import UsageError
from trtq.tasks.base import Outputs, Places, Score, Task, Tensors
from trtq.tasks.detections import Detections
from trtq.tasks.drawing import SHOWN_SCORE, draw_boxes
from trtq.tasks.facts import Facts
from trtq.tasks.heads import Head, find_head
from trtq.tasks.precision import AgreementPrecision, MeanPrecision

if TYPE_CHECKING:
    import torch

    from trtq.tasks.distances import Measure

PARTNERS = 0.5  # overlap of two boxes that are one object


@dataclass(frozen=True, kw_only=True)
class Detection(Task):
    """Boxes around objects, each of one class.

    Attributes:
        asked: name of the head that decodes the outputs; "" for the one that fits.
        head: of the model, once the task is bound to one.
        size: height and width of the model's input.
        classes: names in index order, where they are known.
    """

    name = "detection"
    finds_boxes = True
    asked: str = ""
    head: Head | None = None
    size: tuple[int, int] = (0, 0)
    classes: tuple[str, ...] = ()

    @property
    def label(self) -> str:  # noqa: D102
        return self.name if self.head is None else f"{self.name}:{self.asked or self.head.name}"

    def with_argument(self, argument: str) -> Detection:
        """Return the task that decodes with the head of a name.

        Args:
            argument: name of a head, and what it takes behind it.
        """
        return replace(self, asked=argument)

    def bound(self, facts: Facts) -> Detection:
        """Return the task with the head that decodes a model's outputs.

        Raises:
            UsageError: none fits, or several do, or the model takes no image.
        """
        head = find_head(facts, self.asked or None)
        if facts.size is None:
            raise UsageError(
                "Cannot read boxes", "the model takes no image of a known size", "Give --task"
            )
        return replace(self, head=head, size=facts.size, classes=facts.class_names)

    def decode(self, outputs: Outputs, places: Places) -> list[Detections]:
        """Return the boxes of each sample, in pixels of its original image where it has one."""
        assert self.head is not None
        detections = self.head.decode(outputs, self.size)
        if places is None:
            return detections
        return [f.moved(place) for f, place in zip(detections, places, strict=True)]

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        del ignore
        return MeanPrecision(self.classes)

    def agreement(self) -> Score:  # noqa: D102
        return AgreementPrecision(self.classes)

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return how far boxes and scores are from a reference's, float [N].

        The divergence of the scores, and the distance of boxes weighted by the reference's scores;
        for heads without a raw form the squared error of every output.
        """
        from trtq.tasks.distances import bernoulli_jensen_shannon

        return self._distance(outputs, reference, bernoulli_jensen_shannon)

    def loss(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return the same with the cross-entropy of the scores, which pulls harder."""
        from trtq.tasks.distances import bernoulli_kullback_leibler

        return self._distance(outputs, reference, bernoulli_kullback_leibler).mean()

    def _distance(self, outputs: Tensors, reference: Tensors, measure: Measure) -> torch.Tensor:
        from trtq.tasks.distances import head_distance

        assert self.head is not None
        ours, theirs = (self.head.raw(side, self.size) for side in (outputs, reference))
        if ours is None or theirs is None:
            return super().divergence(outputs, reference)
        return head_distance(ours, theirs, measure)

    def mismatch(self, answer: Any, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        del answer
        boxed = targets.dtype == np.object_ and all(isinstance(t, Boxes) for t in targets)
        return "" if boxed else f"its targets are {targets.dtype}, expected boxes"

    def difference(self, answer: Detections, other: Detections) -> float:
        """Return how many boxes have no partner in the other answer, and how far partners are.

        Boxes of at least 0.25 count; a partner has the same class and overlaps by half.

        Args:
            answer: in one picture.
            other: the reference's, in the same pixels.

        Returns:
            Whole part: boxes without a partner; fraction: 1 minus the overlap, summed over
            partners.
        """
        own, theirs = answer.above(SHOWN_SCORE), other.above(SHOWN_SCORE)
        overlaps = self.overlaps(own, theirs)
        lost, far = len(own) + len(theirs), 0.0
        while overlaps.size and float(overlaps.max()) >= PARTNERS:
            row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
            far += 1.0 - float(overlaps[row, column])
            lost -= 2
            overlaps[row], overlaps[:, column] = 0.0, 0.0
        return lost + far

    def overlaps(self, own: Detections, theirs: Detections) -> npt.NDArray[np.float64]:
        """Return how much each two objects are one, 0 to 1, and 0 of other classes.

        Args:
            own: in one picture.
            theirs: in the same picture.

        Returns:
            float64 [own, theirs].
        """
        return overlaps_of(own, theirs)

    def draw(self, image: Image.Image, answer: Detections) -> Image.Image:  # noqa: D102
        return draw_boxes(image, answer, self.classes)


def overlaps_of(own: Detections, theirs: Detections) -> npt.NDArray[np.float64]:
    """Return the intersection over union of each two boxes, 0 of other classes, [own, theirs].

    Args:
        own: in one picture.
        theirs: in the same picture.
    """
    a, b = own.xyxy.astype(np.float64)[:, None], theirs.xyxy.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0.0, None).prod(axis=-1)
    areas = [(v[..., 2:] - v[..., :2]).prod(axis=-1) for v in (a, b)]
    union = np.maximum(areas[0] + areas[1] - shared, np.finfo(np.float64).tiny)
    return np.where(own.classes[:, None] == theirs.classes[None], shared / union, 0.0)
