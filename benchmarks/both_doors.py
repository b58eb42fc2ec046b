"""The same network through both doors: the module, and the ONNX file that torch.onnx writes of it.

Usage: python benchmarks/both_doors.py [--out FILE.md] [MODEL ...]

Both are quantized on the same samples. Layers are paired by their weights' scales, so that neither
names nor the order of branches count; the rest by the closest scale of the same role. A row is
equal when both have the same number of quantizers and no scale differs by more than 0.1 %.

Rows are kept in FILE.jsonl beside FILE.md. A stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smoke import SMOKE, arguments, scratch
from subprocess_runner import print_result, run_apart
from timm_sweep import MODELS

SAMPLES, SIZE = 4, 128
MOST = 1e-3  # relative difference of two scales
SECONDS, GIGABYTES = 900.0, 12.0


def network(name: str) -> tuple[Any, int]:
    """Return a module with random weights, and the side of its images."""
    import torch

    torch.manual_seed(0)
    if SMOKE:
        from trtq.testing.models import tiny_cnn

        return tiny_cnn().eval(), 32
    import timm

    module = timm.create_model(name, pretrained=False).eval()
    fixed = module.pretrained_cfg.get("fixed_input_size")
    return module, module.pretrained_cfg["input_size"][1] if fixed else SIZE


def write_onnx(module: Any, example: Any, path: Path) -> None:
    """Write a module as PyTorch's own exporter does, with an open batch."""
    import torch

    torch.onnx.export(
        module,
        (example,),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        verbose=False,
    )


def run_one(name: str) -> dict[str, Any]:
    """Quantize one network twice and compare the scales."""
    import torch

    import trtq

    start = time.perf_counter()
    module, size = network(name)
    images = torch.randn(SAMPLES, 3, size, size)
    model = trtq.load(module, example=images, name=name)
    folder = scratch()
    write_onnx(model.module, images, folder / "model.onnx")
    first, second = (
        trtq.quantize(
            door,
            list(images),
            calib_images=SAMPLES,
            parity_images=SAMPLES,
            calibrator="max",
            preset_quant="none",
            calib_cache=str(scratch()),
        )
        for door in (model, trtq.load(str(folder / "model.onnx")))
    )
    return {
        **compare(first, second),
        "size": size,
        "seconds": time.perf_counter() - start,
    }


def compare(first: Any, second: Any) -> dict[str, Any]:
    """Return how many quantizers each has, and the largest difference of a pair of scales."""
    a, b = (_Scales(q) for q in (first, second))
    worst = _pair(a.weighted, b.weighted)
    for role in a.others.keys() | b.others.keys():
        worst += _pair(a.others.get(role, []), b.others.get(role, []))
    far = [(d, n) for d, n in worst if d > MOST]
    return {
        "torch": len(first.placement.active),
        "onnx": len(second.placement.active),
        "worst": max((d for d, _ in worst), default=0.0),
        "apart": [n for _, n in sorted(far, reverse=True)[:3]],
        "equal": not far and len(first.placement.active) == len(second.placement.active),
    }


class _Scales:
    """The scales of a quantized model: of layers with weights, and of other operands by role."""

    def __init__(self, quantized: Any) -> None:
        active = quantized.placement.active
        weighted = {q.layer for q in active if q.is_weight}
        layers: dict[str, list[Any]] = {}
        self.others: dict[str, list[tuple[str, list[Any]]]] = {}
        for q in active:
            scale = quantized.encodings.scale(q.name).double().flatten()
            if q.layer in weighted:
                layers.setdefault(q.layer, []).append((not q.is_weight, scale))
            else:
                self.others.setdefault(str(q.role), []).append((q.name, [scale]))
        self.weighted = [
            (layer, [s for _, s in sorted(parts, key=lambda p: p[0])])
            for layer, parts in layers.items()
        ]


def _pair(
    ours: Iterable[tuple[str, list[Any]]], theirs: list[tuple[str, list[Any]]]
) -> list[tuple[float, str]]:
    """Pair each of ours with the closest of theirs; return the differences and the names."""
    left, found = list(theirs), list[tuple[float, str]]()
    for name, scales in ours:
        apart = [_apart(scales, other) for _, other in left]
        if not apart:
            found.append((float("inf"), name))
            continue
        best = min(range(len(apart)), key=apart.__getitem__)
        found.append((max(apart[best]), name))
        del left[best]
    return [*found, *((float("inf"), name) for name, _ in left)]


def _apart(a: list[Any], b: list[Any]) -> list[float]:
    """Return the relative difference of each pair of scales, the weight's first."""
    if [s.shape for s in a] != [s.shape for s in b]:
        return [float("inf")]
    return [
        float(((x - y).abs() / x.abs().clamp_min(1e-30)).max()) for x, y in zip(a, b, strict=True)
    ]


def row_of(name: str, found: dict[str, Any]) -> str:
    """Return one row of the table."""
    if "error" in found:
        return f"| {name} | {found['error'][:240].replace('|', '/')} | | | | | |"
    result = "equal" if found["equal"] else f"differs: {', '.join(found['apart'])}"
    return (
        f"| {name} | {result} | {found['torch']} | {found['onnx']} | {found['worst']:.1e} | "
        f"{found['size']} | {found['seconds']:.0f} |"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    equal = sum(bool(r.get("equal")) for r in rows.values())
    lines = [
        "# The same network through both doors",
        "",
        f"Command: `python benchmarks/both_doors.py`. The module, and the file that torch.onnx "
        f"(dynamo) writes of it; random weights, {SAMPLES} samples, calibrator max. Worst: the "
        "largest relative difference of two scales that belong together, at most 1e-3 for `equal`.",
        "",
        f"{equal} of {len(rows)} equal.",
        "",
        "| model | result | quantizers: torch | ONNX | worst | image size | s |",
        "|---|---|---|---|---|---|---|",
        *(row_of(n, r) for n, r in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the models, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--failed", action="store_true", help="repeat rows that were not equal")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = arguments(parser, models=["tiny"])
    if args.one:
        try:
            print_result(run_one(args.one))
        except Exception as exc:  # a row of the table
            print_result({"error": f"{type(exc).__name__}: {exc}"})
        return
    path = args.out.with_suffix(".jsonl") if args.out else None
    rows: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        rows = {r.pop("name"): r for r in map(json.loads, path.read_text().splitlines())}
    for name in args.models or MODELS:
        if name not in rows or (args.failed and not rows[name].get("equal")):
            line = [sys.executable, __file__, "--one", name]
            rows[name] = run_apart(line, seconds=SECONDS, gigabytes=GIGABYTES)
            print(row_of(name, rows[name]), flush=True)
            if path is not None:
                path.write_text(
                    "".join(json.dumps({"name": n, **r}) + "\n" for n, r in rows.items())
                )
    if args.out:
        args.out.write_text(table(rows))


if __name__ == "__main__":
    main()
