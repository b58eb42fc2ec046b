"""``trtq search``: analyze, allocate, quantize, evaluate.

Tightens or loosens until every constraint holds, or says which cannot.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import (
    SCHEMA,
    digest_of,
    ensure_writable_dir,
    environment,
    locked,
    package_version,
    read_record,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.commands.allocate import decide, shown
from trtq.commands.allocation import AllocatedLayer, AllocateRecord
from trtq.commands.analyze import AnalyzeRecord, analyze
from trtq.commands.candidate import Candidate
from trtq.commands.evaluate import EvaluateRecord, evaluate
from trtq.commands.loading import answer_kind
from trtq.commands.pricing import Pricing, require_fp8, require_kernels, uniform
from trtq.commands.quantize import quantize
from trtq.commands.search_record import Constraint, Reference, SearchRecord, Try
from trtq.cost.devices import find_device
from trtq.cost.profile import read_factors
from trtq.data.answers import ANSWER, HAVE_PREDICTIONS, percent_words
from trtq.data.classes import require_one_class_list
from trtq.data.source import open_source
from trtq.errors import UsageError, suggest
from trtq.export.onnx_file import save_onnx, set_metadata_
from trtq.export.parity import require_same_float
from trtq.export.to_onnx import export_onnx
from trtq.flow.files import ENCODINGS, FP32, QDQ, RECORD
from trtq.flow.records import QuantizeRecord
from trtq.paths import expand_home
from trtq.progress import Notes, Progress, Silent
from trtq.search.budgets import (
    LATENCY,
    NAMES,
    latency_devices,
    over,
    parse_budgets,
    read_budgets,
    within,
)
from trtq.search.frontier import dominated
from trtq.search.loop import AS_ASKED, NONE, budgets_at, smallest
from trtq.search.options import BitConfig, read_option, read_options
from trtq.specs import AllocateSpec, AnalyzeSpec, EvaluateSpec, QuantizeSpec, SearchSpec
from trtq.version import __version__
from trtq.workers import Workers

TRIES, ANALYSIS, ALLOCATION, EVALUATION, SEARCH, FRONTIER = (
    "tries",
    "analysis.json",
    "allocation.json",
    "evaluate.json",
    "search.json",
    "frontier.json",
)
RESULT = (FP32, QDQ, ENCODINGS, RECORD, ALLOCATION, EVALUATION)
WIDE = BitConfig(weight=8, input=8)
NO_SCORES = "its output is not known to be scores of classes"
LOWEST = 2.0  # percent: a smaller --min-accuracy is a slip


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
    with locked(ensure_writable_dir(job.out) / ".trtq.lock", waiting=told.note):
        job.require_possible()
        for candidate in job.candidates:
            job.search(candidate)
        record = job.settle(round(time.monotonic() - started, 3))
        write_json(job.out / SEARCH, record)
        from trtq.report.page import write_page

        write_page(job.out, job.out / "report.html", title=f"Search: {record.tries[0].model}")
    return record


class _Job:
    """One search: goals, candidates and everything that was measured."""

    def __init__(self, spec: SearchSpec, told: Progress) -> None:
        self.spec, self.told, self.out = spec, told, Path(spec.out)
        self.tries, self.note, self.images = list[Try](), Notes(told.note), 0
        self.reference: dict[str, Any] = {}
        self.options, self.factors = read_options(spec.bits), read_factors(spec.correct)
        _check(spec, self.options)
        if spec.min_accuracy is None:
            self.note("no --min-accuracy: accuracy is measured, and any would do")
        self.val = open_source(*self._val(), self.note)
        self.data = open_source(spec.data, spec.class_index) if spec.val else self.val
        require_one_class_list(self.data, self.val)
        self._require_labels()
        self.candidates = list(self._candidates())
        for candidate in self.candidates:
            if answer_kind(candidate.loaded, candidate.captured, self.val) not in HAVE_PREDICTIONS:
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
        self.images_sha256 = self._images()

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
        folder, (where, index) = ensure_writable_dir(candidate.folder), self._val()
        captured = candidate.captured
        model = export_onnx(captured.module, note=self.note)
        require_same_float(captured.module, model, captured.example)
        answer = answer_kind(candidate.loaded, captured, self.val)
        set_metadata_(
            model, {"preprocess": candidate.preprocess, "model": candidate.name, ANSWER: answer}
        )
        path = save_onnx(model, folder / FP32)
        exclude = None
        if not self.spec.val:  # the images that calibrate the others are left out here, too
            seen = self.val.short_contents(self.val.sample(self.spec.calib_images, self.spec.seed))
            exclude = str(
                write_json(folder / "calibration.json", {"data": {"calibration_sha256": seen}})
            )
        scored = evaluate(
            EvaluateSpec(
                onnx=str(path),
                data=where,
                class_index=index,
                limit=self.spec.limit,
                exclude=exclude,
            ),
            self.told,
        )
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
        spec, walk = self.spec, _Walk(self, candidate, self._analyze(candidate))
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

    def _loosen(self, walk: _Walk, candidate: Candidate, *, helped: bool) -> None:
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

    def _analyze(self, candidate: Candidate) -> AnalyzeRecord:
        spec, out = self.spec, ensure_writable_dir(candidate.folder)
        fields = {
            **candidate.fields,
            "out": str(out / ANALYSIS),
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
        spec, where = self.spec, self._val()
        same = (
            "calibrator",
            "percentile",
            "calib_images",
            "attention",
            "batch_size",
            "seed",
            "calib_cache",
        )
        fields = {f: getattr(spec, f) for f in same}
        wanted = {
            **candidate.fields,
            **fields,
            "preset_quant": "auto" if methods else "none",
            "min_agreement": 0.0,
        }
        known = (
            "calib_cache",
            "batch_size",
            "checkpoint",
            "checkpoint_key",
            "data",
            "class_index",
        )  # or covered by digests
        parts = {k: v for k, v in wanted.items() if k not in known}
        versions = [__version__, package_version("torch"), package_version("onnxruntime")]
        key = digest_of(
            [
                [(v.name, v.option) for v in allocated.layers],
                parts,
                candidate.digests,
                self.images_sha256,
                bool(spec.val),
                spec.limit,
                versions,
            ]
        )
        folder = ensure_writable_dir(candidate.folder / TRIES / key[:12])
        write_json(folder / ALLOCATION, allocated)
        if not (folder / EVALUATION).is_file():
            self.told.note(f"{label}: {allocated.summary}")
            quantize(
                QuantizeSpec(**wanted, out=str(folder), allocation=str(folder / ALLOCATION)),
                self.told,
            )
            shared = {
                f: candidate.fields[f]
                for f in ("input_size", "mean", "std", "preset", "resize", "crop", "interpolation")
            }
            scored = evaluate(
                EvaluateSpec(
                    onnx=str(folder / QDQ),
                    reference=str(folder / FP32),
                    data=where[0],
                    class_index=where[1],
                    limit=spec.limit,
                    exclude=None if spec.val else str(folder / RECORD),
                    **shared,
                ),
                self.told,
            )
            write_json(folder / EVALUATION, scored)
        return self._judge(candidate, allocated, folder, label)

    def _judge(
        self, candidate: Candidate, allocated: AllocateRecord, folder: Path, label: str
    ) -> Try:
        scored = read_record(folder / EVALUATION, EvaluateRecord)
        made = read_record(folder / RECORD, QuantizeRecord, kind="quantize record")
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
            widths=_widths(allocated),
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

    def settle(self, seconds: float) -> SearchRecord:
        """Choose, and copy the chosen files to the folder; every try stays below ``tries``."""
        chosen = self._best()
        candidate = next(c for c in self.candidates if c.number == chosen.candidate)
        for name in RESULT:
            shutil.copyfile(self.out / chosen.folder / name, self.out / f".{name}.new")
            (self.out / f".{name}.new").replace(self.out / name)
        if candidate.folder != self.out:
            shutil.copyfile(candidate.folder / ANALYSIS, self.out / ANALYSIS)
        self._write_frontier(chosen, candidate)
        constraints = self._constraints(chosen, candidate)
        return SearchRecord(
            schema=SCHEMA,
            verb="search",
            spec=msgspec.to_builtins(self.spec),
            images=self.images,
            reference=msgspec.convert(self.reference, Reference),
            constraints=constraints,
            met=all(c.met for c in constraints),
            tries=self.tries,
            chosen=chosen.label,
            qdq_sha256=sha256_file(self.out / QDQ),
            notes=self.note.lines,
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
        points: list[dict[str, Any]] = [
            {
                "label": t.label,
                "model": t.model,
                "accuracy": t.accuracy,
                "change": t.change,
                "widths": t.widths,
                "methods": t.methods,
                "costs": {a: t.costs[a] / self._unit(a)[0] for a in axes},
                "dominated": {},
            }
            for t in self.tries
        ]
        for a in axes:
            flags = dominated([(p["costs"][a], p["accuracy"]) for p in points])
            for p, flag in zip(points, flags, strict=True):
                p["dominated"][a] = flag
        predicted = self._predicted(chosen, candidate)
        units = {a: self._unit(a)[1] for a in axes}
        limits = {a: self.budgets[a] / self._unit(a)[0] for a in axes if a in self.budgets}
        write_json(
            self.out / FRONTIER,
            {
                "measure": self.reference["measure"],
                "units": units,
                "limits": limits,
                "chosen": chosen.label,
                "points": points,
                "predicted": predicted,
            },
        )
        for a in axes:
            figure = frontier_figure(
                points,
                a,
                measure=self.reference["measure"],
                chosen=chosen.label,
                limit=limits.get(a),
                unit=units[a],
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

    def _predicted(self, chosen: Try, candidate: Candidate) -> dict[str, Any]:
        """Return the chosen model's allocations that the metric cannot better at their size.

        The chosen allocation is returned, too.
        """
        analysis = candidate.analysed
        pricing = Pricing(analysis.outline, self.devices(), self.factors)
        asked = AllocateSpec(analysis=ANALYSIS, out="", strategy="pareto", bits=self.spec.bits)
        front = decide(
            asked, analysis, pricing, {"size": pricing.span(self.options)[1]["size"]}
        ).front
        losses = {v.name: v.loss for v in analysis.layers}
        taken = read_record(self.out / ALLOCATION, AllocateRecord).layers
        at = {
            "cost": chosen.costs["size"] / 1e6,
            "loss": sum(losses[v.name].get(v.option, 0.0) for v in taken),
        }
        return {
            "axis": "size",
            "metric": analysis.metric,
            "at": at,
            "front": [{"cost": p.cost / 1e6, "loss": p.loss} for p in front],
        }

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


class _Walk:
    """Points on one candidate's line of budgets.

    A point with the widths of an earlier one costs nothing.
    """

    def __init__(self, job: _Job, candidate: Candidate, analysis: AnalyzeRecord) -> None:
        self.job, self.candidate, self.analysis = job, candidate, analysis
        self.pricing = Pricing(analysis.outline, job.devices(), job.factors)
        self.least, self.most = self.pricing.span(job.options)
        self.left, self.seen = job.spec.rounds, dict[tuple[Any, ...], Try]()

    def at(self, t: float, *, methods: bool) -> Try:
        """Return the file at point ``t`` of the line, measured."""
        label = _label(t) if self.job.budgets else "widest"
        return self._measured(
            budgets_at(t, self.job.budgets, self.least, self.most), methods=methods, label=label
        )

    def shrunk(self, t: float, first: Try, *, methods: bool) -> Try:
        """Return the file within the budgets whose cost to minimize is at most a limit.

        The limit lies at the share ``t`` of the way up to that cost of ``first``.
        """
        name = str(self.job.minimize)
        limit = self.least[name] + t * (first.costs[name] - self.least[name])
        return self._measured(
            {**self.job.budgets, name: limit},
            methods=methods,
            label=f"{name} at {shown(name, limit)}",
        )

    def _measured(self, budgets: Mapping[str, float], *, methods: bool, label: str) -> Try:
        spec = self.job.spec
        asked = AllocateSpec(
            analysis=str(self.candidate.folder / ANALYSIS),
            out="",
            strategy=spec.strategy,
            bits=spec.bits,
            target=spec.target,
        )
        allocated = decide(asked, self.analysis, self.pricing, budgets)
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
            self.seen[key] = self.job.measure(
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


def _widths(allocated: AllocateRecord) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in allocated.layers:
        counts[layer.option] = counts.get(layer.option, 0) + 1
    return dict(sorted(counts.items(), key=lambda c: read_option(c[0])))


def _check(spec: SearchSpec, options: list[BitConfig]) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        UsageError: names what contradicts what.
    """
    if bool(spec.model) == bool(spec.candidates):
        raise UsageError(
            "trtq search needs a MODEL or --candidates",
            "it got both" if spec.model else "it got neither",
        )
    if spec.checkpoint_key and not (spec.checkpoint or any("=" in c for c in spec.candidates)):
        raise UsageError("--checkpoint-key needs --checkpoint", "it names a part of that file")
    if spec.candidates and spec.checkpoint:
        raise UsageError(
            "--checkpoint does not go with --candidates", hint="Write each as MODEL=CHECKPOINT"
        )
    if not spec.budget and spec.min_accuracy is None:
        raise UsageError(
            "There is nothing to search for",
            "neither a budget nor an accuracy was given",
            "Add --budget size=0.2",
        )
    if spec.minimize and spec.min_accuracy is None:
        raise UsageError(
            "--minimize needs --min-accuracy",
            "the narrowest widths are always the smallest",
            "Add --min-accuracy -1.0",
        )
    if Workers.from_environment().world > 1:
        raise UsageError(
            "trtq search runs in one process",
            "torchrun started several",
            "Share the analysis, torchrun ... -m trtq analyze: a search with the same settings "
            "takes its pieces up",
        )
    if spec.min_accuracy is not None and 0 < spec.min_accuracy < LOWEST:
        raise UsageError(
            f"--min-accuracy {spec.min_accuracy:g} would be {spec.min_accuracy:g} %",
            "above 0 it is a percentage of right answers",
            f"Write {-spec.min_accuracy:g} for points against the float model, or a percentage "
            "such as 76",
        )
    if (
        spec.minimize
        and spec.minimize.lower() not in NAMES
        and not spec.minimize.lower().startswith(f"{LATENCY}@")
    ):
        raise UsageError(
            f"Cannot minimize {spec.minimize!r}",
            f"known are {', '.join(NAMES)}, {LATENCY}@DEVICE",
            suggest(spec.minimize, NAMES),
        )
    parse_budgets(spec.budget)
    for device in latency_devices(spec.budget):
        find_device(device)
    if spec.target:
        require_kernels(options, spec.target)
