"""What can go in: models of any inputs and outputs, samples of any form, other people's ONNX files.

Usage: python benchmarks/front_door.py [--out FILE.md] [--files FOLDER] [--build] [NAME ...]

Each model is quantized on samples of its own inputs and compared with its file in ONNX Runtime,
output by output; with --build it also becomes an engine for sm_86, whose convolutions and matrix
products are counted. Random weights say nothing about accuracy: the table shows what is taken,
kept and equal. transformers and ultralytics are needed for their models (pip install transformers
ultralytics); rows without them say so. ONNX files are read from a folder: every *.onnx below it.

Rows are kept in FILE.jsonl beside FILE.md. A stopped run continues; --again repeats rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from smoke import arguments, scratch
from subprocess_runner import Forked

SAMPLES = 8
SMALL = ["siamese", "audio GRU", "samples: own Dataset"]
FILES = "ONNX files of other people"
SECONDS, GIGABYTES = 600.0, 12.0
PRELOAD = (
    *("torch._dynamo", "torch.export", "onnxruntime", "torchvision", "timm", "transformers"),
    *("ultralytics", "trtq.api", "trtq.flow.quantize", "front_models"),
)
# Files that choose a part of the network by an input need its value.
CHOOSES = {"silero_vad.onnx": {"sr": 16000}, "silero_vad_op18_ifless.onnx": {"sr": 16000}}
COLUMNS = "| model | result | inputs | outputs | INT8 tensors | float | SQNR dB | batch | s |"


def run_one(name: str, build: bool = False) -> dict[str, Any]:
    """Quantize one model and return what a row says of it."""
    import torch

    import trtq

    torch.manual_seed(0)
    start = time.perf_counter()
    data: object = f"random:{SAMPLES}"
    options: dict[str, Any] = {}
    if name.endswith(".onnx"):
        model = trtq.load(name, **_chosen(name))
    else:
        from front_models import DOORS

        door = DOORS[name]
        made = door.make()
        given = {**door.load, **({"example": door.example()} if door.example else {})}
        if isinstance(made, torch.nn.Module):
            given["name"] = name
            made = made.eval()
        model = trtq.load(made, **given)
        options = dict(door.options)
        data = door.data(scratch()) if door.data else data
    quantized = trtq.quantize(
        model,
        data,
        **{
            "calib_images": SAMPLES,
            "parity_images": SAMPLES,
            "calibrator": "max",
            "preset_quant": "none",
            "calib_cache": str(scratch()),
            **options,
        },
    )
    parity, signature = quantized.done.parity, quantized.signature
    result: dict[str, Any] = {
        "inputs": "; ".join(t.words for t in signature.inputs),
        "outputs": len(signature.outputs),
        "quantized": len(quantized.placement.active),
        "float": sum(q.float_reason is not None for q in quantized.placement.quantizers),
        "sqnr": [a.sqnr_db for a in parity.answers],
        "passed": parity.passed,
        "batch": "open" if model.graph.dynamic_batch else "fixed",
        "notes": len(quantized.notes),
    }
    if build:
        result |= _built(quantized, model)
    result["seconds"] = time.perf_counter() - start
    result["mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return result


def _chosen(name: str) -> dict[str, Any]:
    """Return how a file is loaded whose input chooses a part of the network."""
    import torch

    values = CHOOSES.get(Path(name).name)
    if values is None:
        return {}
    return {"model_arg": values, "example": (torch.randn(1, 576) * 0.1, torch.zeros(2, 1, 128))}


def _built(quantized: Any, model: Any) -> dict[str, Any]:
    """Build an engine for sm_86 and return what its audit says."""
    import trtq

    engine = trtq.build(quantized, target="sm86", shapes=_shapes(model))
    manifest = engine.manifest
    found: dict[str, Any] = {"engine_mb": len(engine.plan) / 1e6}
    if manifest.audit is not None:
        found["int8"] = manifest.audit.convolutions.get("int8", 0)
        found["convolutions"] = manifest.quantized_convolutions
    return found


def _shapes(model: Any) -> tuple[str, ...]:
    """Return the sizes of the example for inputs with open axes beside the batch."""
    given = zip(model.graph.signature.inputs, model.graph.examples, strict=True)
    return tuple(
        f"{spec.name}={'x'.join(str(d) for d in example.shape)}"
        for spec, example in given
        if any(isinstance(d, str) for d in spec.shape[1:])
    )


def row_of(name: str, found: dict[str, Any]) -> str:
    """Return one row of the table."""
    name = Path(name).name if name.endswith(".onnx") else name
    if "error" in found:
        return f"| {name} | {found['error'][:240].replace('|', '/')} | | | | | | | |"
    finite = [v for v in found["sqnr"] if v is not None]
    sqnr = f"{min(finite):.1f}" if finite else "exact"
    result = "pass" if found["passed"] else "parity FAILED"
    if "engine_mb" in found:
        result += f", engine {found['engine_mb']:.1f} MB"
    if "convolutions" in found:
        result += f", {found['int8']}/{found['convolutions']} convolutions in INT8"
    return (
        f"| {name} | {result} | {found['inputs']} | {found['outputs']} | "
        f"{found['quantized']} | {found['float']} | {sqnr} | {found['batch']} | "
        f"{found['seconds']:.0f} |"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page: one table a group."""
    from front_models import GROUPS

    passed = sum(bool(r.get("passed")) for r in rows.values())
    lines = [
        "# What can go in",
        "",
        "Command: `python benchmarks/front_door.py`. Random weights where no file is named, "
        f"{SAMPLES} random samples unless the row is about samples, calibrator max, no preset. "
        "SQNR: of the worst output, simulated INT8 against float in torch; ONNX Runtime agreed "
        "with the simulation in every row that passed. Seconds are of a busy machine.",
        "",
        f"{passed} of {len(rows)} passed.",
    ]
    missing = [n for g in GROUPS.values() for n in g if n not in rows]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    files = [n for n in rows if n.endswith(".onnx")]
    for title, names in [*((t, list(g)) for t, g in GROUPS.items()), (FILES, files)]:
        had = [n for n in names if n in rows]
        if had:
            rule = "|---" * (COLUMNS.count("|") - 1) + "|"
            lines += ["", f"## {title}", "", COLUMNS, rule]
            lines += [row_of(n, rows[n]) for n in had]
    return "\n".join(lines) + "\n"


def kept_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return the rows of earlier runs by name."""
    rows: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row.pop("name")] = row
    return rows


def keep(path: Path | None, rows: dict[str, dict[str, Any]]) -> None:
    """Write all rows, so that a stopped run continues."""
    if path is not None:
        lines = (json.dumps({"name": name, **row}) for name, row in rows.items())
        path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run the models, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--files", type=Path, default=None, help="a folder with ONNX files")
    parser.add_argument("--build", action="store_true", help="build an engine for sm_86, too")
    parser.add_argument("--again", action="store_true", help="repeat rows that are there")
    parser.add_argument("--failed", action="store_true", help="repeat rows that failed")
    args = arguments(parser, models=SMALL)
    from front_models import DOORS

    files = sorted(map(str, args.files.rglob("*.onnx"))) if args.files else []
    path = args.out.with_suffix(".jsonl") if args.out else None
    rows = kept_rows(path)
    processes = Forked(PRELOAD, seconds=SECONDS, gigabytes=GIGABYTES)
    for name in [*(args.models or DOORS), *files]:
        old = rows.get(name)
        if old is None or args.again or (args.failed and not old.get("passed")):
            rows.pop(name, None)
            rows[name] = processes.run(run_one, name, args.build)
            keep(path, rows)
            print(row_of(name, rows[name]), flush=True)
    print(f"{sum(bool(r.get('passed')) for r in rows.values())} of {len(rows)} passed")
    if args.out:
        args.out.write_text(table(rows))


if __name__ == "__main__":
    main()
