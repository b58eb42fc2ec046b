"""The sensitivity that ``trtq analyze`` measured of each layer."""

from __future__ import annotations

from typing import Any

import msgspec

from trtq.artifact import Environment, Record
from trtq.cost.count import LayerCost
from trtq.cost.ops import Kernel
from trtq.data.preprocess import Preprocess


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a model.

    Attributes:
        layers: by name, those that can have a width, in graph order; a weight that two of them read
            counts at the first.
        left_out: names of counted layers with weights that remain in float.
        other_bytes: of parameters that have no width to choose, at 4 bytes each.
        kernels: what an engine launches for one image.
    """

    layers: dict[str, LayerCost]
    left_out: list[str]
    other_bytes: int
    kernels: list[Kernel]


class AnalyzedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer.

    Attributes:
        name: as in every record.
        loss: by width, what the metric says; comparable between layers.
        raw: the metric's own number, None where it has none.
        stderr: its standard error.
        group: the layers that must share its width, itself included.
        cost: what it multiplies, reads and writes for one image.
    """

    name: str
    loss: dict[str, float]
    raw: float | None
    stderr: float | None
    group: list[str]
    cost: LayerCost


class AnalyzedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model of an analysis.

    Attributes:
        name: as it was given, or the class of a module.
        weights: where they are from, in words.
        weights_sha256: of the captured weights, 64 hex digits.
    """

    name: str
    weights: str
    weights_sha256: str


class AnalyzeRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq analyze``.

    Attributes:
        model: what was analysed.
        data: what samples say of themselves: ``source``, ``images`` and, of images, ``classes`` ...
        preprocess: how images became the input; None for inputs.
        metric: name of the metric.
        bits: the widths, narrowest first.
        layers: in graph order.
        left_out: layers that remain in float for any choice.
        other_bytes: of parameters that have no width to choose, at 4 bytes each.
        kernels: what an engine launches for one image, for budgets of latency.
        said: what the metric reports of itself.
        notes: every automatic choice.
        seconds: by step.
        environment: software and machine.
    """

    model: AnalyzedModel
    data: dict[str, Any]
    preprocess: Preprocess | None
    metric: str
    bits: list[str]
    layers: list[AnalyzedLayer]
    left_out: list[str]
    other_bytes: int
    kernels: list[Kernel]
    said: dict[str, float]
    notes: list[str]
    seconds: dict[str, float]
    environment: Environment

    @property
    def outline(self) -> Outline:
        """The counts, for prices."""
        layers = {layer.name: layer.cost for layer in self.layers}
        return Outline(
            layers=layers,
            left_out=self.left_out,
            other_bytes=self.other_bytes,
            kernels=self.kernels,
        )

    @property
    def summary(self) -> str:
        """One line for a person."""
        narrowest = self.bits[0]
        worst = sorted(self.layers, key=lambda layer: -layer.loss[narrowest])[:3]
        return (
            f"{len(self.layers)} layers by {self.metric} at {', '.join(self.bits)}; most "
            f"sensitive at {narrowest}: {', '.join(layer.name for layer in worst)}"
        )
