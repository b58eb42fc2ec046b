"""The same network through both doors: the module, and the ONNX file that torch.onnx writes of it.

Usage: python benchmarks/both_doors.py [--out FILE.md] [MODEL ...]

Both are quantized on the same samples. Layers are paired by their weights' scales, so that neither
names nor the order of branches count; the rest by the closest scale of the same role. Operands of a
product of two activations count as one, by the root of the quotient of their scales: torch.onnx
multiplies both by the root of an attention's factor, which the module multiplies their product by.
A row is equal when each quantizer has a partner and no scale of an activation differs by more than
0.1 %.

Rows are kept in FILE.jsonl beside FILE.md. A stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from smoke import SMOKE, arguments, scratch
from subprocess_runner import Forked
from timm_sweep import MODELS

SAMPLES, SIZE = 4, 64
LARGER = {"inception_v3": 96}  # what the smallest feature map of a family needs
MOST = 1e-3  # relative difference of two scales
TIES = 1e-2  # channels of weights that may take another fraction
SECONDS, GIGABYTES = 900.0, 12.0
PRELOAD = ("torch._dynamo", "torch.onnx", "onnxscript", "onnxruntime", "timm", "trtq.flow.quantize")

Layer = tuple[str, Any, Any]  # its name, the scale of its input, that of its weight


def network(name: str) -> tuple[Any, int]:
    """Return a module with random weights, and the side of its images."""
    import torch

    torch.manual_seed(0)
    if SMOKE:
        from trtq.testing.models import tiny_cnn

        return tiny_cnn().eval(), 32
    import timm

    module = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():  # a head that answers 0
                parameter.normal_(std=0.02)
    fixed = module.pretrained_cfg.get("fixed_input_size")
    size = module.pretrained_cfg["input_size"][1] if fixed else LARGER.get(name, SIZE)
    return module, size


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
    """Return how many quantizers each has, and how far their scales are apart."""
    a, b = (_Scales(q) for q in (first, second))
    pairs = _pair(a.weighted, b.weighted)
    for role in a.others.keys() | b.others.keys():
        pairs += _pair(a.others.get(role, []), b.others.get(role, []))
    alone = sum(apart is None for _, apart in pairs)
    known = [(name, apart) for name, apart in pairs if apart is not None]
    inputs = {name: float(d.max()) for name, (d, _) in known}
    weights = [d for _, (_, d) in known if d is not None]
    far = {n: d for n, d in inputs.items() if d > MOST}
    channels, other = (sum(int(n) for n in c) for c in _counts(weights))
    return {
        "torch": len(first.placement.active),
        "onnx": len(second.placement.active),
        "worst": max(inputs.values(), default=0.0),
        "apart": sorted(far, key=far.__getitem__, reverse=True)[:3],
        "channels": channels,
        "other": other,
        "equal": not far and not alone and other <= TIES * channels,
    }


def _counts(weights: list[Any]) -> tuple[list[int], list[int]]:
    """Return how many channels each weight has, and how many of them differ."""
    return [d.numel() for d in weights], [int((d > MOST).sum()) for d in weights]


class _Scales:
    """The scales of a quantized model: of layers with weights, and of other operands by role."""

    def __init__(self, quantized: Any) -> None:
        active = quantized.placement.active
        weighted = {q.layer for q in active if q.is_weight}
        layers: dict[str, dict[bool, Any]] = {}
        products: dict[tuple[str, str], list[Any]] = {}
        self.others: dict[str, list[Layer]] = {}
        for q in active:
            scale = quantized.encodings.scale(q.name).double().flatten()
            if q.layer in weighted:
                layers.setdefault(q.layer, {})[q.is_weight] = scale
            else:
                products.setdefault((q.layer, _role(str(q.role))), []).append(scale)
        for (layer, role), scales in products.items():
            scale = (scales[0] / scales[1]).sqrt() if len(scales) > 1 else scales[0]
            self.others.setdefault(role, []).append((f"{layer}.{role}", scale, None))
        self.weighted: list[Layer] = [
            (layer, parts.get(False, parts[True]), parts[True]) for layer, parts in layers.items()
        ]


def _role(role: str) -> str:
    """Return a role; the operands of a product of two activations have one."""
    return "product" if role in ("lhs", "rhs") else role


def _pair(ours: list[Layer], theirs: list[Layer]) -> list[tuple[str, Any]]:
    """Pair each of ours with the closest of theirs: the name, and how far inputs and weights are.

    What has no partner has None.
    """
    left, found = list(theirs), list[tuple[str, Any]]()
    for name, inputs, weight in ours:
        close = [
            _distance(inputs, their_input, i)
            if weight is None
            else _distance(weight, their_weight, i)
            for i, (_, their_input, their_weight) in enumerate(left)
        ]
        best = min(close, default=(float("inf"), 0))
        if best[0] == float("inf"):
            found.append((name, None))
            continue
        _, other, their_weight = left.pop(best[1])
        weights = None if weight is None else _apart(weight, their_weight)
        found.append((name, (_apart(inputs, other), weights)))
    return [*found, *((name, None) for name, _, _ in left)]


def _distance(a: Any, b: Any, index: int) -> tuple[float, int]:
    """Return the usual difference of two scales, infinite where they cannot belong together."""
    alike = b is not None and a.shape == b.shape
    return (float(_apart(a, b).median()) if alike else float("inf")), index


def _apart(a: Any, b: Any) -> Any:
    """Return the relative difference of each value of two scales."""
    return (a - b).abs() / a.abs().clamp_min(1e-30)


def row_of(name: str, found: dict[str, Any]) -> str:
    """Return one row of the table."""
    if "error" in found:
        error = found["error"].splitlines()[0][:240].replace("|", "/")
        return f"| {name} | {error} | | | | | | |"
    result = "equal" if found["equal"] else f"differs: {', '.join(found['apart'])}"
    return (
        f"| {name} | {result} | {found['torch']} | {found['onnx']} | {found['worst']:.1e} | "
        f"{found['other']} of {found['channels']} | {found['size']} | {found['seconds']:.0f} |"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    equal = sum(bool(r.get("equal")) for r in rows.values())
    missing = [n for n in MODELS if n not in rows]
    lines = [
        "# The same network through both doors",
        "",
        f"Command: `python benchmarks/both_doors.py`. The module, and the file that torch.onnx "
        f"(dynamo) writes of it, which folds BatchNorm by its own arithmetic; random weights, "
        f"{SAMPLES} samples, calibrator max. Worst: the largest relative difference of two scales "
        f"of activations, at most {MOST:g} for `equal`. The scale of a weight is the best of 81 "
        "fractions of its largest value: a weight on the edge between two codes decides for "
        f"another fraction now and then. Those channels are counted, at most {TIES:.0%} may. "
        "The two operands of an attention's product count as one, by the root of the quotient of "
        "their scales: the file multiplies both by the root of the factor that the module has "
        "behind the product.",
        "",
        f"{equal} of {len(rows)} equal." + (f" Not run: {', '.join(missing)}." if missing else ""),
        "",
        "| model | result | quantizers: torch | ONNX | worst | other fraction | image size | s |",
        "|---|---|---|---|---|---|---|---|",
        *(row_of(n, r) for n, r in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the models, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--failed", action="store_true", help="repeat rows that were not equal")
    args = arguments(parser, models=["tiny"])
    path = args.out.with_suffix(".jsonl") if args.out else None
    rows: dict[str, dict[str, Any]] = {}
    if path is not None and path.exists():
        rows = {r.pop("name"): r for r in map(json.loads, path.read_text().splitlines())}
    processes = Forked(PRELOAD, seconds=SECONDS, gigabytes=GIGABYTES)
    for name in args.models or MODELS:
        if name not in rows or (args.failed and not rows[name].get("equal")):
            rows[name] = processes.run(run_one, name)
            print(row_of(name, rows[name]), flush=True)
            if path is not None:
                path.write_text(
                    "".join(json.dumps({"name": n, **r}) + "\n" for n, r in rows.items())
                )
    if args.out:
        args.out.write_text(table(rows))


if __name__ == "__main__":
    main()
