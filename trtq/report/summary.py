"""The rows of a report, from the records of one run; shared by the terminal and the page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtq.artifact import size_words
from trtq.data.answers import percent_words
from trtq.data.metrics import sqnr_words
from trtq.engine.manifest import has_codes
from trtq.files import (
    ALLOCATION_JSON,
    ANALYSIS_JSON,
    ENCODINGS,
    EVALUATE_JSON,
    FINETUNE_FOLDER,
    FINETUNE_JSON,
    FRONTIER_JSON,
    MANIFEST_SUFFIX,
    QDQ,
    QUANTIZE_JSON,
    SEARCH_JSON,
    bench_json,
)
from trtq.report.contents import read_frontier, read_part

SCORES = (("miou", "mIoU"), ("top1", "top-1"))
INT8_SIZE = "computed: 4 bytes a value, 1 where the layer is quantized"
SIMULATED_SIZE = (
    "computed: 1 byte a value of a quantized layer, as an archive could store it; the engine "
    "holds floats"
)


@dataclass(slots=True)
class RunSummary:
    """What the records of one folder say.

    Attributes:
        quantize: quantize.json.
        evaluate: evaluate.json, None when the recipe has no evaluation.
        engines: manifests, in name order.
        bench: by ``fp32`` and ``qdq``.
        width: INT8, or the widths below it.
        simulated: no tensor of it runs on integer kernels.
        rows: label, FP32, INT8 and how it was measured.
        verdict: one sentence.
        training: finetune/finetune.json, when it started from the encodings here; what was
            evaluated and built is then its result.
        search: search.json with frontier.json, allocation.json and analysis.json, when the files
            here are what a search chose.
    """

    quantize: dict[str, Any]
    evaluate: dict[str, Any] | None
    engines: list[dict[str, Any]]
    bench: dict[str, dict[str, Any]]
    width: str = "INT8"
    simulated: bool = False
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    verdict: str = ""
    training: dict[str, Any] | None = None
    search: dict[str, Any] | None = None


def summarize_run(folder: Path) -> RunSummary:
    """Return the summary of the records in ``folder``.

    Raises:
        ArtifactError: there is no quantize.json, or a record is damaged.
    """
    evaluation = folder / EVALUATE_JSON
    run = RunSummary(
        quantize=read_part(folder / QUANTIZE_JSON, "quantize"),
        evaluate=read_part(evaluation, "evaluate") if evaluation.is_file() else None,
        engines=[read_part(p, "build") for p in sorted(folder.glob(f"*{MANIFEST_SUFFIX}"))],
        bench={
            k: r
            for k in ("fp32", "qdq")
            if (p := folder / bench_json(k)).is_file() and (r := read_part(p, "bench"))["rows"]
        },
    )
    trained = folder / FINETUNE_FOLDER / FINETUNE_JSON
    run.training = read_part(trained, "finetune") if trained.is_file() else None
    _drop_strangers_(run)
    run.search = _search(folder, run)
    bits = run.quantize["model"]["bits"]
    run.width = {"w8a8": "INT8", "mixed": "mixed widths"}.get(bits, bits.upper())
    run.simulated = not any(
        q["computes_in"].startswith(("INT8", "FP8")) for q in run.quantize["quantizers"]
    )
    run.rows = [*_accuracy_rows(run), *_size_rows(run), *_latency_rows(run)]
    run.verdict = _verdict(run)
    return run


def _search(folder: Path, run: RunSummary) -> dict[str, Any] | None:
    """Return the records of the search that chose these files, None when there was none."""
    names = {"search": SEARCH_JSON, "allocation": ALLOCATION_JSON, "analysis": ANALYSIS_JSON}
    there = all((folder / n).is_file() for n in (*names.values(), FRONTIER_JSON))
    if not there or not run.quantize["spec"].get("allocation"):
        return None
    verbs = {"search": "search", "allocation": "allocate", "analysis": "analyze"}
    found = {k: read_part(folder / n, verbs[k]) for k, n in names.items()}
    found["frontier"] = read_frontier(folder / FRONTIER_JSON)
    return (
        found if found["search"].get("qdq_sha256") == run.quantize["files"][QDQ]["sha256"] else None
    )


def _drop_strangers_(run: RunSummary) -> None:
    """Keep only what was made from the files that this quantize.json vouches for.

    A folder may hold leftovers of another run.
    """
    own = run.quantize["files"]
    if run.training is not None and run.training["encodings_sha256"] != own[ENCODINGS]["sha256"]:
        run.training = None
    used = {m["onnx_sha256"] for m in (*run.engines, *([run.evaluate] if run.evaluate else []))} | {
        b["rows"][0]["file_sha256"] for b in run.bench.values()
    }
    if (
        own[QDQ]["sha256"] in used
    ):  # what was measured is the file before training: the training is of another run
        run.training = None
    files = {
        f["sha256"]
        for record in (run.quantize, run.training)
        if record is not None
        for f in record["files"].values()
    }
    run.engines = [m for m in run.engines if m["onnx_sha256"] in files]
    run.bench = {k: b for k, b in run.bench.items() if b["rows"][0]["file_sha256"] in files}
    if run.evaluate is not None and run.evaluate["onnx_sha256"] not in files:
        run.evaluate = None


def _accuracy_rows(run: RunSummary) -> list[tuple[str, str, str, str]]:
    e = run.evaluate
    if e is None:
        p = run.quantize["parity"]
        how = f"{p['images']} calibration images, torch simulation"
        return _against_float(p, p["quantization_sqnr_db"], how)
    seen = e["calibration_images"]
    held = (
        "overlap with calibration unknown"
        if seen is None
        else f"{seen or 'none'} of them used for calibration"
    )
    how = f"{e['images']} images, {held}; {e['runtime']}"
    rows = []
    for key, label in (("top1", "Top-1 accuracy"), ("miou", "Mean intersection over union")):
        if e.get(key) is not None:
            rows.append((label, _percent(e[f"reference_{key}"]), _percent(e[key]), how))
    outputs = e.get("outputs") or (
        [{"agreement": e["agreement"], "sqnr_db": e["sqnr_db"]}]
        if e["agreement"] is not None
        else []
    )
    for output in outputs:
        named = f" ({output['name']})" if len(outputs) > 1 else ""
        rows += [
            (f"{label}{named}", "", value, how)
            for label, _, value, how in _against_float(output, output["sqnr_db"], how)
        ]
    return rows


def _against_float(
    found: dict[str, Any], sqnr_db: float | None, how: str
) -> list[tuple[str, str, str, str]]:
    """Return the rows of one output against the float model's."""
    if not found.get("finite", found.get("comparable", True)):
        return [
            ("Outputs", "", "not comparable: shapes differ, or values are NaN or infinite", how)
        ]
    if found.get("equal") is not None:
        return [("Equal integers", "", percent_words(found["equal"], 2), how)]
    rows = (
        [("Agreement with FP32", "", percent_words(found["agreement"], 2), how)]
        if found["agreement"] is not None
        else []
    )
    rows.append(("SQNR of the outputs", "", sqnr_words(sqnr_db), how))
    if found["agreement"] is None and found.get("cosine") is not None:
        rows.append(("Cosine of the outputs", "", f"{found['cosine']:.6f}", how))
    return rows


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def bits_of(label: str) -> int:
    """Return the width that a format's label names.

    >>> [bits_of(v) for v in ("int8", "int4[-1,14]", "log2-8", "asymmetric-6", "fp8")]
    [8, 4, 8, 6, 8]
    """
    found = re.match(r"[a-z]+2?-?(\d)", label)
    return int(found.group(1)) if found is not None else 8


def weight_bytes(run: RunSummary, *, packed: bool = False) -> tuple[float, float]:
    """Return the bytes of the weights as floats, and with codes for quantized layers.

    Both are zero where the weights were not counted.

    Args:
        run: its quantizers name the formats.
        packed: codes take their own width; else the byte that an INT8 container has for each.
    """
    widths = {
        q["layer"]: bits_of(q["format"]) if packed else 8
        for q in run.quantize["quantizers"]
        if q["role"] == "weight"
    }
    weights = run.quantize["model"].get("weight_values", {})
    return 4.0 * sum(weights.values()), sum(
        n * widths.get(layer, 32) / 8 for layer, n in weights.items()
    )


def measure_of(run: RunSummary) -> tuple[str, float, float] | None:
    """Return the accuracy measure, and the percent of the quantized and the float file.

    The measure is ``mIoU`` or ``top-1``. The result is None without labels.
    """
    e = run.evaluate or {}
    for key, name in SCORES:
        if e.get(key) is not None and e.get(f"reference_{key}") is not None:
            return name, e[key], e[f"reference_{key}"]
    return None


def _size_rows(run: RunSummary) -> list[tuple[str, str, str, str]]:
    full, small = weight_bytes(run)
    how = SIMULATED_SIZE if run.simulated else INT8_SIZE
    rows = [("Weights", size_words(full), size_words(small), how)] if full else []
    by_device: dict[str, dict[str, dict[str, Any]]] = {}
    for m in run.engines:
        by_device.setdefault(m["target"]["device"], {})[
            "int8" if has_codes(m) else m["precision"]
        ] = m
    for device, found in by_device.items():
        base = found.get("fp32") or found.get("fp16")
        label = (
            size_words(base["engine_bytes"]) + ("" if "fp32" in found else " (FP16)")
            if base
            else ""
        )
        coded = size_words(found["int8"]["engine_bytes"]) if "int8" in found else ""
        builder = next(iter(found.values()))["builder"]
        place = (
            "built without the GPU" if builder["backend"] == "tensorrt-rtx" else "built on that GPU"
        )
        rows.append(
            (
                f"Engine for {device}",
                label,
                coded,
                f"file size; {builder['backend']} {builder['version']}, {place}",
            )
        )
    return rows


def _latency_rows(run: RunSummary) -> list[tuple[str, str, str, str]]:
    if not run.bench:
        return []

    rows = {key: record["rows"][0] for key, record in run.bench.items()}

    def cell(key: str) -> str:
        row = rows.get(key)
        median = row["e2e"]["median"] if row is not None and row.get("e2e") else None
        if row is None or median is None or median["value"] is None:
            return ""
        interval = "" if median["low"] is None else f" [{median['low']:.2f}, {median['high']:.2f}]"
        return f"{median['value']:.2f} ms{interval}" + ("" if row["valid"] else " (NOT VALID)")

    first, card = next(iter(rows.values())), next(iter(run.bench.values()))["card"]
    where = (
        f", {card['cpu']}: says nothing about a GPU" if first["device"].startswith("CPU") else ""
    )
    how = f"median and 95 % interval, batch {first['batch']}, on the {first['device']}{where}"
    found = [(f"{first['device'].split(' ')[0]} latency", cell("fp32"), cell("qdq"), how)]
    for record in run.bench.values():
        for v in record["verdicts"]:
            said = f"{v['outcome']}: x {v['ratio']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" + (
                "" if v["valid"] else " (NOT VALID)"
            )
            how = (
                f"{v['second']} against {v['first']}, {v['loads']} loads of each taking turns, "
                f"noise {v['noise']:.1%}, {v['device']}"
            )
            found.append(("INT8 against float", "", said, how))
    return found


def _verdict(run: RunSummary) -> str:
    q, e = run.quantize, run.evaluate
    methods = [m["name"] for m in q["methods"]] + (["training"] if run.training is not None else [])
    container = "" if run.width == "INT8" else " (in INT8 containers)"
    if run.simulated:
        container = " (simulated: engines compute it in float)"
    parts = [
        f"{q['model']['name']} in {run.width}{container}"
        + (f" with {', '.join(methods)}" if methods else "")
    ]
    measure = measure_of(run)
    if e is not None and measure is not None:
        name, score, reference = measure
        kept = (
            f"keeps {percent_words(e['agreement'])} of its predictions ("
            if e["agreement"] is not None
            else "has (against float "
        )
        parts.append(f"{kept}{score - reference:+.2f} points of {name} on {e['images']} images)")
    elif e is not None and e["agreement"] is not None:
        parts.append(
            f"keeps {percent_words(e['agreement'])} of its predictions on {e['images']} images"
        )
    elif e is not None and e.get("outputs"):
        label, _, value, _ = _against_float(e["outputs"][0], e["outputs"][0]["sqnr_db"], "")[0]
        parts.append(f"has, against float, {label}: {value}, on {e['images']} images")
    else:
        p = q["parity"]
        label, _, value, _ = _against_float(p, p["quantization_sqnr_db"], "")[0]
        said = (
            f"keeps {value} of its predictions"
            if p["agreement"] is not None
            else f"has, against float, {label}: {value},"
        )
        parts.append(f"{said} on {p['images']} calibration images")
        alone = next(
            ((key, name) for key, name in SCORES if e is not None and e.get(key) is not None), None
        )
        if e is not None and alone is not None:
            parts.append(
                f"and has {e[alone[0]]:.2f} % {alone[1]} on {e['images']} images (the float "
                "model was not measured)"
            )
    covered = [m for m in run.engines if m["quantized_tensors"] and m.get("coverage")]
    if covered:
        least = min((m["coverage"] for m in covered), key=lambda c: c["got"])
        parts.append(
            f"and its engines compute {least['got']} of {least['asked']} quantized layers in INT8"
        )
    return " ".join(parts) + "."
