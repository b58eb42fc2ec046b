"""Several runs side by side, one row each.

Accuracy is compared with every cost that all runs have, and the runs that nothing beats are marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.artifact import size_words
from trtq.report.contents import machine_of
from trtq.report.figures import frontier_figure
from trtq.report.summary import RunSummary, measure_of, weight_bytes
from trtq.tasks import Figure

AGREEMENT = "agreement with float"
UNITS = {
    "weights": "MB of packed codes, computed",
    "engine": "MB, file size",
    "latency": "ms, median",
}


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file: what a run made, or the float model it began with.

    Attributes:
        label: the end of the run's folder, or ``float`` and the model.
        model: its name.
        width: such as ``INT8``; ``float`` for a float model.
        methods: names joined by commas, with ``training`` at the end.
        accuracy: of the comparison's measure; None where it was not measured.
        better: whether a higher or a lower accuracy is better.
        agreement: with the float model, percent; None where that is no percentage.
        costs: by axis; what was not measured is not there.
        valid: whether its latency may be used.
        dominated: by axis: another row is at least as good on both counts, and better on one.
    """

    label: str
    model: str
    width: str
    methods: str
    accuracy: float | None
    better: str = "higher"
    agreement: float | None
    costs: dict[str, float]
    valid: bool = True
    dominated: dict[str, bool] = {}

    @property
    def goodness(self) -> float | None:
        """The accuracy as a number that is higher where it is better."""
        if self.accuracy is None:
            return None
        return self.accuracy if self.better == "higher" else -self.accuracy


class Measure(NamedTuple):
    """Definition of accuracy.

    Attributes:
        name: such as ``mAP``.
        unit: such as ``%``; "" for none.
        better: ``higher`` or ``lower``.
    """

    name: str
    unit: str
    better: str

    @property
    def title(self) -> str:
        """The measure with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def words(self, row: RunRow) -> str:
        """The accuracy of a row, which must have one, with its unit."""
        return f"{row.accuracy:.2f} {self.unit}".rstrip()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Several runs.

    Attributes:
        measure: what accuracy is, with its unit.
        rows: the runs in their order, then the float models, each once.
        axes: unit of each cost, by name.
        verdict: one sentence.
        doubts: why the rows should not be compared.
        figures: accuracy against each cost that two rows have, as SVG.
    """

    measure: str
    rows: list[RunRow]
    axes: dict[str, str]
    verdict: str
    doubts: list[str]
    figures: list[str]


def compare_runs(folders: Sequence[Path], runs: Sequence[RunSummary]) -> Comparison:
    """Compare several runs.

    Args:
        folders: of the runs; what tells them apart names them.
        runs: summaries of them.
    """
    measure = _measure(runs)
    rows = [_row(label, run, measure) for label, run in zip(_labels(folders), runs, strict=True)]
    rows += _floats(runs, measure)
    axes = {axis: _unit(axis) for axis in dict.fromkeys(a for r in rows for a in r.costs)}
    rows = [
        msgspec.structs.replace(r, dominated={a: _beaten(r, rows, a) for a in r.costs})
        for r in rows
    ]
    figures = [
        frontier_figure(shown, axis, measure=measure.title, unit=unit)
        for axis, unit in axes.items()
        if len(shown := [r for r in rows if axis in r.costs and r.accuracy is not None]) > 1
    ]
    return Comparison(
        measure=measure.title,
        rows=rows,
        axes=axes,
        verdict=_verdict(rows[: len(runs)], measure),
        doubts=_doubts(runs, measure),
        figures=figures,
    )


def _measure(runs: Sequence[RunSummary]) -> Measure:
    """Return the score that all runs have, else what each has against its float model."""
    known = [measure_of(run) for run in runs]
    own = {Measure(m[0].name, m[0].unit, m[0].better) for m in known if m is not None}
    if len(own) == 1 and all(known):
        return own.pop()
    alike = [_alike(run) for run in runs]
    if all(f is not None for f in alike):
        shared = {Measure(f.name, f.unit, f.better) for f in alike if f is not None}
        if len(shared) == 1:
            return shared.pop()
    return Measure(AGREEMENT, "%", "higher")


def _alike(run: RunSummary) -> Figure | None:
    """Return the first score of a task against the float model's answers; None for classes."""
    figures = run.evaluate.agreement_figures if run.evaluate is not None else None
    return next((f for f in figures or () if f.value is not None), None)


def _agreement(run: RunSummary) -> Figure | None:
    """Return what a run has against its float model."""
    value = (run.evaluate or run.quantize.parity).agreement
    known = None if value is None else Figure(name=AGREEMENT, value=value)
    return _alike(run) or known


def _labels(folders: Sequence[Path]) -> list[str]:
    """Name each folder by its last parts, as many as tell them apart."""
    parts = [f.resolve().parts for f in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _row(label: str, run: RunSummary, measure: Measure) -> RunRow:
    alike, score = _agreement(run), measure_of(run)
    own = score[0] if score is not None and score[0].name == measure.name else alike
    agreement = None if alike is None or alike.unit != "%" else alike.value
    methods = [m.name for m in run.quantize.methods] + (["training"] if run.training else [])
    costs, valid = _costs(run, "qdq")
    return RunRow(
        label=label,
        model=run.model.name,
        width=run.width,
        methods=", ".join(methods),
        accuracy=None if own is None else own.value,
        better=measure.better,
        agreement=agreement,
        costs=costs,
        valid=valid,
    )


def _costs(run: RunSummary, key: str) -> tuple[dict[str, float], bool]:
    """Return what the quantized (``qdq``) or the float file costs, and whether that is valid."""
    full, packed = weight_bytes(run, packed=True)
    size = packed if key == "qdq" else full
    costs = {"weights": size / 1e6} if size else {}
    costs |= {
        f"engine for {m.device}": m.engine_bytes / 1e6
        for m in run.engines.values()
        if m.has_codes == (key == "qdq")
    }
    row = run.bench[key].rows[0] if key in run.bench else None
    if row is None:
        return costs, True
    median = row.e2e.median.value if row.e2e is not None else None
    if median is not None:
        costs[f"latency on {row.device}, batch {row.batch}"] = median
    return costs, row.valid


def _floats(runs: Sequence[RunSummary], measure: Measure) -> list[RunRow]:
    """The float models the runs began with, each once."""
    rows: dict[str, RunRow] = {}
    for run in runs:
        score = measure_of(run)
        of_float = score[1] if score is not None and score[1].name == measure.name else None
        perfect = Figure(name="", value=None, unit=measure.unit, better=measure.better).perfect
        alike = measure.name == AGREEMENT or (score is None and _alike(run) is not None)
        costs, valid = _costs(run, "fp32")
        row = RunRow(
            label=f"float {run.model.name}",
            model=run.model.name,
            width="float",
            methods="",
            accuracy=perfect if alike else None if of_float is None else of_float.value,
            better=measure.better,
            agreement=100.0,
            costs=costs,
            valid=valid,
        )
        key = f"{run.model.name} {run.model.weights_sha256}"
        known = rows.get(key, row)  # what an earlier run did not measure, a later one may have
        rows[key] = msgspec.structs.replace(
            known,
            costs={**row.costs, **known.costs},
            accuracy=row.accuracy if known.accuracy is None else known.accuracy,
            valid=known.valid and row.valid,
        )
    return list(rows.values())


def _unit(axis: str) -> str:
    return UNITS[axis.split(" ", maxsplit=1)[0]]


def _beaten(row: RunRow, rows: Sequence[RunRow], axis: str) -> bool:
    mine = row.goodness
    if mine is None:
        return False
    others = [
        (good, r.costs[axis])
        for r in rows
        if r is not row and axis in r.costs and (good := r.goodness) is not None
    ]
    return any(
        a >= mine and c <= row.costs[axis] and (a > mine or c < row.costs[axis]) for a, c in others
    )


def _verdict(rows: Sequence[RunRow], measure: Measure) -> str:
    known = [r for r in rows if r.goodness is not None]
    if not known:
        return f"{len(rows)} runs; none has a figure of accuracy."
    best = max(known, key=lambda r: r.goodness or 0.0)
    verdict = f"{len(rows)} runs: {best.label} keeps most ({measure.words(best)} {measure.name})"
    sized = [r for r in known if "weights" in r.costs]
    smallest = min(sized, key=lambda r: r.costs["weights"], default=None)
    if (
        smallest is not None
        and smallest is not best
        and smallest.costs["weights"] < best.costs.get("weights", 0.0)
    ):
        weights = size_words(1e6 * smallest.costs["weights"])
        verdict += (
            f"; {smallest.label} is smallest ({weights} of weights, {measure.words(smallest)})"
        )
    return f"{verdict}."


def _doubts(runs: Sequence[RunSummary], measure: Measure) -> list[str]:
    """Return why the rows should not be compared."""
    doubts = []
    if len({str(_measured_on(r)) for r in runs}) > 1:
        doubts.append(
            "The runs were measured on different images: their accuracies are not comparable."
        )
    if len({r.model.name for r in runs}) > 1 and measure.name.startswith("agreement"):
        doubts.append("The models differ, and agreement is with each model's own float answers.")
    records = [b for r in runs for b in r.bench.values()]
    machines = {machine_of(b) for b in records}
    if len(machines) > 1:
        doubts.append(f"Latencies come from different machines: {', '.join(sorted(machines))}.")
    if not all(b.rows[0].valid for b in records):
        doubts.append("Some latencies are not valid: their own reports say why.")
    return doubts


def _measured_on(run: RunSummary) -> object:
    """Return what identifies the images that a run's accuracy is of."""
    e = run.evaluate
    if e is None:
        parity = run.quantize.parity
        return "calibration images", parity.images, run.images.calibration_sha256
    digest = e.data.get("images_sha256")
    if digest is not None:
        return digest
    left_out = e.spec.get("exclude") and run.images.ids_digest
    return e.data, e.images, e.spec.get("limit"), left_out
