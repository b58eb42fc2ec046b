"""What a search comes to: the chosen try, the constraints, the frontier."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import environment, header, read_record, sha256_file, write_bytes, write_json
from trtq.commands.allocate import decide, shown
from trtq.commands.candidate import Candidate
from trtq.commands.pricing import Pricing
from trtq.files import (
    ALLOCATION_JSON,
    ANALYSIS_JSON,
    EVALUATE_JSON,
    FRONTIER_JSON,
    MODEL_FILES,
    QDQ,
    QUANTIZE_JSON,
)
from trtq.quant.formats import BitConfig
from trtq.records.allocate import AllocateRecord
from trtq.records.search import (
    Constraint,
    Frontier,
    FrontierPoint,
    Predicted,
    Reference,
    SearchRecord,
    Try,
)
from trtq.search.budgets import LATENCY, over
from trtq.search.frontier import dominated
from trtq.specs import AllocateSpec, SearchSpec

RESULT = (*MODEL_FILES, QUANTIZE_JSON, ALLOCATION_JSON, EVALUATE_JSON)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that was measured, and the goals.

    Attributes:
        spec: of the search.
        out: its folder.
        candidates: by number.
        tries: what was measured.
        reference: what the others are compared with.
        images: how many images accuracy was measured on.
        budgets: absolute limits.
        minimize: the cost to minimize; None for none.
        full: costs of the float model.
        options: widths on offer.
        devices, factors: for latencies.
        notes: for the user.
    """

    spec: SearchSpec
    out: Path
    candidates: Mapping[int, Candidate]
    tries: list[Try]
    reference: dict[str, Any]
    images: int
    budgets: Mapping[str, float]
    minimize: str | None
    full: Mapping[str, float]
    options: Sequence[BitConfig]
    devices: list[str]
    factors: Mapping[str, float]
    notes: list[str]

    def settle(self, seconds: float) -> SearchRecord:
        """Choose, and copy the chosen files to the folder; every try stays below ``tries``."""
        chosen = self._best()
        candidate = self.candidates[chosen.candidate]
        for name in RESULT:
            shutil.copyfile(self.out / chosen.folder / name, self.out / f".{name}.new")
            (self.out / f".{name}.new").replace(self.out / name)
        if candidate.folder != self.out:
            shutil.copyfile(candidate.folder / ANALYSIS_JSON, self.out / ANALYSIS_JSON)
        self._write_frontier(chosen, candidate)
        constraints = self._constraints(chosen, candidate)
        return SearchRecord(
            **header("search", self.spec),
            images=self.images,
            reference=msgspec.convert(self.reference, Reference),
            constraints=constraints,
            met=all(c.met for c in constraints),
            tries=self.tries,
            chosen=chosen.label,
            qdq_sha256=sha256_file(self.out / QDQ),
            notes=self.notes,
            seconds=seconds,
            environment=environment(),
        )

    def _write_frontier(self, chosen: Try, candidate: Candidate) -> None:
        """Write frontier.json and one picture for each cost.

        They show what was measured, and the predicted frontier of the chosen model.
        """
        from trtq.report.figures import frontier_figure

        axes = [
            "size",
            "energy",
            *(
                b
                for b in self.tries[0].costs
                if b.startswith(LATENCY) or b in (*self.budgets, self.minimize)
            ),
        ]
        axes = list(dict.fromkeys(axes))
        costs = [{a: t.costs[a] / self._unit(a)[0] for a in axes} for t in self.tries]
        flags = {
            a: dominated([(c[a], t.accuracy) for c, t in zip(costs, self.tries, strict=True)])
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
            for i, t in enumerate(self.tries)
        ]
        frontier = Frontier(
            measure=self.reference["measure"],
            units={a: self._unit(a)[1] for a in axes},
            limits={a: self.budgets[a] / self._unit(a)[0] for a in axes if a in self.budgets},
            chosen=chosen.label,
            points=points,
            predicted=self._predicted(chosen, candidate),
        )
        write_json(self.out / FRONTIER_JSON, frontier)
        for a in axes:
            figure = frontier_figure(
                points,
                a,
                measure=frontier.measure,
                chosen=frontier.chosen,
                limit=frontier.limits.get(a),
                unit=frontier.units[a],
            )
            write_bytes(self.out / f"frontier.{a.replace('@', '-')}.svg", figure.encode())

    def _unit(self, budget: str) -> tuple[float, str]:
        """Return what a cost is divided by for a person, and the unit it then has."""
        if budget == "size":
            return 1e6, "MB of parameters, predicted"
        return (
            (1.0, "ms, predicted")
            if budget.startswith(LATENCY)
            else (self.full[budget], "of the float model, predicted")
        )

    def _predicted(self, chosen: Try, candidate: Candidate) -> Predicted:
        """Return the chosen model's allocations that the metric cannot better at their size.

        The chosen allocation is returned, too.
        """
        analysis = candidate.analysed
        pricing = Pricing(analysis.outline, self.devices, self.factors)
        asked = AllocateSpec(analysis=ANALYSIS_JSON, out="", strategy="pareto", bits=self.spec.bits)
        front = decide(
            asked, analysis, pricing, {"size": pricing.span(self.options)[1]["size"]}
        ).front
        losses = {v.name: v.loss for v in analysis.layers}
        taken = read_record(self.out / ALLOCATION_JSON, AllocateRecord).layers
        at = {
            "cost": chosen.costs["size"] / 1e6,
            "loss": sum(losses[v.name].get(v.option, 0.0) for v in taken),
        }
        return Predicted(
            axis="size",
            metric=analysis.metric,
            at=at,
            front=[{"cost": p.cost / 1e6, "loss": p.loss} for p in front],
        )

    def _best(self) -> Try:
        """Return the best try that meets every constraint.

        If there is none, return the most accurate one within the budgets.
        """
        good = [t for t in self.tries if t.within and t.accurate]
        if good and self.minimize and self.spec.min_accuracy is not None:
            return min(good, key=lambda t: (t.costs[str(self.minimize)], -t.accuracy))
        inside = good or [t for t in self.tries if t.within] or self.tries
        return max(inside, key=lambda t: (t.accuracy, t.agreement, -t.costs["size"]))

    def _constraints(self, chosen: Try, candidate: Candidate) -> list[Constraint]:
        found = [
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
        floor = self.spec.min_accuracy
        if floor is not None:
            allowed = f"{floor:g} points" if floor <= 0 else f"{floor:g} %"
            more = "; ".join(f"{b} {v}" for b, v in candidate.needed.items()) or None
            found.append(
                Constraint(
                    name="accuracy",
                    allowed=allowed,
                    got=f"{self.reference['measure']} {chosen.accuracy:.2f} % "
                    f"({chosen.change:+.2f} points), ONNX Runtime on CPU",
                    met=chosen.accurate,
                    needed=None if chosen.accurate else more,
                )
            )
        return found
