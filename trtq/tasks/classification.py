"""Image classification: scores of classes [N, C] against class indices [N]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.data.metrics import Array
from trtq.tasks.base import Figure, Score, Task, Tensors
from trtq.tasks.equal_predictions import EqualPredictions
from trtq.tasks.facts import Facts
from trtq.tasks.maps import caption

if TYPE_CHECKING:
    import torch

BEST = 5


class TopScore:
    """Counts of labels that came first, or among the first five.

    Answers that are NaN or infinite are wrong.

    Args:
        ignore: the label that is not counted.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.labelled = 0
        self.top1 = 0
        self.top5 = 0

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch.

        Args:
            answer: scores of classes, [N, C].
            targets: class indices, [N]; None counts nothing.
        """
        if targets is None:
            return
        counted = targets != self.ignore
        answer, targets = answer[counted], targets[counted]
        wanted = np.where(np.isfinite(answer).all(axis=1), targets, -1)[:, None]
        best = np.argsort(-answer, axis=1, kind="stable")[:, : min(BEST, answer.shape[1])]
        self.labelled += len(targets)
        self.top1 += int((best[:, :1] == wanted).sum())
        self.top5 += int((best == wanted).sum())

    @property
    def figures(self) -> list[Figure]:
        """Top-1 and top-5, percent."""
        if not self.labelled:
            return []
        return [
            Figure(name="top-1", value=round(100.0 * self.top1 / self.labelled, 4)),
            Figure(name="top-5", value=round(100.0 * self.top5 / self.labelled, 4)),
        ]


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class an image.

    Attributes:
        classes: names in index order, where they are known.
    """

    name = "classification"
    kind = "classes"
    classes: tuple[str, ...] = ()

    def bound(self, facts: Facts) -> Classification:  # noqa: D102
        return replace(self, classes=facts.class_names)

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return TopScore(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return EqualPredictions()

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return the Jensen-Shannon divergence of the classes, nats [N]."""
        from trtq.tasks.distances import class_divergence

        return class_divergence(next(iter(outputs.values())), next(iter(reference.values())))

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        return class_mismatch(answer, targets)

    def difference(self, answer: Array, other: Array) -> float:
        """Return how much probability is on other classes, 0 to 1; more where classes differ."""
        return class_difference(answer, other)

    def draw(self, image: Image.Image, answer: Array) -> Image.Image:  # noqa: D102
        best = int(np.argmax(answer))
        name = self.classes[best] if best < len(self.classes) else f"class {best}"
        return caption(image, f"{name} {shares(answer)[best]:.2f}")


def class_mismatch(answer: Array, targets: npt.NDArray[np.int64]) -> str:
    """Return why targets are no classes of answers [N, C], "" when they are.

    Args:
        answer: of a batch.
        targets: of the batch.
    """
    if targets.dtype.kind not in "iu":
        what = "no numbers" if targets.dtype == np.object_ else str(targets.dtype)
        return f"its targets are {what}, expected class indices"
    if answer.ndim != 2 or targets.ndim != 1:
        return f"its output is {list(answer.shape)}, the labels are {list(targets.shape)}"
    return ""


def class_difference(answer: Array, other: Array) -> float:
    """Return how much two models differ on one sample's scores [C].

    It is the probability that is on other classes, 0 to 1, and 1 more where the best classes
    differ. NaN differs by 2.

    Args:
        answer: of one model.
        other: of the other model.
    """
    if not (np.isfinite(answer).all() and np.isfinite(other).all()):
        return 2.0
    far = 0.5 * float(np.abs(shares(answer) - shares(other)).sum())
    return far + float(np.argmax(answer) != np.argmax(other))


def shares(scores: Array) -> Array:
    """Return scores [C] as probabilities: as they are where they add up to 1, else a softmax.

    Args:
        scores: finite. They add up to 1 where none is negative and the sum is within 0.01 of it.
    """
    if (scores >= 0.0).all() and abs(float(scores.sum()) - 1.0) < 0.01:
        return scores
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())
