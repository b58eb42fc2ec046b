"""Outcome of a search: the chosen try, the constraints, the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtq.artifact import SCHEMA, environment
from trtq.flow.allocate import decide, shown
from trtq.flow.candidate import Candidate
from trtq.flow.pricing import Pricing
from trtq.flow.search_score import floor_of
from trtq.flow.search_tries import Tried
from trtq.flow.search_walk import best_of
from trtq.quant.formats import BitConfig
from trtq.records.search import (
    Constraint,
    Frontier,
    FrontierPoint,
    LossAt,
    Predicted,
    Reference,
    SearchRecord,
    Try,
    score_words,
    unit_of,
)
from trtq.search.budgets import LATENCY, over
from trtq.search.frontier import dominated
from trtq.specs import AllocateOptions, SearchOptions


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that was measured, and the goals.

    Attributes:
        asked: the options of the search.
        candidates: by number.
        tried: what was measured.
        reference: what the others are compared with.
        images: how many samples accuracy was measured on.
        budgets: absolute limits.
        minimize: the cost to minimize; None for none.
        full: costs of the float model.
        widths: available.
        devices, factors: for latencies.
        notes: for the user.
    """

    asked: SearchOptions
    candidates: Mapping[int, Candidate]
    tried: list[Tried]
    reference: Reference
    images: int
    budgets: Mapping[str, float]
    minimize: str | None
    full: Mapping[str, float]
    widths: Sequence[BitConfig]
    devices: list[str]
    factors: Mapping[str, float]
    notes: list[str]

    @property
    def tries(self) -> list[Try]:
        """The figures of every try."""
        return [t.judged for t in self.tried]

    @property
    def best(self) -> Tried:
        """The best try that meets every constraint, else the most accurate within the budgets."""
        return best_of(self.tried, self.minimize if self.asked.keeps_score else None)

    @property
    def candidate(self) -> Candidate:
        """The candidate of the best try."""
        return self.candidates[self.best.judged.candidate]

    def record(self, seconds: float) -> SearchRecord:
        """Return the record.

        Args:
            seconds: that the search took.
        """
        chosen = self.best
        constraints = self._constraints(chosen.judged, self.candidate)
        first = self.candidates[min(self.candidates)]
        return SearchRecord(
            schema=SCHEMA,
            verb="search",
            spec={"model": first.name, "data": first.data.name, **self.asked.without()},
            images=self.images,
            reference=self.reference,
            constraints=constraints,
            met=all(c.met for c in constraints),
            tries=self.tries,
            chosen=chosen.judged.label,
            qdq_sha256=chosen.scored.onnx_sha256,
            notes=self.notes,
            seconds=seconds,
            environment=environment(),
        )

    @property
    def axes(self) -> list[str]:
        """The costs that the frontier is drawn over."""
        goals = (*self.budgets, self.minimize)
        more = (b for b in self.tries[0].costs if b.startswith(LATENCY) or b in goals)
        return list(dict.fromkeys(["size", "energy", *more]))

    def frontier(self) -> Frontier:
        """Return what was measured, and the predicted frontier of the chosen model."""
        axes, tries, chosen = self.axes, self.tries, self.best
        costs = [{a: t.costs[a] / self._unit(a)[0] for a in axes} for t in tries]
        flags = {
            a: dominated([(c[a], t.change) for c, t in zip(costs, tries, strict=True)])
            for a in axes
        }
        points = [
            FrontierPoint(
                label=t.label,
                model=t.model,
                accuracy=t.accuracy,
                change=t.change,
                widths=t.widths,
                methods=t.methods,
                costs=costs[i],
                dominated={a: flags[a][i] for a in axes},
            )
            for i, t in enumerate(tries)
        ]
        return Frontier(
            measure=self.reference.measure,
            unit=unit_of(self.reference),
            units={a: self._unit(a)[1] for a in axes},
            limits={a: self.budgets[a] / self._unit(a)[0] for a in axes if a in self.budgets},
            chosen=chosen.judged.label,
            points=points,
            predicted=self._predicted(chosen, self.candidate),
        )

    def _unit(self, budget: str) -> tuple[float, str]:
        """Return what a cost is divided by for a person, and the unit it then has."""
        if budget == "size":
            return 1e6, "MB of parameters, predicted"
        return (
            (1.0, "ms, predicted")
            if budget.startswith(LATENCY)
            else (self.full[budget], "of the float model, predicted")
        )

    def _predicted(self, chosen: Tried, candidate: Candidate) -> Predicted:
        """Return the chosen model's allocations that the metric cannot better at their size.

        The chosen allocation is returned, too.
        """
        analysis = candidate.analysed
        pricing = Pricing(analysis.outline, self.devices, self.factors)
        allocate_options = AllocateOptions(strategy="pareto", bits=self.asked.bits)
        widest = {"size": pricing.span(self.widths)[1]["size"]}
        front = decide(allocate_options, analysis, pricing, widest).front
        losses = {v.name: v.loss for v in analysis.layers}
        loss = sum(losses[v.name].get(v.option, 0.0) for v in chosen.allocated.layers)
        return Predicted(
            axis="size",
            metric=analysis.metric,
            at=LossAt(chosen.judged.costs["size"] / 1e6, loss),
            front=[LossAt(p.cost / 1e6, p.loss) for p in front],
        )

    def _constraints(self, chosen: Try, candidate: Candidate) -> list[Constraint]:
        constraints = [
            Constraint(
                name=b,
                allowed=f"{shown(b, limit)} ({limit / self.full[b]:.4f} of float)",
                got=f"{shown(b, chosen.costs[b])} ({chosen.costs[b] / self.full[b]:.4f} of "
                "float, predicted)",
                met=not over(chosen.costs, {b: limit}),
                needed=candidate.needed.get(b),
            )
            for b, limit in self.budgets.items()
        ]
        floor = floor_of(self.asked)
        if floor is not None:
            words = score_words(self.reference, chosen.accuracy, chosen.change)
            more = "; ".join(f"{b} {v}" for b, v in candidate.needed.items()) or None
            constraints.append(
                Constraint(
                    name=floor.called,
                    allowed=floor.words(unit_of(self.reference)),
                    got=f"{words}, ONNX Runtime on CPU",
                    met=chosen.accurate,
                    needed=None if chosen.accurate else more,
                )
            )
        return constraints
