"""FP16 with the nodes that trtq keeps in FP32, beside ModelOpt's AutoCast and FP16 everywhere.

Usage: TRTQ_DATA=... python benchmarks/half.py --modelopt-python PY --out benchmarks/results/half.md

PY is a Python with nvidia-modelopt[onnx] 0.47 and trtq. Both tools take the ranges from the same
16 images; 256 others are evaluated. Every FP16 result is rounded (``trtq.export.fp16.rounded``):
ONNX Runtime's CPU would compute chains of FP16 ops in float32.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from smoke import arguments, few
from subprocess_runner import print_result, run_apart

NAMES = (
    "efficientnet_lite0",
    "resnet20",
    "mobilevit_xxs",
    "vit",
    "vit_outliers_1000",
    "vit_outliers_10000",
    "vit_outliers_100000",
)
TOOLS = few(("everywhere", "trtq", "AutoCast"), ("everywhere", "trtq"))
SEEN, EVALUATED = few(16, 4), few(256, 8)


def export(name: str, folder: str, opset: int) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
    """Return a float file, the images that ranges come from, and those to evaluate."""
    from models import settings

    from trtq import QuantizeSpec
    from trtq.commands.loading import open_model, open_preprocess
    from trtq.data.preprocess import batches
    from trtq.data.source import open_source
    from trtq.export.onnx_file import save_onnx
    from trtq.export.to_onnx import export_onnx
    from trtq.graph.capture import capture

    base, _, amplitude = name.partition("_outliers_")
    given = settings("vit" if base == "vit" else name)
    if amplitude:
        given |= {
            "model": f"{Path(__file__).parent / 'models.py'}:vit_with_outliers",
            "model_arg": {"amplitude": float(amplitude)},
        }
        given.pop("checkpoint", None)
    spec = QuantizeSpec.make({**given, "out": folder})
    loaded = open_model(spec)
    preprocess, _ = open_preprocess(spec, loaded)
    captured = capture(loaded.module, preprocess.input_size)
    path = f"{folder}/m.onnx"
    save_onnx(export_onnx(captured.module, opset=opset), Path(path))
    source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
    chosen = source.sample(SEEN + EVALUATED, 0)
    images = [b.numpy() for b in batches(source, chosen, preprocess, SEEN)]
    return path, images[:1], images[1:]


def run_one(tool: str, name: str, opset: int) -> dict[str, Any]:
    import onnx
    from onnx import TensorProto

    from trtq.export.fp16 import convert_to_half, elem_types, rounded
    from trtq.export.fp16_ranges import find_float_nodes
    from trtq.export.ort import open_session

    with tempfile.TemporaryDirectory() as folder:
        path, seen, others = export(name, folder, opset)
        model = onnx.load(path)
        if tool == "AutoCast":
            from modelopt.onnx.autocast import convert_to_mixed_precision

            np.savez(f"{folder}/seen.npz", input=seen[0])
            half = convert_to_mixed_precision(
                path, calibration_data=f"{folder}/seen.npz", keep_io_types=True
            )
        else:
            try:
                half = convert_to_half(
                    model, find_float_nodes(model, seen) if tool == "trtq" else ()
                )
            except Exception as exc:
                return {"error": str(exc)}
        types = elem_types(half)
        gives = [
            types.get(n.output[0]) for n in half.graph.node if n.op_type not in ("Cast", "Constant")
        ]
        plain, low = open_session(model), open_session(rounded(half))
        wanted, got = (
            np.concatenate([s.run(None, {s.get_inputs()[0].name: x})[0] for x in others]).astype(
                np.float64
            )
            for s in (plain, low)
        )
    noise = float(np.sum((wanted - got) ** 2))
    finite = math.isfinite(noise)
    return {
        "fp32": sum(k == TensorProto.FLOAT for k in gives),
        "fp16": sum(k == TensorProto.FLOAT16 for k in gives),
        "casts": sum(n.op_type == "Cast" for n in half.graph.node),
        "agreement": 100.0 * float((wanted.argmax(1) == got.argmax(1)).mean()),
        "sqnr": 10 * math.log10(float(np.sum(wanted**2)) / noise) if finite and noise else None,
        "finite": finite,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modelopt-python", required=True)
    parser.add_argument("--names", nargs="*", default=list(NAMES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = arguments(parser, names=["resnet20"], modelopt_python=sys.executable)
    if args.one:
        tool, name, opset = args.one
        print_result(run_one(tool, name, int(opset)))
        return
    from trtq.machine import cpu_name

    lines = [
        "# FP16: which nodes remain in FP32, and what that saves",
        "",
        f"Made by `benchmarks/half.py` on {cpu_name()}. Ranges from {SEEN} images, {EVALUATED} "
        "others evaluated against the float file in ONNX Runtime (CPU),",
        "every FP16 result rounded. AutoCast: ModelOpt 0.47, its defaults (data_max 512), the "
        "same images, inputs and outputs kept in FP32; it raises the",
        "opset to 13 or more. `vit_outliers_N`: the CIFAR-10 ViT with one channel of one token "
        "raised by N. Nodes: those that give FP32 or FP16, casts left out.",
        "",
        "| model | opset | tool | nodes in FP32 | nodes in FP16 | casts | equal predictions, % "
        "| SQNR, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in args.names:
        for opset in (13, 20) if "vit" in name else (20,):
            for tool in TOOLS:
                python = args.modelopt_python if tool == "AutoCast" else sys.executable
                line = [
                    python,
                    __file__,
                    "--one",
                    tool,
                    name,
                    str(opset),
                    "--modelopt-python",
                    python,
                    "--out",
                    str(args.out),
                ]
                r = run_apart(line)
                if "error" in r:
                    lines.append(f"| {name} | {opset} | {tool} | | | | {r['error'][:140]} | |")
                else:
                    sqnr = (
                        "NaN or infinite"
                        if not r["finite"]
                        else "equal"
                        if r["sqnr"] is None
                        else f"{r['sqnr']:.1f}"
                    )
                    lines.append(
                        f"| {name} | {opset} | {tool} | {r['fp32']} | {r['fp16']} | "
                        f"{r['casts']} | {r['agreement']:.1f} | {sqnr} |"
                    )
                print(lines[-1], flush=True)
                args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
