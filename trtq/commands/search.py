"""``trtq search``: analyze, allocate, quantize, evaluate.

Tightens or loosens until every constraint holds, or says which cannot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trtq.artifact import (
    digest_of,
    ensure_writable_dir,
    locked,
    read_record,
    write_json,
)
from trtq.commands.allocate import shown
from trtq.commands.analyze import analyze
from trtq.commands.candidate import Candidate
from trtq.commands.pricing import Pricing, require_fp8
from trtq.commands.search_checks import check_search
from trtq.commands.search_outcome import Outcome
from trtq.commands.search_tries import Tries
from trtq.commands.search_walk import WIDE, Goals, Walk, widths_of
from trtq.cost.profile import read_factors
from trtq.data.answers import HAVE_PREDICTIONS, percent_words
from trtq.data.classes import require_one_class_list
from trtq.data.source import open_source
from trtq.errors import UsageError
from trtq.files import (
    ANALYSIS_JSON,
    EVALUATE_JSON,
    LOCK,
    QDQ,
    QUANTIZE_JSON,
    REPORT_HTML,
    SEARCH_JSON,
)
from trtq.paths import expand_home
from trtq.progress import Notes, Progress, Silent
from trtq.quant.formats import read_options
from trtq.records.allocate import AllocateRecord
from trtq.records.analyze import AnalyzeRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.records.quantize import QuantizeRecord
from trtq.records.search import SearchRecord, Try
from trtq.search.budgets import (
    latency_devices,
    over,
    read_budgets,
    within,
)
from trtq.search.loop import AS_ASKED, NONE, smallest
from trtq.specs import AnalyzeSpec, SearchSpec

NO_SCORES = "its output is not known to be scores of classes"


def search(spec: SearchSpec, progress: Progress | None = None) -> SearchRecord:
    """Search the widths of one model, or models and widths.

    Writes the chosen model with all records to ``spec.out``. An interrupted search continues:
    analyses are resumed, and files that were measured are not measured again.

    Raises:
        UsageError: constraints that contradict each other, or a budget that no width can meet.
        TrtqError: a stage failed.
    """
    told, started = progress or Silent(), time.monotonic()
    job = _Job(spec, told)
    with locked(ensure_writable_dir(job.out) / LOCK, waiting=told.note):
        job.require_possible()
        for candidate in job.candidates:
            job.search(candidate)
        record = job.outcome().settle(round(time.monotonic() - started, 3))
        write_json(job.out / SEARCH_JSON, record)
        from trtq.report.page import write_page

        write_page(job.out, job.out / REPORT_HTML, title=f"Search: {record.tries[0].model}")
    return record


class _Job:
    """One search: goals, candidates and everything that was measured."""

    def __init__(self, spec: SearchSpec, told: Progress) -> None:
        self.spec, self.told, self.out = spec, told, Path(spec.out)
        self.tries, self.note, self.images = list[Try](), Notes(told.note), 0
        self.reference: dict[str, Any] = {}
        self.options, self.factors = read_options(spec.bits), read_factors(spec.correct)
        check_search(spec, self.options)
        if spec.min_accuracy is None:
            self.note("no --min-accuracy: accuracy is measured, and any would do")
        self.val = open_source(*self._val(), self.note)
        self.data = open_source(spec.data, spec.class_index) if spec.val else self.val
        require_one_class_list(self.data, self.val)
        self._require_labels()
        self.candidates = list(self._candidates())
        for candidate in self.candidates:
            if candidate.model.answer_kind(len(self.val.classes)) not in HAVE_PREDICTIONS:
                raise UsageError(
                    f"Cannot measure the accuracy of {candidate.name}",
                    NO_SCORES,
                    "Search a classifier; for other outputs use trtq analyze --metric l2 and "
                    "trtq allocate",
                )
        self.note.lines += [line for c in self.candidates for line in c.notes]
        require_fp8(self.options, self.devices())
        self.minimize = spec.minimize.lower() if spec.minimize else None if spec.budget else "size"
        self.full = Pricing(self.candidates[0].outline, self.devices(), self.factors).full()
        self.budgets = read_budgets(spec.budget, self.full)
        self.files = Tries(
            spec=spec,
            data=self.data,
            val=self.val,
            images_sha256=self._images(),
            told=told,
        )

    def _images(self) -> list[str]:
        """Return digests of the images for calibration and of those for accuracy, with labels.

        Raises:
            UsageError: calibration leaves none to measure accuracy on.
        """
        spec, val = self.spec, self.val
        if not spec.val and len(val) <= spec.calib_images:
            raise UsageError(
                f"No image of {val.name} is left to measure accuracy on",
                f"it has {len(val)} images, and calibration takes "
                f"{min(len(val), spec.calib_images)}",
                "Give others with --val, or fewer --calib-images",
            )
        data = self.data
        return [
            data.digest(data.sample(max(spec.calib_images, spec.images), spec.seed)),
            val.digest(range(len(val))),
            digest_of([val.labels, data.labels]),
        ]

    def _require_labels(self) -> None:
        where, labelled = self.val.name, self.val.labels is not None
        if not labelled and self.spec.min_accuracy is not None and self.spec.min_accuracy > 0:
            raise UsageError(
                f"Cannot hold an accuracy of {self.spec.min_accuracy:g} %",
                f"{where} has no labels",
                "Give points against the float model, such as --min-accuracy -1.0: without "
                "labels that is agreement",
            )
        if not labelled and self.spec.candidates:
            raise UsageError(
                "Cannot compare --candidates",
                f"{where} has no labels: each would agree with its own float model",
                "Give labelled images with --val",
            )

    def _val(self) -> tuple[str, str | None]:
        spec = self.spec
        return (
            (spec.val, spec.val_class_index or spec.class_index)
            if spec.val
            else (spec.data, spec.class_index)
        )

    def devices(self) -> list[str]:
        """Return the devices that budgets of latency name."""
        return latency_devices(
            [*self.spec.budget, *([self.spec.minimize] if self.spec.minimize else [])]
        )

    def _candidates(self) -> Iterator[Candidate]:
        named = [c for text in self.spec.candidates for c in text.split(",") if c]
        if not named:
            yield Candidate(self.spec, 0, self.spec.model, self.spec.checkpoint, self.out, "")
            return
        for i, text in enumerate(named):
            model, _, given = text.partition("=")
            checkpoint = expand_home(given, "--candidates")
            label = (
                f"{i}-{model.rpartition(':')[2]}"  # two checkpoints of one model are two candidates
            )
            self.told.note(f"candidate {model}")
            yield Candidate(
                self.spec, i, model, checkpoint or None, self.out / "candidates" / label, label
            )

    def require_possible(self) -> None:
        """Drop candidates that no width brings within the budgets; raise when none is left."""
        left, why = [], ""
        for candidate in self.candidates:
            least, _ = Pricing(candidate.outline, self.devices(), self.factors).span(self.options)
            broken = over(least, self.budgets)
            if not broken:
                left.append(candidate)
                continue
            first = broken[0]
            why = (
                f"{candidate.name} needs {shown(first, least[first])} at its narrowest widths, "
                f"{shown(first, self.budgets[first])} is allowed: "
                f"{least[first] / self.budgets[first]:.2f} times as much"
            )
            if len(self.candidates) == 1:
                raise UsageError(
                    f"The budget {first} cannot be met",
                    why,
                    "Allow more, or offer narrower widths with --bits",
                )
            self.note(f"left out: {why}")
            if candidate.number == 0:
                self._measure_reference(candidate)
        if not left:
            raise UsageError(
                "No candidate can meet the budgets",
                why,
                "Allow more, or offer narrower widths with --bits",
            )
        self.candidates = left

    def _measure_reference(self, candidate: Candidate) -> None:
        """Measure the float accuracy of a reference that is left out itself.

        The others are compared with it.
        """
        scored = self.files.float_accuracy(candidate)
        if scored.top1 is None:
            raise UsageError(
                f"Cannot measure the accuracy of {candidate.name}",
                NO_SCORES,
                "Give labelled images with --val",
            )
        self.reference = {
            "model": candidate.name,
            "accuracy": scored.top1,
            "measure": "top-1",
            "costs": self.full,
        }

    def search(self, candidate: Candidate) -> None:
        """Walk the line of budgets of one model."""
        spec, walk = self.spec, self._walk(candidate)
        if WIDE in self.options:
            walk.baseline()
        helped = spec.methods == "always"
        first = walk.at(AS_ASKED, methods=helped)
        if not first.accurate and spec.methods == "auto" and walk.left > 0:
            self.note(
                f"accuracy does not hold at the budgets ({first.change:+.2f} points): trying "
                "the family's quantization methods"
            )
            first, helped = walk.at(AS_ASKED, methods=True), True
        if first.accurate and self.minimize and spec.min_accuracy is not None:
            smallest(lambda t: walk.shrunk(t, first, methods=helped).accurate, 0.0, 1.0, walk.left)
        elif not first.accurate and self.budgets:
            self._loosen(walk, candidate, helped=helped)

    def _loosen(self, walk: Walk, candidate: Candidate, *, helped: bool) -> None:
        """Find by how much the budgets must be loosened for accuracy to hold."""
        if walk.left <= 0:
            self.note(
                f"{candidate.name}: --rounds {self.spec.rounds} were too few to find what "
                "accuracy would need"
            )
            return
        got = walk.at(NONE, methods=helped)
        if not got.accurate:
            self.note(
                f"{candidate.name}: accuracy does not hold even without budgets at "
                f"{', '.join(o.label for o in self.options)}"
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
        analysis = self._analyze(candidate)
        goals = Goals(
            spec=self.spec,
            options=self.options,
            budgets=self.budgets,
            minimize=self.minimize,
            measure=self.measure,
        )
        pricing = Pricing(analysis.outline, self.devices(), self.factors)
        return Walk(goals, candidate, analysis, pricing)

    def outcome(self) -> Outcome:
        """Return everything that was measured, and the goals."""
        return Outcome(
            spec=self.spec,
            out=self.out,
            candidates={c.number: c for c in self.candidates},
            tries=self.tries,
            reference=self.reference,
            images=self.images,
            budgets=self.budgets,
            minimize=self.minimize,
            full=self.full,
            options=self.options,
            devices=self.devices(),
            factors=self.factors,
            notes=self.note.lines,
        )

    def _analyze(self, candidate: Candidate) -> AnalyzeRecord:
        spec, out = self.spec, ensure_writable_dir(candidate.folder)
        fields = {
            **candidate.fields,
            "out": str(out / ANALYSIS_JSON),
            "bits": tuple(o.label for o in self.options),
        }
        same = (
            "metric",
            "images",
            "calib_images",
            "calibrator",
            "percentile",
            "batch_size",
            "seed",
            "calib_cache",
        )
        candidate.analysis = analyze(
            AnalyzeSpec(**fields, **{f: getattr(spec, f) for f in same}), self.told
        )
        return candidate.analysis

    def measure(
        self, candidate: Candidate, allocated: AllocateRecord, *, methods: bool, label: str
    ) -> Try:
        """Quantize and evaluate one allocation, or reuse what an earlier run measured."""
        folder = self.files.measure(candidate, allocated, methods=methods, label=label)
        return self._judge(candidate, allocated, folder, label)

    def _judge(
        self, candidate: Candidate, allocated: AllocateRecord, folder: Path, label: str
    ) -> Try:
        scored = read_record(folder / EVALUATE_JSON, EvaluateRecord)
        made = read_record(folder / QUANTIZE_JSON, QuantizeRecord, kind="quantize record")
        self.images = scored.images
        accuracy = scored.top1 if scored.top1 is not None else scored.agreement
        own = scored.reference_top1 if scored.reference_top1 is not None else 100.0
        if accuracy is None or scored.agreement is None or not scored.valid:
            raise UsageError(
                f"Cannot measure the accuracy of {candidate.name}",
                scored.doubt or NO_SCORES,
                "Search a classifier; for other outputs use trtq analyze --metric l2 and trtq "
                "allocate",
            )
        if not self.reference:
            self.reference = {
                "model": candidate.name,
                "accuracy": own,
                "measure": "top-1" if scored.top1 is not None else "agreement",
                "costs": self.full,
            }
        floor = self.spec.min_accuracy
        change = accuracy - float(self.reference["accuracy"])
        accurate = floor is None or (change >= floor - 1e-9 if floor <= 0 else accuracy >= floor)
        found = Try(
            label=f"{candidate.label} {label}".strip(),
            model=candidate.name,
            candidate=candidate.number,
            folder=str(folder.relative_to(self.out)),
            widths=widths_of(allocated),
            methods=[m.name for m in made.methods],
            costs=dict(allocated.costs),
            accuracy=accuracy,
            change=round(change, 4),
            agreement=scored.agreement,
            sqnr_db=scored.sqnr_db,
            within=within(allocated.costs, self.budgets),
            accurate=accurate,
            onnx_bytes=made.files[QDQ].bytes,
        )
        self.told.note(
            f"{found.label}: {self.reference['measure']} {accuracy:.2f} % ({change:+.2f} points), "
            f"agreement {percent_words(scored.agreement, 2)}, "
            f"{'within' if found.within else 'over'} the budgets"
        )
        self.tries.append(found)
        return found
