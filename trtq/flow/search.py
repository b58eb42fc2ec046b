"""Search the widths of one model, or of several: analyze, allocate, quantize, evaluate.

Tightens or loosens until every constraint holds, or says which cannot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from trtq.artifact import ensure_writable_dir, write_json
from trtq.cost.profile import read_factors
from trtq.data.answers import percent_words
from trtq.errors import UsageError
from trtq.files import ANALYSIS_JSON
from trtq.flow.allocate import shown
from trtq.flow.analyze import analyze_model, draw_analysis
from trtq.flow.candidate import Candidate
from trtq.flow.classes import require_same_classes
from trtq.flow.model import placed, require_float
from trtq.flow.pricing import Pricing, require_on_devices
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.search_checks import check_search, require_labels, require_left
from trtq.flow.search_outcome import Outcome
from trtq.flow.search_score import floor_of, judged_by, require_comparable, require_score
from trtq.flow.search_tries import Tried, Tries
from trtq.flow.search_walk import WIDE, Goals, Walk, best_of, widths_of
from trtq.flow.task import bind_task
from trtq.quant.formats import read_options
from trtq.records.allocate import AllocateRecord
from trtq.records.analyze import AnalyzeRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.records.search import Reference, SearchRecord, Try, score_words
from trtq.search.budgets import (
    AS_ASKED,
    NONE,
    latency_devices,
    over,
    read_budgets,
    smallest,
    times,
    within,
)
from trtq.specs import AnalyzeOptions, SearchOptions
from trtq.tasks import Figure, Task

NARROWER = "Allow more, or offer narrower widths with --bits"


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The result of a search.

    Attributes:
        record: every constraint and every try.
        outcome: the tries with their allocations, and the goals.
        tries: what measured them.
    """

    record: SearchRecord
    outcome: Outcome
    tries: Tries

    @cached_property
    def best(self) -> Quantized:
        """The chosen model; one that an earlier run measured is quantized again."""
        chosen = self.outcome.best
        if chosen.quantized is not None:
            return chosen.quantized
        candidate = self.outcome.candidate
        return self.tries.quantize(candidate, chosen.allocated, methods=chosen.helped)

    @property
    def analysis(self) -> AnalyzeRecord:
        """The sensitivity of the chosen model's layers."""
        return self.outcome.candidate.analysed

    @property
    def allocation(self) -> AllocateRecord:
        """The width of each layer of the chosen model."""
        return self.outcome.best.allocated

    @property
    def summary(self) -> str:
        """One line for a person."""
        return self.record.summary


def search_models(
    candidates: Sequence[Candidate],
    options: SearchOptions,
    run: Run | None = None,
    *,
    folder: Path | None = None,
    task: Task | None = None,
    reference: Reference | None = None,
) -> Searched:
    """Find the widths that meet every constraint, and measure them.

    Args:
        candidates: the models, each captured once, with their samples; the first is the reference
            unless one is given.
        options: the goals and how to search.
        run: the listener, the notes and the clock.
        folder: of the results, which the candidates' folders are below; None keeps no files.
        task: what the outputs mean; default: that of the options, else what is known of the model.
        reference: the float model that shares and accuracy refer to, of another search.

    Raises:
        UsageError: constraints that contradict each other, or a budget that no width can meet.
        TrtqError: a stage failed.
    """
    started = time.monotonic()
    search = _Search(candidates, options, run or Run(), folder, task, reference)
    search.require_possible()
    for candidate in search.candidates:
        search.walk(candidate)
    outcome = search.outcome()
    record = outcome.record(round(time.monotonic() - started, 3))
    return Searched(record=record, outcome=outcome, tries=search.tries)


def measure_reference(
    candidate: Candidate, options: SearchOptions, run: Run | None = None
) -> Reference:
    """Return a float model's accuracy and costs, for searches of other models.

    Args:
        candidate: the model, captured, with its samples.
        options: the goals of those searches: they say what accuracy is and which costs count.
        run: the listener and the notes.

    Raises:
        TrtqError: its accuracy cannot be measured.
    """
    return _Search([candidate], options, run or Run(), None, None, None).measure_reference(
        candidate
    )


class _Search:
    """One search: goals, candidates and everything that was measured."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        options: SearchOptions,
        run: Run,
        folder: Path | None,
        task: Task | None,
        reference: Reference | None,
    ) -> None:
        self.options, self.run, self.note, self.folder = options, run, run.note, folder
        self.tried = list[Tried]()
        self.reference = reference
        self.images = 0
        self.widths, self.factors = read_options(options.bits), read_factors(options.correct)
        check_search(options, self.widths)
        self.floor = floor_of(options)
        if self.floor is None:
            self.note("no --min-accuracy: accuracy is measured, and any would do")
        self.candidates = list(candidates)
        self._require_samples(task)
        self.note(*(line for c in self.candidates for line in c.notes))
        self.devices = latency_devices([*options.budget, options.minimize or ""])
        require_on_devices(self.widths, self.devices)
        lowered = options.minimize.lower() if options.minimize else None
        self.minimize = lowered or (None if options.budget else "size")
        self.full = self._full()
        self.budgets = read_budgets(options.budget, self.full)
        self.tries = Tries(options=options, progress=run.progress)
        if self.floor is not None and self.floor.name is not None:
            for candidate in self.candidates:
                require_score(self.floor, self.tries.float_on_one(candidate))

    def _full(self) -> dict[str, float]:
        """Return what the reference costs.

        Raises:
            UsageError: it is another search's, which did not count all that this one does.
        """
        own = Pricing(self.candidates[0].outline, self.devices, self.factors).full()
        if self.reference is None:
            return own
        missing = [n for n in own if n not in self.reference.costs]
        if missing:
            raise UsageError(
                f"Cannot compare with the reference {self.reference.model}",
                f"its search counted no {' and no '.join(missing)}",
                "Give that search the same --budget names",
            )
        return self.reference.costs

    def _require_samples(self, task: Task | None) -> None:
        """Refuse samples and models that do not fit each other or the goals."""
        first = self.candidates[0]
        require_same_classes(first.data, first.val)
        require_labels(
            first.scored,
            self.options,
            several=len(self.candidates) > 1 or self.reference is not None,
        )
        if first.val is None:
            require_left(first.data, self.options)
        for candidate in self.candidates:
            model = candidate.model
            require_float(model.module, model.name, "Give the float file that it was made from")
            judged = model.judged_by(candidate.scored)
            candidate.model = placed(judged, self.options.device, self.run)
            task_or_name = task or self.options.task
            candidate.task = bind_task(task_or_name, candidate.model, candidate.scored, self.run)
            require_comparable(candidate)

    def require_possible(self) -> None:
        """Drop candidates that no width brings within the budgets; raise when none is left."""
        left, reason = [], ""
        for candidate in self.candidates:
            pricing = Pricing(candidate.outline, self.devices, self.factors)
            least, _ = pricing.span(self.widths)
            broken = over(least, self.budgets)
            if not broken:
                left.append(candidate)
                continue
            first = broken[0]
            reason = (
                f"{candidate.name} needs {shown(first, least[first])} at its narrowest widths, "
                f"{shown(first, self.budgets[first])} is allowed: "
                f"{times(least[first], self.budgets[first])} times as much"
            )
            if len(self.candidates) == 1:
                raise UsageError(f"The budget {first} cannot be met", reason, NARROWER)
            self.note(f"left out: {reason}")
            if candidate.number == 0 and self.reference is None:
                self.measure_reference(candidate)
        if not left:
            raise UsageError("No candidate can meet the budgets", reason, NARROWER)
        self.candidates = left

    def measure_reference(self, candidate: Candidate) -> Reference:
        """Measure the float accuracy of a reference that is not walked itself.

        The others are compared with it.
        """
        scored = self.tries.float_accuracy(candidate)
        own = judged_by(candidate, scored, self._named).own
        assert own.value is not None
        return self._refer(candidate, own, own.value)

    @property
    def _named(self) -> str | None:
        return None if self.floor is None else self.floor.name

    def _refer(self, candidate: Candidate, own: Figure, value: float) -> Reference:
        """Return the reference; the first model that is measured sets it."""
        if self.reference is None:
            self.reference = Reference(
                model=candidate.name,
                accuracy=value,
                measure=own.name,
                costs=self.full,
                unit=msgspec.UNSET if own.unit == "%" else own.unit,
            )
        return self.reference

    def walk(self, candidate: Candidate) -> None:
        """Walk the line of budgets of one model."""
        options, walk = self.options, self._walk(candidate)
        if WIDE in self.widths:
            walk.baseline()
        helped = options.methods == "always"
        first = walk.at(AS_ASKED, methods=helped)
        if not first.accurate and options.methods == "auto" and walk.left > 0:
            self.note(
                f"accuracy does not hold at the budgets ({first.change:+.2f} points): trying "
                "the family's quantization methods"
            )
            first, helped = walk.at(AS_ASKED, methods=True), True
        if first.accurate and self.minimize and self.floor is not None:
            smallest(lambda t: walk.shrunk(t, first, methods=helped).accurate, 0.0, 1.0, walk.left)
        elif not first.accurate and self.budgets:
            self._loosen(walk, candidate, helped=helped)

    def _loosen(self, walk: Walk, candidate: Candidate, *, helped: bool) -> None:
        """Find how far the budgets must be relaxed for accuracy to hold."""
        if walk.left <= 0:
            self.note(
                f"{candidate.name}: --rounds {self.options.rounds} were too few to find what "
                "accuracy would need"
            )
            return
        got = walk.at(NONE, methods=helped)
        if not got.accurate:
            self.note(
                f"{candidate.name}: accuracy does not hold even without budgets at "
                f"{', '.join(o.label for o in self.widths)}"
            )
            return
        if walk.left > 0:
            got = walk.at(
                smallest(lambda t: walk.at(t, methods=helped).accurate, AS_ASKED, NONE, walk.left),
                methods=helped,
            )
        for b in over(got.costs, self.budgets):
            v = got.costs[b]
            candidate.needed[b] = (
                f"{shown(b, v)}, {v / self.budgets[b]:.2f} times the budget, for "
                f"{got.change:+.2f} points"
            )
        self.note(
            f"{candidate.name}: accuracy holds with "
            + "; ".join(f"{b} {v}" for b, v in candidate.needed.items())
        )

    def _walk(self, candidate: Candidate) -> Walk:
        run, search_options = Run(self.run.progress), self.options
        bits = tuple(o.label for o in self.widths)
        run.note.lines += candidate.model.notes
        analysis = analyze_model(
            candidate.model,
            candidate.data,
            AnalyzeOptions.of(search_options, bits=bits),
            run,
            task=candidate.task,
        )
        candidate.analysis = analysis
        if candidate.folder is not None:
            path = ensure_writable_dir(candidate.folder) / ANALYSIS_JSON
            write_json(path, analysis)
            draw_analysis(analysis, path)
        goals = Goals(
            asked=search_options,
            widths=self.widths,
            budgets=self.budgets,
            minimize=self.minimize,
            measure=self.measure,
        )
        return Walk(
            goals, candidate, analysis, Pricing(analysis.outline, self.devices, self.factors)
        )

    def measure(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool, label: str
    ) -> Try:
        """Quantize and evaluate one allocation, or reuse what an earlier run measured."""
        tried = self.tries.measure(candidate, allocated, methods=methods, label=label)
        tried.figures = self._judge(candidate, tried, f"{candidate.label} {label}".strip())
        tried.helped = methods
        self.tried.append(tried)
        best = best_of(self.tried, self._minimized)
        for other in self.tried:
            if other is not best:
                other.quantized = None  # one model in memory is enough
        return tried.figures

    @property
    def _minimized(self) -> str | None:
        return None if self.floor is None else self.minimize

    def _judge(self, candidate: Candidate, tried: Tried, label: str) -> Try:
        """Return the figures of a try against the goals."""
        scored, costs = tried.scored, tried.allocated.costs
        self.images = scored.images
        own, theirs = judged_by(candidate, scored, self._named)
        assert own.value is not None
        reference = self._refer(candidate, own, theirs)
        agreement, change = _agreement(scored), own.gain(reference.accuracy)
        holds = self.floor is None or self.floor.holds(own, reference.accuracy)
        figures = Try(
            label=label,
            model=candidate.name,
            candidate=candidate.number,
            folder=_below(tried.folder, self.folder),
            widths=widths_of(tried.allocated),
            methods=tried.methods,
            costs=dict(costs),
            accuracy=own.value,
            change=round(change, 4),
            agreement=agreement,
            sqnr_db=scored.sqnr_db,
            within=within(costs, self.budgets),
            accurate=holds,
            onnx_bytes=tried.onnx_bytes,
        )
        self.run.tell(
            f"{label}: {score_words(reference, own.value, change)}, "
            f"{'' if agreement is None else f'agreement {percent_words(agreement, 2)}, '}"
            f"{'within' if figures.within else 'over'} the budgets"
        )
        return figures

    def outcome(self) -> Outcome:
        """Return everything that was measured, and the goals."""
        assert self.reference is not None
        return Outcome(
            asked=self.options,
            candidates={c.number: c for c in self.candidates},
            tried=self.tried,
            reference=self.reference,
            images=self.images,
            budgets=self.budgets,
            minimize=self.minimize,
            full=self.full,
            widths=self.widths,
            devices=self.devices,
            factors=self.factors,
            notes=self.note.lines,
        )


def _agreement(scored: EvaluateRecord) -> float | None:
    """Return how alike the answers of a model and its float model are, percent."""
    alike = next(iter(scored.agreement_figures or ()), None)
    return scored.agreement if alike is None else alike.value


def _below(folder: Path | None, out: Path | None) -> str:
    return "" if folder is None or out is None else str(folder.relative_to(out))
