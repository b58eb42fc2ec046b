"""Capture, quantize, export, check parity and build 63 timm models for sm_86.

Usage: python benchmarks/timm_sweep.py [--out FILE.md] [MODEL ...]

The weights are random. Each model runs in a process of its own, so that one that fails or runs out
of memory does not take the others with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from smoke import TINY, arguments, few

MODELS = [
    # CNNs
    "resnet18",
    "resnext50_32x4d",
    "seresnet18",
    "densenet121",
    "vgg11_bn",
    "inception_v3",
    "xception41",
    "dla34",
    "regnetx_002",
    "res2net50_26w_4s",
    "skresnet18",
    "cspdarknet53",
    "darknet53",
    "nf_resnet50",
    "convnext_atto",
    "hrnet_w18_small",
    "regnety_002",
    "ese_vovnet19b_dw",
    "selecsls42b",
    "hgnetv2_b0",
    "starnet_s1",
    "inception_next_atto",
    "mambaout_femto",
    # depthwise and mobile
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "ghostnet_100",
    "mnasnet_small",
    "fbnetc_100",
    "lcnet_050",
    "tinynet_e",
    "mobilenetv4_conv_small",
    "ghostnetv2_100",
    "fasternet_t0",
    # re-parameterised
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "repghostnet_050",
    "repvit_m0_9",
    # plain transformers
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "convit_tiny",
    "eva02_tiny_patch14_224",
    # windowed and hierarchical
    "swin_tiny_patch4_window7_224",
    "twins_svt_small",
    "pvt_v2_b0",
    "crossvit_9_240",
    "pit_ti_224",
    # hybrids
    "mobilevit_xxs",
    "mobilevitv2_050",
    "efficientformer_l1",
    "levit_128s",
    "coatnet_pico_rw_224",
    "edgenext_xx_small",
    "efficientvit_b0",
    "efficientvit_m0",
    # MLP-mixers and poolers
    "mixer_s32_224",
    "gmlp_ti16_224",
    "resmlp_12_224",
    "poolformer_s12",
]


def make_images(folder: Path, count: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize((300, 300), Image.Resampling.BICUBIC).save(
            folder / f"{i}.png"
        )


def run_one(model: str, images: str, out: str) -> dict[str, object]:
    from trtq import BuildSpec, QuantizeSpec, build, quantize

    record = quantize(
        QuantizeSpec(
            model=few(f"timm:{model}", TINY["tiny"]),
            input_size=few(None, (3, 32, 32)),
            data=images,
            out=out,
            calib_images=8,
            parity_images=8,
            calibrator="max",
            calib_cache=f"{out}/cache",
        )
    )
    manifest = build(
        BuildSpec(onnx=f"{out}/model.qdq.onnx", target="sm86", out=f"{out}/engine.engine")
    )
    audit = manifest.audit
    return {
        "quantized": len(record.quantizers),
        "float": len(record.left_in_float),
        "sqnr": record.parity.quantization_sqnr_db,
        "margin": record.parity.margin_db,
        "dynamic": record.model["dynamic_batch"],
        "mb": manifest.engine_bytes / 1e6,
        "int8": f"{audit.convolutions.get('int8', 0)}/{manifest.quantized_convolutions}"
        if audit
        else "?",
        "diff": record.model["capture_max_rel_diff"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--images", default="")
    args = arguments(parser, models=["tiny"])
    if args.one:
        with tempfile.TemporaryDirectory() as out:
            try:
                result: dict[str, object] = run_one(args.models[0], args.images, out)
            except Exception as exc:
                result = {"error": f"{type(exc).__name__}: {exc}"}
        print("RESULT " + json.dumps(result))
        return
    rows = [
        "| model | result | INT8 tensors | float | SQNR dB | INT8 convolutions | engine MB | "
        "batch | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), 8)
        for model in args.models:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--one", "--images", folder, model],
                capture_output=True,
                text=True,
                check=False,
            )
            line = next((ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")), None)
            r = (
                json.loads(line[7:])
                if line
                else {
                    "error": f"process ended with {done.returncode}: "
                    f"{done.stderr.strip().splitlines()[-1:]}"
                }
            )
            seconds = time.perf_counter() - start
            if "error" in r:
                row = f"| {model} | {r['error']} | | | | | | | {seconds:.0f} |"
            else:
                passed += 1
                batch = "dynamic" if r["dynamic"] else "1"
                sqnr = "exact" if r["sqnr"] is None else f"{r['sqnr']:.1f}"
                row = (
                    f"| {model} | pass | {r['quantized']} | {r['float']} | {sqnr} | {r['int8']} "
                    f"| {r['mb']:.1f} | {batch} | {seconds:.0f} |"
                )
            print(row, flush=True)
            rows.append(row)
    text = (
        "# timm sweep\n\nCommand: `python benchmarks/timm_sweep.py`. Random weights, 8 images, "
        f"calibrator max, sm_86.\n\n{passed} of {len(args.models)} passed.\n\n"
        + "\n".join(rows)
        + "\n"
    )
    print(f"{passed} of {len(args.models)} passed")
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
