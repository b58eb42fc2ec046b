"""Semantic segmentation: scores [N, C, H, W] against class indices of pixels [N, H, W]."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.data.metrics import Array, confusion, hit_rate, mean_overlap, overlap, predictions
from trtq.tasks.base import Figure, Outputs, Places, Score, Tensors
from trtq.tasks.equal_predictions import AGREEMENT, EqualPredictions
from trtq.tasks.facts import Facts
from trtq.tasks.maps import draw_classes, resized
from trtq.tasks.one_output import OneOutput, probabilities

if TYPE_CHECKING:
    import torch


class PixelScore:
    """Counts of pixels: how often each class was predicted as each.

    Args:
        ignore: the class index that is not counted.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.counts: npt.NDArray[np.int64] | None = None

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch.

        Args:
            answer: scores, [N, C, h, w]; resized to the targets, bilinear.
            targets: class indices, [N, H, W]; None counts nothing.
        """
        if targets is None:
            return
        classes = answer.shape[1]
        answer = resized(answer, targets.shape[1:])
        predicted_classes = predictions(answer)
        ruined = ~np.isfinite(answer).all(axis=1)
        predicted_classes[ruined] = (targets[ruined] + 1) % classes  # NaN and infinity are wrong
        new = confusion(predicted_classes, targets, classes, self.ignore)
        self.counts = new if self.counts is None else self.counts + new

    @property
    def figures(self) -> list[Figure]:
        """Mean intersection over union, and the share of right pixels, percent."""
        if self.counts is None or not self.counts.any():
            return []
        return [
            Figure(name="mIoU", value=round(mean_overlap(self.counts), 4)),
            Figure(name="pixel accuracy", value=round(hit_rate(self.counts), 4)),
        ]

    @property
    def by_class(self) -> list[float | None] | None:
        """Intersection over union by class index, percent; None for an absent class."""
        if self.counts is None:
            return None
        values = overlap(self.counts).tolist()
        return [round(v, 4) if math.isfinite(v) else None for v in values]


class EqualPixels(EqualPredictions):
    """Equal pixels, and the intersection over union with the reference's classes as masks."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = PixelScore(ignore=-1)

    def add(self, answer: Array, reference: Array) -> None:  # noqa: D102
        super().add(answer, reference)
        self.pixels.add(answer, predictions(reference))

    @property
    def figures(self) -> list[Figure]:
        """Equal predictions and agreement mIoU, percent."""
        overlaps = [f for f in self.pixels.figures if f.name == "mIoU"]
        alike = [msgspec.structs.replace(f, name=f"{AGREEMENT} {f.name}") for f in overlaps]
        return [*super().figures, *alike]


@dataclass(frozen=True, kw_only=True)
class Segmentation(OneOutput):
    """One class a pixel.

    One map is the probability of class 1 (behind the colon ``logits``: before the sigmoid).

    Attributes:
        channels_last: the scores are [N, H, W, classes], as the input of the model is.
    """

    channels_last: bool = False

    name = "segmentation"
    kind = "pixels"
    form = "scores [N, classes, H, W], or one map [N, 1, H, W] of probabilities"
    ranks = (4,)
    words = ("logits",)

    def bound(self, facts: Facts) -> Segmentation:
        """Return the task with the output that it reads and the order of its axes.

        Raises:
            UsageError: there is no such output, none has the form, or several have.
        """
        own = super().bound(facts)
        return replace(own, channels_last=facts.is_map_with_channels_last(own.output))

    def decode(self, outputs: Outputs, places: Places) -> Any:
        """Return scores of classes [N, C, H, W]; C is 2 for one map.

        Args:
            outputs: of the model by name.
            places: not used.

        Raises:
            UsageError: the output is missing, or one map has no probabilities.
        """
        scores = super().decode(outputs, places)
        if self.channels_last:
            scores = np.moveaxis(scores, -1, 1)
        if scores.ndim != 4 or scores.shape[1] != 1 or scores.dtype.kind != "f":
            return scores
        shares = probabilities(scores, self.name, logits=self.has_word("logits"))
        return np.concatenate([1.0 - shares, shares], axis=1)

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return PixelScore(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return EqualPixels()

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return the Jensen-Shannon divergence of the classes, summed over pixels, nats [N].

        One map has no classes to compare: it is compared as numbers.

        Args:
            outputs: of the model by name, tensors with samples first.
            reference: of the reference.
        """
        from trtq.tasks.distances import class_divergence

        name = self.output or next(iter(reference))
        ours, theirs = outputs[name], reference[name]
        if self.channels_last:
            ours, theirs = ours.movedim(-1, 1), theirs.movedim(-1, 1)
        if theirs.shape[1] == 1:
            return super().divergence({name: ours}, {name: theirs})
        return class_divergence(ours, theirs)

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        if targets.dtype.kind not in "iu":
            what = "no numbers" if targets.dtype == np.object_ else str(targets.dtype)
            return f"its targets are {what}, expected class indices"
        if answer.ndim != 4 or answer.dtype.kind != "f":
            return f"its output is {list(answer.shape)}, not [N, classes, H, W]"
        if targets.ndim != 3:
            return f"its targets are {list(targets.shape)}, expected masks [N, H, W]"
        return ""

    def remark(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        return size_remark(answer, targets, "scores", "masks")

    def difference(self, answer: Array, other: Array) -> float:
        """Return the share of pixels with another class, 0 to 1."""
        ruined = ~(np.isfinite(answer).all(axis=0) & np.isfinite(other).all(axis=0))
        return float((ruined | (answer.argmax(axis=0) != other.argmax(axis=0))).mean())

    def draw(self, image: Image.Image, answer: Array) -> Image.Image:  # noqa: D102
        return draw_classes(image, answer.argmax(axis=0))


def size_remark(answer: Array, targets: npt.NDArray[Any], what: str, of: str) -> str:
    """Return the note that maps are resized; "" where the sizes are equal.

    Args:
        answer: maps, height and width last.
        targets: of the samples, height and width last.
        what: the model's maps, as the note names them.
        of: the targets, as the note names them.
    """
    ours, theirs = answer.shape[-2:], targets.shape[-2:]
    if ours == theirs:
        return ""
    return (
        f"the {what} of {ours[0]}x{ours[1]} are resized to the {of} of {theirs[0]}x{theirs[1]}, "
        "bilinear"
    )
