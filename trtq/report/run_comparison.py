"""Several runs side by side, one row each.

Accuracy is compared with every cost that all runs have, and the runs that nothing beats are marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtq.artifact import size_words
from trtq.report.contents import machine_of
from trtq.report.figures import frontier_figure
from trtq.report.summary import RunSummary, measure_of, weight_bytes

AGREEMENT = "agreement with float"
UNITS = {
    "weights": "MB of packed codes, computed",
    "engine": "MB, file size",
    "latency": "ms, median",
}


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file: what a run made, or the float model it began with.

    Attributes:
        accuracy: percent, of the comparison's measure.
        costs: by axis; what was not measured is not there.
        dominated: by axis: another row is at least as good on both counts, and better on one.
    """

    label: str
    model: str
    width: str
    methods: str
    accuracy: float | None
    agreement: float | None
    costs: dict[str, float]
    valid: bool = True
    dominated: dict[str, bool] = {}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Several runs.

    Attributes:
        measure: what accuracy is.
        axes: unit of each cost, by name.
        doubts: why the rows should not be compared.
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
    measures = {m[0] if (m := measure_of(r)) else AGREEMENT for r in runs}
    measure = measures.pop() if len(measures) == 1 else AGREEMENT
    rows = [_row(label, run, measure) for label, run in zip(_labels(folders), runs, strict=True)]
    rows += _floats(runs, measure)
    axes = {axis: _unit(axis) for axis in dict.fromkeys(a for r in rows for a in r.costs)}
    rows = [
        msgspec.structs.replace(r, dominated={a: _beaten(r, rows, a) for a in r.costs})
        for r in rows
    ]
    figures = [
        frontier_figure(shown, axis, measure=f"{measure}, %", unit=unit)
        for axis, unit in axes.items()
        if len(shown := [r for r in rows if axis in r.costs and r.accuracy is not None]) > 1
    ]
    return Comparison(
        measure=measure,
        rows=rows,
        axes=axes,
        verdict=_verdict(rows[: len(runs)], measure),
        doubts=_doubts(runs, measure),
        figures=figures,
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """Name each folder by its last parts, as many as tell them apart."""
    parts = [f.resolve().parts for f in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _row(label: str, run: RunSummary, measure: str) -> RunRow:
    agreement = (run.evaluate or run.quantize.parity).agreement
    score = measure_of(run)
    accuracy = agreement if measure == AGREEMENT else score[1] if score else None
    methods = [m.name for m in run.quantize.methods] + (["training"] if run.training else [])
    costs, valid = _costs(run, "qdq")
    return RunRow(
        label=label,
        model=run.model.name,
        width=run.width,
        methods=", ".join(methods),
        accuracy=accuracy,
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
        for m in run.engines
        if m.has_codes == (key == "qdq")
    }
    row = run.bench[key].rows[0] if key in run.bench else None
    if row is None:
        return costs, True
    median = row.e2e.median.value if row.e2e is not None else None
    if median is not None:
        costs[f"latency on {row.device}, batch {row.batch}"] = median
    return costs, row.valid


def _floats(runs: Sequence[RunSummary], measure: str) -> list[RunRow]:
    """The float models the runs began with, each once."""
    rows: dict[str, RunRow] = {}
    for run in runs:
        score = measure_of(run)
        costs, valid = _costs(run, "fp32")
        row = RunRow(
            label=f"float {run.model.name}",
            model=run.model.name,
            width="float",
            methods="",
            accuracy=100.0 if measure == AGREEMENT else score[2] if score else None,
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
    mine = row.accuracy
    if mine is None:
        return False
    others = [
        (r.accuracy, r.costs[axis])
        for r in rows
        if r is not row and axis in r.costs and r.accuracy is not None
    ]
    return any(
        a >= mine and c <= row.costs[axis] and (a > mine or c < row.costs[axis]) for a, c in others
    )


def _verdict(rows: Sequence[RunRow], measure: str) -> str:
    known = [r for r in rows if r.accuracy is not None]
    if not known:
        return f"{len(rows)} runs; none has a figure of accuracy."
    best = max(known, key=lambda r: r.accuracy or 0.0)
    said = f"{len(rows)} runs: {best.label} keeps most ({best.accuracy:.2f} % {measure})"
    sized = [r for r in known if "weights" in r.costs]
    smallest = min(sized, key=lambda r: r.costs["weights"], default=None)
    if (
        smallest is not None
        and smallest is not best
        and smallest.costs["weights"] < best.costs.get("weights", 0.0)
    ):
        weights = size_words(1e6 * smallest.costs["weights"])
        said += f"; {smallest.label} is smallest ({weights} of weights, {smallest.accuracy:.2f} %)"
    return f"{said}."


def _doubts(runs: Sequence[RunSummary], measure: str) -> list[str]:
    """Return why the rows should not be compared."""
    doubts = []
    if len({str(_measured_on(r)) for r in runs}) > 1:
        doubts.append(
            "The runs were measured on different images: their accuracies are not comparable."
        )
    if len({r.model.name for r in runs}) > 1 and measure == AGREEMENT:
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
