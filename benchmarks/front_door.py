"""What can go in: models of any inputs and outputs, and other people's ONNX files.

Usage: python benchmarks/front_door.py [--out FILE.md] [--files FOLDER] [--build] [NAME ...]

Each model is quantized on random samples of its own inputs and compared with its file in ONNX
Runtime, output by output; with --build it also becomes an engine for sm_86. Random weights say
nothing about accuracy: the table shows what is taken, kept and equal. transformers and ultralytics
are needed for their models (pip install transformers ultralytics); rows without them say so.
ONNX files are read from a folder: every *.onnx below it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from smoke import arguments, scratch
from subprocess_runner import print_result, run_apart

SAMPLES = 8
SMALL = ["siamese", "audio GRU"]


def run_one(name: str, *, build: bool) -> dict[str, Any]:
    """Quantize one model and return what a row says of it."""
    import torch

    import trtq

    torch.manual_seed(0)
    start = time.perf_counter()
    if name.endswith(".onnx"):
        model = trtq.load(name)
    else:
        from front_models import DOORS

        door = DOORS[name]
        model = trtq.load(door.make().eval(), example=door.example(), name=name)
    quantized = trtq.quantize(
        model,
        f"random:{SAMPLES}",
        calib_images=SAMPLES,
        parity_images=SAMPLES,
        calibrator="max",
        preset_quant="none",
        calib_cache=str(scratch()),
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
        engine = trtq.build(quantized, target="sm86", shapes=_shapes(model))
        result["mb"] = len(engine.plan) / 1e6
    result["seconds"] = time.perf_counter() - start
    return result


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
    if "error" in found:
        return f"| {Path(name).name} | {found['error'][:160].replace('|', '/')} | | | | | | |"
    finite = [v for v in found["sqnr"] if v is not None]
    sqnr = f"{min(finite):.1f}" if finite else "exact"
    return (
        f"| {Path(name).name} | {'pass' if found['passed'] else 'parity FAILED'} | "
        f"{found['inputs']} | {found['outputs']} | {found['quantized']} | {found['float']} | "
        f"{sqnr} | {found['batch']}, {found['seconds']:.0f} s"
        + (f", {found['mb']:.1f} MB |" if "mb" in found else " |")
    )


def main() -> None:
    """Run the models, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--files", type=Path, default=None, help="a folder with ONNX files")
    parser.add_argument("--build", action="store_true", help="build an engine for sm_86, too")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = arguments(parser, models=SMALL)
    if args.one:
        try:
            print_result(run_one(args.one, build=args.build))
        except Exception as exc:  # a row of the table
            print_result({"error": f"{type(exc).__name__}: {exc}"})
        return
    from front_models import DOORS

    files = sorted(map(str, args.files.rglob("*.onnx"))) if args.files else []
    rows, passed = [], 0
    names = [*(args.models or DOORS), *files]
    for name in names:
        line = [sys.executable, __file__, "--one", name, *(["--build"] if args.build else [])]
        found = run_apart(line)
        passed += bool(found.get("passed"))
        rows.append(row_of(name, found))
        print(rows[-1], flush=True)
    head = [
        "# What can go in",
        "",
        "Command: `python benchmarks/front_door.py"
        + (" --build`." if args.build else "`.")
        + f" Random weights where no file is named, {SAMPLES} random samples, calibrator max, no"
        " preset. SQNR: of the worst output, simulated INT8 against float in torch; ONNX Runtime"
        " agreed with the simulation in every row that passed.",
        "",
        f"{passed} of {len(names)} passed.",
        "",
        "| model | result | inputs | outputs | INT8 tensors | float | SQNR dB | batch, time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print(f"{passed} of {len(names)} passed")
    if args.out:
        args.out.write_text("\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
