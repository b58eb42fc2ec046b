"""The walk on one candidate's line of budgets, and the best of what walks measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trtq.artifact import SCHEMA, environment
from trtq.flow.allocate import decide, shown
from trtq.flow.candidate import Candidate
from trtq.flow.pricing import Pricing, uniform
from trtq.quant.formats import BitConfig
from trtq.records.allocate import AllocatedLayer, AllocateRecord
from trtq.records.analyze import AnalyzeRecord
from trtq.records.search import Try
from trtq.search.budgets import AS_ASKED, NONE, budgets_at
from trtq.specs import AllocateOptions, SearchOptions

if TYPE_CHECKING:
    from trtq.flow.search_tries import Tried

WIDE = BitConfig(weight=8, input=8)


class Measure(Protocol):
    """Measures an allocation of a candidate."""

    def __call__(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool, label: str
    ) -> Try:
        """Return the try."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """Limits of a walk.

    Attributes:
        asked: the options of the search.
        widths: available, narrowest first.
        budgets: absolute limits.
        minimize: the cost to minimize; None for none.
        measure: measures an allocation.
    """

    asked: SearchOptions
    widths: Sequence[BitConfig]
    budgets: Mapping[str, float]
    minimize: str | None
    measure: Measure


class Walk:
    """Points on one candidate's line of budgets.

    A point with the widths of an earlier one costs nothing.

    Args:
        goals: what it keeps to.
        candidate: the model.
        analysis: of the model.
        pricing: of the model.
    """

    def __init__(
        self, goals: Goals, candidate: Candidate, analysis: AnalyzeRecord, pricing: Pricing
    ) -> None:
        self.goals = goals
        self.candidate = candidate
        self.analysis = analysis
        self.pricing = pricing
        self.least, self.most = pricing.span(goals.widths)
        self.left = goals.asked.rounds
        self.seen = dict[tuple[Any, ...], Try]()

    def at(self, t: float, *, methods: bool) -> Try:
        """Return the file at point ``t`` of the line, measured.

        Args:
            t: 1 has the budgets as asked, 2 has none; between them they are loosened.
            methods: whether the family's quantization methods are applied.

        Raises:
            UsageError: a budget cannot be met.
        """
        label = _label(t) if self.goals.budgets else "widest"
        return self._measured(
            budgets_at(t, self.goals.budgets, self.least, self.most), methods=methods, label=label
        )

    def shrunk(self, t: float, first: Try, *, methods: bool) -> Try:
        """Return the file within the budgets whose cost to minimize is at most a limit.

        The limit is at the share ``t`` of the way up to that cost of ``first``.

        Args:
            t: 0 to 1.
            first: a try within the budgets.
            methods: whether the family's quantization methods are applied.
        """
        name = str(self.goals.minimize)
        limit = self.least[name] + t * (first.costs[name] - self.least[name])
        return self._measured(
            {**self.goals.budgets, name: limit},
            methods=methods,
            label=f"{name} at {shown(name, limit)}",
        )

    def _measured(self, budgets: Mapping[str, float], *, methods: bool, label: str) -> Try:
        search = self.goals.asked
        allocate_options = AllocateOptions(
            strategy=search.strategy, bits=search.bits, target=search.target
        )
        allocated = decide(allocate_options, self.analysis, self.pricing, budgets)
        self.left -= 1
        return self._once(
            allocated, methods=methods, label=f"{label}, methods" if methods else label
        )

    def baseline(self) -> Try:
        """Return the file with 8 bits everywhere, the baseline of the searched ones."""
        layers = self.analysis.layers
        allocated = AllocateRecord(
            schema=SCHEMA,
            verb="allocate",
            spec={},
            model=self.analysis.model,
            metric=self.analysis.metric,
            budgets={},
            costs=self.pricing.totals(uniform(self.analysis.outline, WIDE)),
            full=self.pricing.full(),
            loss=sum(v.loss[WIDE.label] for v in layers),
            layers=[
                AllocatedLayer(
                    name=v.name, option=WIDE.label, loss=v.loss[WIDE.label], group=v.group
                )
                for v in layers
            ],
            front=[],
            environment=environment(),
        )
        return self._once(allocated, methods=False, label="uniform w8a8")

    def _once(self, allocated: AllocateRecord, *, methods: bool, label: str) -> Try:
        key = (tuple(v.option for v in allocated.layers), methods)
        if key not in self.seen:
            self.seen[key] = self.goals.measure(
                self.candidate, allocated, methods=methods, label=label
            )
        return self.seen[key]


def _label(t: float) -> str:
    return (
        "at the budgets"
        if t == AS_ASKED
        else "without budgets"
        if t == NONE
        else f"loosened {t:.3f}"
    )


def best_of(tried: Sequence[Tried], minimize: str | None) -> Tried:
    """Return the best try that meets every constraint.

    If there is none, return the most accurate one within the budgets.

    Args:
        tried: what was measured, not empty.
        minimize: the cost to minimize; None for the accuracy.
    """
    good = [t for t in tried if t.judged.within and t.judged.accurate]
    if good and minimize is not None:
        return min(good, key=lambda t: (t.judged.costs[minimize], -t.judged.change))
    inside = good or [t for t in tried if t.judged.within] or list(tried)
    return max(
        inside,
        key=lambda t: (t.judged.change, t.judged.agreement or 0.0, -t.judged.costs["size"]),
    )


def widths_of(allocated: AllocateRecord) -> dict[str, int]:
    """Return how many layers have each width, the narrowest first."""
    counts: dict[str, int] = {}
    for layer in allocated.layers:
        counts[layer.option] = counts.get(layer.option, 0) + 1
    return dict(sorted(counts.items(), key=lambda c: BitConfig.parse(c[0])))
