"""Several runs side by side, one row each.

Accuracy is compared with every cost that all runs have, and the runs that nothing beats are marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import size_words
from trtq.engine.manifest import has_codes
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
        frontier_figure(
            [
                {
                    "label": r.label,
                    "accuracy": r.accuracy,
                    "costs": r.costs,
                    "dominated": r.dominated,
                }
                for r in shown
            ],
            axis,
            measure=measure,
            chosen="",
            limit=None,
            unit=unit,
        )
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
    q, e = run.quantize, run.evaluate
    agreement = (e or q["parity"])["agreement"]
    found = measure_of(run)
    accuracy = agreement if measure == AGREEMENT else found[1] if found else None
    packed = weight_bytes(run, packed=True)[1]
    costs = {"weights": packed / 1e6} if packed else {}
    costs |= {
        f"engine for {m['target']['device']}": m["engine_bytes"] / 1e6
        for m in run.engines
        if has_codes(m)
    }
    latency, valid = _latency(run, "qdq")
    names = ", ".join(m["name"] for m in q["methods"]) + (", training" if run.training else "")
    return RunRow(
        label=label,
        model=q["model"]["name"],
        width=run.width,
        methods=names.removeprefix(", "),
        accuracy=accuracy,
        agreement=agreement,
        costs={**costs, **latency},
        valid=valid,
    )


def _floats(runs: Sequence[RunSummary], measure: str) -> list[RunRow]:
    """The float models the runs began with, each once."""
    rows: dict[str, RunRow] = {}
    for run in runs:
        model = run.quantize["model"]
        found = measure_of(run)
        full = weight_bytes(run)[0]
        costs = {"weights": full / 1e6} if full else {}
        costs |= {
            f"engine for {m['target']['device']}": m["engine_bytes"] / 1e6
            for m in run.engines
            if not has_codes(m)
        }
        latency, valid = _latency(run, "fp32")
        accuracy = 100.0 if measure == AGREEMENT else found[2] if found else None
        row = RunRow(
            label=f"float {model['name']}",
            model=model["name"],
            width="float",
            methods="",
            accuracy=accuracy,
            agreement=100.0,
            costs={**costs, **latency},
            valid=valid,
        )
        key = f"{model['name']} {model['weights_sha256']}"
        known = rows.get(key, row)  # what an earlier run did not measure, a later one may have
        rows[key] = msgspec.structs.replace(
            known,
            costs={**row.costs, **known.costs},
            accuracy=row.accuracy if known.accuracy is None else known.accuracy,
            valid=known.valid and row.valid,
        )
    return list(rows.values())


def _latency(run: RunSummary, key: str) -> tuple[dict[str, float], bool]:
    record = run.bench.get(key)
    if record is None:
        return {}, True
    row = record["rows"][0]
    median = (row.get("e2e") or {}).get("median", {}).get("value")
    return (
        {f"latency on {row['device']}, batch {row['batch']}": median} if median is not None else {}
    ), bool(row["valid"])


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
    found = []

    def seen(run: RunSummary) -> Any:
        if run.evaluate is not None:
            images = run.evaluate["data"].get("images_sha256")
            if images is not None:
                return images
            left_out = run.evaluate["spec"].get("exclude") and run.quantize["data"].get(
                "ids_digest"
            )
            return (
                run.evaluate["data"],
                run.evaluate["images"],
                run.evaluate["spec"].get("limit"),
                left_out,
            )
        return (
            "calibration images",
            run.quantize["parity"]["images"],
            run.quantize["data"].get("calibration_sha256"),
        )

    if len({str(seen(r)) for r in runs}) > 1:
        found.append(
            "The runs were measured on different images: their accuracies are not comparable."
        )
    if len({r.quantize["model"]["name"] for r in runs}) > 1 and measure == AGREEMENT:
        found.append("The models differ, and agreement is with each model's own float answers.")
    machines = {b["card"].get("cpu") for r in runs for b in r.bench.values()}
    if len(machines) > 1:
        found.append(
            f"Latencies come from different machines: {', '.join(sorted(map(str, machines)))}."
        )
    if any(b["rows"][0]["valid"] is False for r in runs for b in r.bench.values()):
        found.append("Some latencies are not valid: their own reports say why.")
    return found
