"""``trtq quantize`` end to end (files to files) against ModelOpt's torch path: quantization and ONNX export alone.

Usage: TRTQ_DATA=... python benchmarks/end_to_end.py --modelopt-python PY --out benchmarks/results/end_to_end.md
EfficientNet-Lite0, 256 images. trtq's time is its whole process: imports, weights, decoding, calibration, export, the parity gate,
writing. ModelOpt's is only mtq.quantize on images already in memory plus torch.onnx.export, without imports and decoding, once
with torch's older exporter (TorchScript) and once with its default one.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def modelopt(dynamo: bool) -> float:
    import modelopt.torch.quantization as mtq
    import torch
    from ptq_accuracy import prepare

    from trtq.data.preprocess import batches

    model, preprocess, source, indices = prepare("efficientnet_lite0")
    data = list(batches(source, indices, preprocess, 16))
    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    start = time.perf_counter()
    mtq.quantize(model, config, forward_loop=lambda m: [m(x) for x in data])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.onnx.export(model, (data[0][:1],), f"{folder}/m.onnx", dynamo=dynamo, **({} if dynamo else {"opset_version": 17}))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modelopt-python")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--modelopt", choices=("TorchScript", "default"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.modelopt:
        print(f"RESULT {modelopt(args.modelopt == 'default')}")
        return
    from models import settings

    s = settings("efficientnet_lite0")
    lines = ["| what | calibrator | s |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for calibrator in ("max", "mse"):
            command = [sys.executable, "-m", "trtq", "quantize", s["model"], "--data", s["data"], "--class-index", s["class_index"]]
            command += ["--checkpoint", s["checkpoint"], "--checkpoint-match", "order", "--calibrator", calibrator, "--calib-images", "256"]
            command += ["--out", f"{folder}/{calibrator}", "--calib-cache", f"{folder}/cache"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            lines.append(f"| trtq quantize, whole process | {calibrator} | {time.perf_counter() - start:.1f} |")
            parts = json.loads(Path(f"{folder}/{calibrator}/quantize.json").read_text())["seconds"]
            lines.append(
                f"| of that, by step: {', '.join(f'{k} {v:.1f}' for k, v in parts.items())} | {calibrator} | {sum(parts.values()):.1f} |"
            )
    for exporter in ("TorchScript", "default") if args.modelopt_python else ():
        done = subprocess.run([args.modelopt_python, __file__, "--modelopt", exporter], capture_output=True, text=True, check=False)
        found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
        seconds = f"{float(found[0][7:]):.1f}" if found else f"failed: {done.stderr.strip().splitlines()[-1:]}"
        lines.append(f"| ModelOpt torch, quantize + {exporter} export only | max | {seconds} |")
    print("\n".join(lines))
    if args.out:
        usage = "TRTQ_DATA=<images> python benchmarks/end_to_end.py --modelopt-python <python with nvidia-modelopt>"
        args.out.write_text(f"# End to end, EfficientNet-Lite0, 256 images\n\n`{usage}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
