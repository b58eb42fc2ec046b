"""A trained detector quantized with defaults: mean average precision of the file that ships.

Usage: python benchmarks/detection.py --model yolov8n-doclaynet.onnx --data coco:pages.zip \
    [--bits w8a8 w6a6 w4a8] [--peer modelopt-max=FILE.onnx ...] [--target rtx3080] \
    --out benchmarks/results/detection.md

32 images calibrate, all others are evaluated. Every file runs in ONNX Runtime on the CPU, each Q/DQ
pair as written, and its boxes are read by the same head (the best class of each box) and counted by
pycocotools. A --peer is a Q/DQ file of another tool, made of the same model with the images that
--write-calib FILE.npy writes. Figures are mAP (IoU 0.5 to 0.95) and mAP50 in percent; agreement
takes the float model's boxes for the truth, so it needs no labels. The time is that of one process
that loads, quantizes and writes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from smoke import SMOKE, arguments, few, scratch

CALIB = few(32, 4)


def _quantized(args: argparse.Namespace, bits: str, folder: Path) -> tuple[Path, str, str]:
    """Quantize in a process of its own; return its folder, its seconds and its peak memory."""
    out, errors = folder / bits, folder / f"{bits}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "trtq", "quantize", args.model, "--data", args.data]
    command += ["--preset", "yolo", "--calib-images", str(CALIB), "--bits", bits]
    command += ["--calib-cache", str(folder / f"cache-{bits}"), "--out", str(out)]
    began = time.perf_counter()
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(errors.read_text()[-3000:])
    seconds = time.perf_counter() - began
    return out, f"{seconds:.0f} s", f"{used.ru_maxrss / 1e6:.1f} GB"


def _scored(args: argparse.Namespace, path: Path, first: Path) -> Any:
    """Return the record of a file beside the float model, on images that calibrated nothing."""
    import trtq

    return trtq.evaluate(
        trtq.EvaluateSpec(
            onnx=str(path),
            reference=str(first / "model.fp32.onnx"),
            data=args.data,
            preset="yolo",
            task="detection",
            exclude=str(first / "quantize.json"),
            batch_size=1,
        )
    )


def _share(folder: Path) -> str:
    """Return how many tensors are in codes, and how many of those that could be stay in float."""
    from trtq.artifact import read_json

    record = read_json(folder / "quantize.json")
    return f"{len(record['quantizers'])} / {len(record['left_in_float'])}"


def _plan(args: argparse.Namespace, folder: Path) -> str:
    """Return what the plan for a card computes in INT8; "" without a builder."""
    import trtq

    if not args.target:
        return ""
    out = folder / "model.engine"
    spec = trtq.BuildSpec(onnx=str(folder / "model.qdq.onnx"), target=args.target, out=str(out))
    made = trtq.build(spec)
    return "not read" if made.coverage is None else made.coverage.summary


def _row(name: str, record: Any, *more: str) -> list[str]:
    own = {f.name: f.value for f in record.figures}
    float_ = {f.name: f.value for f in record.reference_figures}
    alike = {f.name: f.value for f in record.agreement_figures}
    change = own["mAP"] - float_["mAP"]
    figures = [own["mAP"], own["mAP50"]]
    shown = [f"{v:.2f}" for v in figures]
    return [name, *shown, f"{change:+.2f}", f"{alike['agreement mAP']:.2f}", *more]


def write_calib(args: argparse.Namespace, first: Path) -> None:
    """Write the images that calibrated as one array, for other tools."""
    import msgspec

    from trtq.artifact import read_json
    from trtq.data.preprocess import Preprocess
    from trtq.flow.data import open_samples

    record = read_json(first / "quantize.json")
    picture = msgspec.convert(record["preprocess"], Preprocess)
    samples = open_samples(args.data, None, preprocess=picture)
    used = [
        i for i, name in enumerate(samples.ids) if name in set(record["data"]["calibration_ids"])
    ]
    batches = samples.select(used).batches(1)
    np.save(args.write_calib, np.concatenate([b.input.numpy() for b in batches]))


def main() -> None:
    """Quantize, evaluate, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w6a6", "w4a8"])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--target", default="")
    parser.add_argument("--write-calib", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser, bits=["w8a8"])
    if SMOKE:
        args.model, args.data = _smoke_files()
    folder = args.out.parent / "detection-work" if args.write_calib else scratch()
    rows, first = [], Path()
    for bits in args.bits:
        made, *cost = _quantized(args, bits, folder)
        first = first if first.name else made
        record = _scored(args, made / "model.qdq.onnx", first)
        if not rows:
            own = {f.name: f.value for f in record.reference_figures}
            rows.append(["float", f"{own['mAP']:.2f}", f"{own['mAP50']:.2f}", *[""] * 6])
        plan = _plan(args, made) if bits == "w8a8" else ""
        rows.append(_row(f"trtq {bits}", record, _share(made), *cost, plan))
        print(" | ".join(rows[-1]), flush=True)
    for peer in args.peer:
        name, _, path = peer.partition("=")
        rows.append(_row(name, _scored(args, Path(path), first), *[""] * 4))
        print(" | ".join(rows[-1]), flush=True)
    if args.write_calib:
        write_calib(args, first)
    _write(args, rows, record.images)


def _write(args: argparse.Namespace, rows: list[list[str]], images: int) -> None:
    head = ["file", "mAP", "mAP50", "change", "agreement mAP", "tensors in codes / in float"]
    head += ["quantize", "peak memory", f"plan for {args.target}" if args.target else "plan"]
    lines = [
        "# Detection",
        "",
        f"`{Path(args.model).name}`, {CALIB} images for calibration and {images} others evaluated. "
        "Made by `benchmarks/detection.py`, whose first lines say how.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    args.out.write_text("\n".join(lines))


def _smoke_files() -> tuple[str, str]:
    """Return a detector of coloured cells and pictures of them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    from tests.support.detector import SIZE, CellDetector, pictures

    folder = scratch()
    torch.onnx.export(
        CellDetector().eval(), (torch.randn(1, 3, SIZE, SIZE),), folder / "cells.onnx", dynamo=True
    )
    return str(folder / "cells.onnx"), f"coco:{pictures(folder / 'cells', 10)}"


if __name__ == "__main__":
    main()
