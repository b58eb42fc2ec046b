"""Kernels, INT8 share and bytes of the sm_86 plan: trtq's Q/DQ file beside ModelOpt's.

Usage: TRTQ_DATA=... python benchmarks/kernels.py --modelopt-python PY [--models ...] \
    --out benchmarks/results/kernels.md

ModelOpt quantizes the same model by its torch and by its ONNX path. PY is a Python with
nvidia-modelopt[onnx] 0.47 and trtq. The weights are random and 16 images calibrate: the comparison
is about where the pairs are and what the builder makes of them. TensorRT for RTX builds all files
with what is not quantized in FP16, batch 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from smoke import arguments, few
from subprocess_runner import print_result, run_apart
from targets import MODELS

IMAGES = few(16, 8)
TOOLS = ("trtq", "modelopt-torch", "modelopt-onnx")


def quantized_file(tool: str, name: str, data: str, folder: str) -> tuple[str, str]:
    """Return the Q/DQ file of a tool, and the float file it started from."""
    from trtq import QuantizeSpec, quantize

    given: dict[str, Any] = {
        "model": MODELS[name],
        "data": f"{data}/imagenet-sample.zip",
        "calib_images": IMAGES,
    }
    if name == "tiny":
        given |= {"input_size": (3, 32, 32)}
    if name == "fcn_resnet18":
        given |= {"input_size": (3, 240, 320), "model_arg": {"num_classes": 11}}
    spec = QuantizeSpec(**given, out=f"{folder}/q", calib_cache=f"{folder}/cache")
    if tool == "trtq":
        quantize(spec)
        return f"{folder}/q/model.qdq.onnx", ""
    import torch

    from trtq.commands.loading import open_model, open_preprocess
    from trtq.data.preprocess import batches
    from trtq.data.source import open_source

    loaded = open_model(spec)
    preprocess, _ = open_preprocess(spec, loaded)
    source = open_source(spec.data, None)
    images = list(batches(source, source.sample(IMAGES, 0), preprocess, 8))
    model, path = loaded.module.eval(), f"{folder}/m.onnx"
    export = {
        "opset_version": 17,
        "dynamo": False,
        "input_names": ["input"],
        "dynamic_axes": {"input": {0: "n"}},
    }
    if tool == "modelopt-onnx":
        import numpy as np
        from modelopt.onnx.quantization import quantize as quantize_onnx

        torch.onnx.export(model, (images[0][:1],), path, **export)
        quantize_onnx(
            path,
            quantize_mode="int8",
            calibration_data={"input": np.concatenate([b.numpy() for b in images])},
            calibration_method="max",
            output_path=f"{folder}/m.q.onnx",
            calibration_eps=["cpu"],
        )
        return f"{folder}/m.q.onnx", path
    import modelopt.torch.quantization as mtq

    mtq.quantize(model, mtq.INT8_DEFAULT_CFG, forward_loop=lambda m: [m(x) for x in images])
    with torch.no_grad():
        torch.onnx.export(model, (images[0][:1],), path, **export)
    return path, ""


def run_one(tool: str, name: str, data: str) -> dict[str, Any]:
    from trtq import BuildSpec, build
    from trtq.engine.plan_kernels import read_plan_kernels

    with tempfile.TemporaryDirectory() as folder:
        file, _ = quantized_file(tool, name, data, folder)
        made = build(
            BuildSpec(
                onnx=file,
                target="sm86",
                precision="fp16",
                batch=(1, 1, 1),
                out=f"{folder}/e.engine",
            )
        )
        rows = read_plan_kernels(Path(f"{folder}/e.engine").read_bytes(), made.builder.version, 1)
    assert rows is not None
    products = [r for r in rows if r.kind in ("conv", "linear", "matmul")]
    macs = sum(r.macs for r in products)
    return {
        "kernels": len(rows),
        "products": len(products),
        "int8": 100.0 * sum(r.macs for r in products if r.precision == "int8") / max(macs, 1),
        "fused": sum(r.kind == "runtime_fusion" for r in rows),
        "written_mb": sum(r.written for r in rows) / 8e6,
        "moved_mb": sum(r.bits for r in rows) / 8e6,
        "pairs": made.quantized_tensors,
        "mb": made.engine_bytes / 1e6,
        "gmacs": macs / 1e9,
    }


def render(found: dict[str, dict[str, dict[str, Any]]], machine: str) -> str:
    lines = [
        "# What TensorRT for RTX makes of our Q/DQ files and of ModelOpt's",
        "",
        f"Made by `benchmarks/kernels.py` on {machine}: one builder for all, compute capability "
        "8.6, batch 1, FP16 beside INT8; ModelOpt 0.47.",
        "Counted in the rows inside the plan. INT8: share of the multiply-accumulates of "
        "convolutions and products whose first operand is",
        "INT8; those inside fused regions (`fused`) are not in the rows, and count for nobody. "
        "Written: what kernels write, MB (0.1 % apart is equal).",
        "",
        "| model | file | pairs | kernels | fused | INT8, % | GMACs in rows | written, MB | "
        "moved, MB | plan, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for name, tools in found.items():
        for tool, r in tools.items():
            if "error" in r:
                lines.append(f"| {name} | {tool} | {r['error'][:140]} | | | | | | | |")
                continue
            lines.append(
                f"| {name} | {tool} | {r['pairs']} | {r['kernels']} | {r['fused']} | "
                f"{r['int8']:.1f} | {r['gmacs']:.2f} | "
                f"{r['written_mb']:.2f} | {r['moved_mb']:.2f} | {r['mb']:.2f} |"
            )
        ours, peers = (
            tools.get("trtq", {}),
            [r for t, r in tools.items() if t != "trtq" and "error" not in r],
        )
        if "error" in ours or not ours or not peers:
            continue
        worse = []
        if ours["kernels"] > min(r["kernels"] for r in peers):
            worse.append(f"{ours['kernels']} kernels against {min(r['kernels'] for r in peers)}")
        if ours["written_mb"] > 1.001 * min(r["written_mb"] for r in peers):
            worse.append(
                f"{ours['written_mb']:.2f} MB written against "
                f"{min(r['written_mb'] for r in peers):.2f}"
            )
        if ours["int8"] < max(r["int8"] for r in peers) - 0.05:
            worse.append(f"{ours['int8']:.1f} % INT8 against {max(r['int8'] for r in peers):.1f}")
        verdicts.append(
            f"- {name}: "
            f"""{
                "; ".join(worse)
                if worse
                else "no more kernels or bytes written than the better peer, "
                "INT8 share at least equal"
            }"""
        )
    return "\n".join([*lines, "", "Against the better peer in each column:", "", *verdicts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--modelopt-python", required=True)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = arguments(parser, tools=["trtq"], modelopt_python=sys.executable)
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                result = run_one(*args.one, os.environ["TRTQ_DATA"])
            except Exception as exc:
                result = {
                    "error": f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
                }
        print_result(result)
        return
    from trtq.machine import cpu_name, package_version

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in args.models:
        for tool in args.tools:
            python = sys.executable if tool == "trtq" else args.modelopt_python
            line = [
                python,
                __file__,
                "--one",
                tool,
                name,
                "--modelopt-python",
                python,
                "--out",
                str(args.out),
            ]
            found.setdefault(name, {})[tool] = run_apart(line)
            print(name, tool, found[name][tool], flush=True)
            machine = f"{cpu_name()}, TensorRT-RTX {package_version('tensorrt-rtx-cu13')}"
            args.out.write_text(render(found, machine))


if __name__ == "__main__":
    main()
