"""The result of ``trtq allocate``."""

from __future__ import annotations

import msgspec

from trtq.artifact import Environment, Record
from trtq.quant.formats import BitConfig
from trtq.records.analyze import AnalyzedModel


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """The next width of a group, and what taking it would change.

    Attributes:
        option: the width.
        loss: added to the group's loss; below 0 is a gain.
        costs: added, by budget name.
    """

    option: str
    loss: float
    costs: dict[str, float]


class AllocatedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's width, and why.

    Attributes:
        name: of the layer.
        option: such as ``w4a8`` or ``fp16``.
        loss: what the metric says this width costs.
        group: the layers it shares its width with, itself included.
        narrower, wider: the next candidate widths of the group: why it has this one.
    """

    name: str
    option: str
    loss: float
    group: list[str]
    narrower: Alternative | None = None
    wider: Alternative | None = None


class FrontPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One Pareto-optimal allocation.

    Attributes:
        cost: in the unit of the budget.
        loss: sum over the groups.
        options: label of the width by layer.
    """

    cost: float
    loss: float
    options: dict[str, str]


class AllocateRecord(Record, frozen=True, kw_only=True):
    """The widths that ``trtq allocate`` chose.

    Attributes:
        model: name and weights of the analysed model.
        metric: of the losses.
        budgets: absolute limits.
        costs: of the allocation, predicted by counting.
        full: of the float model.
        layers: in graph order.
        front: with --strategy pareto, every allocation that no other dominates, at most 200 of
            them, evenly drawn.
        loss: sum of the layers'.
    """

    model: AnalyzedModel
    metric: str
    budgets: dict[str, float]
    costs: dict[str, float]
    full: dict[str, float]
    loss: float
    layers: list[AllocatedLayer]
    front: list[FrontPoint]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            counts[layer.option] = counts.get(layer.option, 0) + 1
        widths = ", ".join(
            f"{n} at {o}" for o, n in sorted(counts.items(), key=lambda c: BitConfig.parse(c[0]))
        )
        costs = ", ".join(
            f"{b} {v / self.full[b]:.3f}" for b, v in self.costs.items() if self.full[b]
        )
        return f"{len(self.layers)} layers: {widths}; predicted, of the float model: {costs}"
