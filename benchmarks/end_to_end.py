"""``trtq quantize`` files to files against ModelOpt's torch path, quantization plus ONNX export.

Usage: TRTQ_DATA=... python benchmarks/end_to_end.py --modelopt-python PY \
    --out benchmarks/results/end_to_end.md

EfficientNet-Lite0, 256 images, max. Each round runs every row once in a process of its own; the
table has the medians. The call alone: trtq.quantize decodes, captures, calibrates, exports, runs
the parity gate and writes, and once more with the images in memory, as floats; ModelOpt's is
mtq.quantize on such images plus torch.onnx.export. All are timed after their imports, as the first
call in the process. The whole process: with interpreter start, imports and, where they are in
memory, decoding the images.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smoke import arguments, few

START = time.perf_counter()
ROUNDS = few(3, 1)


def run_trtq() -> dict[str, float]:
    import timm  # noqa: F401
    import torch.export._trace  # noqa: F401
    from models import settings

    import trtq.commands.quantize
    from trtq.specs import QuantizeSpec

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = {
            **settings("efficientnet_lite0"),
            "calibrator": "max",
            "out": f"{folder}/out",
            "calib_cache": f"{folder}/cache",
        }
        spec = QuantizeSpec.make(given)
        record = trtq.commands.quantize.quantize(spec)
    return {"call": time.perf_counter() - start, **record.seconds}


def run_trtq_in_memory() -> dict[str, float]:
    import timm  # noqa: F401
    import torch.export._trace  # noqa: F401
    from ptq_accuracy import prepare

    import trtq
    import trtq.commands.quantize
    from trtq.data.preprocess import batches

    model, preprocess, source, indices = prepare("efficientnet_lite0")
    data = [image for batch in batches(source, indices, preprocess, 16) for image in batch]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = {"calib_images": len(data), "calib_cache": f"{folder}/cache"}
        made = trtq.quantize(model, data, calibrator="max", **given)
        quantized = time.perf_counter() - start
        made.save(f"{folder}/out")
    return {"call": time.perf_counter() - start, "quantize": quantized}


def run_modelopt(dynamo: bool) -> dict[str, float]:
    import modelopt.torch.quantization as mtq
    import torch
    from ptq_accuracy import prepare

    from trtq.data.preprocess import batches

    model, preprocess, source, indices = prepare("efficientnet_lite0")
    data = list(batches(source, indices, preprocess, 16))
    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    start = time.perf_counter()
    mtq.quantize(model, config, forward_loop=lambda m: [m(x) for x in data])
    quantized = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.onnx.export(
            model,
            (data[0][:1],),
            f"{folder}/m.onnx",
            dynamo=dynamo,
            **({} if dynamo else {"opset_version": 17}),
        )
    return {"call": time.perf_counter() - start, "quantize": quantized}


ROWS = {
    "trtq": run_trtq,
    "trtq, images in memory": run_trtq_in_memory,
    "ModelOpt, TorchScript export": lambda: run_modelopt(False),
    "ModelOpt, default export": lambda: run_modelopt(True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modelopt-python")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = arguments(parser)
    if args.row:
        print("RESULT " + json.dumps({**ROWS[args.row](), "whole": time.perf_counter() - START}))
        return
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    failed: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name in ROWS:
            python = sys.executable if name.startswith("trtq") else args.modelopt_python
            if python is None or name in failed:
                continue
            start = time.perf_counter()
            done = subprocess.run(
                [python, __file__, "--row", name], capture_output=True, text=True, check=False
            )
            found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
            if found:
                seen[name].append(
                    {**json.loads(found[0][7:]), "whole": time.perf_counter() - start}
                )
            else:
                failed[name] = next(
                    (ln for ln in reversed(done.stderr.splitlines()) if "Error" in ln), "no message"
                )[:160]
    lines = [
        "| what | the call alone, s | the whole process, s | of the call, by step |",
        "|---|---|---|---|",
    ]
    for name, runs in seen.items():
        if not runs:
            lines.append(f"| {name} | failed: {failed.get(name, 'not asked for')} | | |")
            continue
        middle = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        steps = ", ".join(f"{k} {v:.1f}" for k, v in middle.items() if k not in ("call", "whole"))
        lines.append(f"| {name} | {middle['call']:.1f} | {middle['whole']:.1f} | {steps} |")
    print("\n".join(lines))
    if args.out:
        usage = (
            "TRTQ_DATA=<images> python benchmarks/end_to_end.py --modelopt-python <python with "
            "nvidia-modelopt>"
        )
        about = (
            f"Medians of {ROUNDS} rounds on 2 CPU cores, max calibration; the script's head "
            "says what each column counts."
        )
        args.out.write_text(
            f"# End to end, EfficientNet-Lite0, 256 images\n\n`{usage}`\n\n{about}\n\n"
            + "\n".join(lines)
            + "\n"
        )


if __name__ == "__main__":
    main()
