"""What ``trtq build`` costs over a direct call of the builder.

Usage: python benchmarks/build_overhead.py [--rounds 5] \
    --out benchmarks/results/build_overhead.md

Both build the same file with the same profile, each as one process, in turns. The weights are
random; the builder is TensorRT for RTX, compute capability 8.6. The figure compared is the wall
time of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smoke import TINY, arguments, few

MODELS = (
    "resnet18",
    "resnet50",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
DIRECT = """
import sys
import tensorrt_rtx as trt
source, out = sys.argv[1:3]
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse(open(source, "rb").read())
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
side = int(sys.argv[3])
profile.set_shape("input", (1, 3, side, side), (8, 3, side, side), (32, 3, side, side))
config.add_optimization_profile(profile)
open(out, "wb").write(bytes(builder.build_serialized_network(network, config)))
"""


def timed(line: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(line, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(parser, rounds=1, models=["tiny"])
    from timm_sweep import make_images

    from trtq.machine import cpu_name

    lines = [
        "# What `trtq build` costs over the builder alone",
        "",
        f"Made by `benchmarks/build_overhead.py` on {cpu_name()}, {os.cpu_count()} cores: INT8 "
        "Q/DQ files, compute capability 8.6, whole processes",
        f"(Python's start included on both sides), in turns, {args.rounds} rounds; medians. "
        "Inside: the time the manifest says the builder took.",
        "",
        "| model | builder alone, s | trtq build, s | ratio of medians | lowest and highest "
        "ratio of a round | inside, s |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images", 8)
        for name in args.models:
            from trtq import QuantizeSpec, quantize

            quantize(
                QuantizeSpec(
                    model=few(f"timm:{name}", TINY.get(name, "")),
                    input_size=few(None, (3, 32, 32)),
                    data=f"{folder}/images",
                    out=f"{folder}/{name}",
                    calib_images=8,
                    parity_images=8,
                    calibrator="max",
                    preset_quant="none",
                    calib_cache=f"{folder}/cache",
                )
            )
            source = f"{folder}/{name}/model.qdq.onnx"
            direct = [
                sys.executable,
                "-c",
                DIRECT,
                source,
                f"{folder}/direct.engine",
                few("224", "32"),
            ]
            ours = [
                sys.executable,
                "-m",
                "trtq",
                "build",
                source,
                "--target",
                "sm86",
                "--out",
                f"{folder}/ours.engine",
            ]
            timed(direct), timed(ours)  # the files are in the page cache from here on
            pairs, inside = [], []
            for i in range(args.rounds):
                order = (direct, ours) if i % 2 == 0 else (ours, direct)
                taken = {id(line): timed(line) for line in order}
                pairs.append((taken[id(direct)], taken[id(ours)]))
                inside.append(json.loads(Path(f"{folder}/ours.engine.json").read_text())["seconds"])
            a, b = (statistics.median(p[k] for p in pairs) for k in (0, 1))
            ratios = [y / x for x, y in pairs]
            lines.append(
                f"| {name} | {a:.2f} | {b:.2f} | {b / a:.3f} | {min(ratios):.3f} to "
                f"{max(ratios):.3f} | {statistics.median(inside):.2f} |"
            )
            print(lines[-1], flush=True)
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
