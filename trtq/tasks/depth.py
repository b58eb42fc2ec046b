"""Depth and other maps of positive numbers, [N, 1, H, W] or [N, H, W]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.data.metrics import Array
from trtq.tasks.base import Figure, Outputs, Places, Score
from trtq.tasks.maps import draw_values, resized
from trtq.tasks.one_output import OneOutput
from trtq.tasks.segmentation import size_remark

NEAR = 1.25  # ratio of two depths that are close, of the literature's delta1
ALIKE = 1.1  # of two models: a map that is 20 % off everywhere must not count as the same
AXES = 3
Floats = npt.NDArray[np.float64]


def depth_errors(depths: Floats, wanted: Floats, near: float = NEAR) -> tuple[float, float, float]:
    """Return AbsRel, RMSE and the share within a factor of ``near``, percent.

    Args:
        depths: [M]; a NaN or an infinity counts as 0, which is never close.
        wanted: true depths [M], all positive.
        near: ratio of two depths that are close.
    """
    depths = np.where(np.isfinite(depths), depths, 0.0)
    far = np.abs(depths - wanted)
    ratio = np.maximum(depths / wanted, wanted / np.maximum(depths, np.finfo(np.float64).tiny))
    return (
        float((far / wanted).mean()),
        float(np.sqrt(np.square(far).mean())),
        100.0 * float((ratio < near).mean()),
    )


class DepthScore:
    """Errors of maps, each the mean over samples of a mean over pixels.

    Pixels whose target is NaN, infinite, 0, negative or ``ignore`` do not count.

    Args:
        ignore: the target value that is not counted.
        near: ratio of two depths that are close.
    """

    def __init__(self, ignore: float, near: float = NEAR) -> None:
        self.ignore, self.near = ignore, near
        self.errors: list[tuple[float, float, float]] = []

    def add(self, answer: Array, targets: npt.NDArray[Any] | None) -> None:
        """Count one batch; maps [N, h, w] are resized to the targets' size.

        Args:
            answer: maps, [N, h, w].
            targets: true values, [N, H, W] or [N, 1, H, W]; None counts nothing.
        """
        if targets is None:
            return
        wanted = as_maps(targets).astype(np.float64)
        depths = resized(answer[:, None], wanted.shape[1:])[:, 0].astype(np.float64)
        for own, truth in zip(depths, wanted, strict=True):
            counted = np.isfinite(truth) & (truth > 0.0) & (truth != self.ignore)
            if counted.any():
                self.errors.append(depth_errors(own[counted], truth[counted], self.near))

    @property
    def figures(self) -> list[Figure]:
        """AbsRel, RMSE and delta1; empty before something is counted."""
        if not self.errors:
            return []
        relative, root, near = np.mean(self.errors, axis=0).tolist()
        return [
            Figure(name="AbsRel", value=_short(relative), unit="", better="lower"),
            Figure(name="RMSE", value=_short(root), unit="", better="lower"),
            Figure(name="delta1", value=round(near, 4)),
        ]


class DepthAgreement:
    """The same figures against another model's maps, the share of pixels within 10 % first."""

    def __init__(self) -> None:
        self.counts = DepthScore(ignore=0, near=ALIKE)

    def add(self, answer: Array, reference: Array) -> None:
        """Count one batch.

        Args:
            answer: maps of the model, [N, H, W].
            reference: maps of the other model, of the same shape.
        """
        self.counts.add(answer, reference)

    @property
    def figures(self) -> list[Figure]:
        """Agreement of pixels within 10 %, AbsRel and RMSE."""
        figures = {f.name: f for f in self.counts.figures}
        order = {"delta1": "within 10 %", "AbsRel": "AbsRel", "RMSE": "RMSE"}
        return [
            msgspec.structs.replace(figures[n], name=f"agreement {name}")
            for n, name in order.items()
            if n in figures
        ]


@dataclass(frozen=True, kw_only=True)
class Depth(OneOutput):
    """A positive number for each pixel."""

    name = "depth"
    form = "maps [N, 1, H, W] or [N, H, W]"
    ranks = (3, 4)

    def _fits(self, name: str, facts: Any) -> bool:
        shape = facts.outputs[name]
        return super()._fits(name, facts) and (len(shape) == AXES or shape[1] == 1)

    def decode(self, outputs: Outputs, places: Places) -> Array:
        """Return maps [N, H, W].

        Raises:
            UsageError: the output is missing.
        """
        return as_maps(super().decode(outputs, places))

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return DepthScore(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return DepthAgreement()

    def mismatch(self, answer: Array, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        del answer
        maps = as_maps(targets)
        if maps.ndim == AXES and maps.dtype.kind in "fiu":
            return ""
        what = "no numbers" if targets.dtype == np.object_ else str(targets.dtype)
        return f"its targets are {what} {list(targets.shape)}, expected maps [N, H, W]"

    def remark(self, answer: Array, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        return size_remark(answer, targets, "maps", "targets")

    def difference(self, answer: Array, other: Array) -> float:
        """Return the mean distance of two maps over the mean size of the other one.

        Returns:
            Infinity where a value is NaN or infinite.
        """
        sound = np.isfinite(answer) & np.isfinite(other)
        if not sound.all():
            return float("inf")
        size = max(float(np.abs(other).mean()), float(np.finfo(np.float32).tiny))
        return float(np.abs(answer - other).mean()) / size

    def draw(self, image: Image.Image, answer: Array) -> Image.Image:  # noqa: D102
        return draw_values(image.size, answer)


def as_maps(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return maps [N, 1, H, W] as [N, H, W], others as they are.

    Args:
        values: maps of a batch.
    """
    return values[:, 0] if values.ndim == AXES + 1 and values.shape[1] == 1 else values


def _short(value: float) -> float:
    """Return a number of any size with six digits."""
    return float(f"{value:.6g}")
