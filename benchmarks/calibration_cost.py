"""Time and memory of calibration over plain eager forward passes, for trtq and other tools.

Usage: TRTQ_DATA=... python benchmarks/calibration_cost.py [--modelopt-python PY] \
    [--modelopt-onnx-python PY2] --out FILE.md

All tools use the same images. Every row is a process of its own. It first runs the plain float
model eagerly over the images twice and times the second pass; then it calibrates on the same
tensors. Ratio = calibration / plain pass in the same process. Memory = highest resident size
after calibration minus that after the plain pass. Tools that read ONNX get the float file that
trtq exported.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from ptq_accuracy import prepare
from smoke import arguments, few

BATCH = 16


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream(batches, images):
    """Repeat the same batches until ``images`` images were given.

    This measures the memory that many images take without storing many images.
    """

    def cycle():
        while True:
            yield from batches

    return islice(cycle(), images // BATCH)


def trtq_calibrate(model, batches, images, method):
    from trtq.graph.capture import capture
    from trtq.quant.calibrate import make_encodings, summarize_all
    from trtq.quant.observe import observe
    from trtq.quant.placement import place

    captured = capture(model, tuple(batches[0].shape[1:]))
    with torch.inference_mode():
        captured.module(batches[0])
    memory = peak_mb()
    start = time.perf_counter()
    placement = place(captured.module)
    seen = observe(captured.module, placement, stream(batches, images), mode=method)
    stats = summarize_all(placement, seen, method, 99.99)
    make_encodings(captured.module, placement, stats, {})
    return time.perf_counter() - start, memory


def modelopt_torch(model, batches, images, method):
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    config["algorithm"] = method
    target = copy.deepcopy(model)
    memory, start = peak_mb(), time.perf_counter()
    mtq.quantize(target, config, forward_loop=lambda m: [m(x) for x in stream(batches, images)])
    return time.perf_counter() - start, memory


def modelopt_onnx(path, batches, images, method):
    from modelopt.onnx.quantization import quantize

    data = np.concatenate([b.numpy() for b in stream(batches, images)])
    memory, start = peak_mb(), time.perf_counter()
    quantize(
        path,
        quantize_mode="int8",
        calibration_data={"input": data},
        calibration_method=method,
        output_path=path + ".mo.onnx",
    )
    return time.perf_counter() - start, memory


def onnxruntime_static(path, batches, images, method):
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.it = ({"input": b.numpy()} for b in stream(batches, images))

        def get_next(self):
            return next(self.it, None)

    memory, start = peak_mb(), time.perf_counter()
    quantize_static(
        path,
        path + ".ort.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return time.perf_counter() - start, memory


def one(tool: str, method: str, images: int, onnx_path: str) -> dict[str, float]:
    from trtq.data.preprocess import batches as load

    model, preprocess, source, indices = prepare("efficientnet_lite0")
    data = list(load(source, indices, preprocess, BATCH))
    plain = []
    with torch.inference_mode():
        for _ in range(2):
            start = time.perf_counter()
            for x in data:
                model(x)
            plain.append(time.perf_counter() - start)
    run = {
        "trtq": trtq_calibrate,
        "modelopt-torch": modelopt_torch,
        "modelopt-onnx": modelopt_onnx,
        "onnxruntime": onnxruntime_static,
    }[tool]
    subject = model if tool in ("trtq", "modelopt-torch") else onnx_path
    seconds, before = run(subject, data, images, method)
    factor = images / (len(data) * BATCH)
    return {
        "plain_s": plain[1] * factor,
        "seconds": seconds,
        "ratio": seconds / (plain[1] * factor),
        "memory_mb": peak_mb() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modelopt-python")
    parser.add_argument("--modelopt-onnx-python")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = arguments(parser)
    if args.one:
        tool, method, images, path = args.one
        print("RESULT " + json.dumps(one(tool, method, int(images), path)))
        return
    own, torch_py, onnx_py = sys.executable, args.modelopt_python, args.modelopt_onnx_python
    usual, many = few(256, 32), few(4096, 64)
    rows = [
        (own, "trtq", m, usual)
        for m in few(("max", "ema", "percentile", "entropy", "mse"), ("mse",))
    ]
    rows += [(own, "trtq", m, many) for m in few(("max", "mse"), ("max",))]
    rows += [(torch_py, "modelopt-torch", m, usual) for m in ("max", "mse")]
    rows += [(own, "onnxruntime", m, usual) for m in few(("MinMax", "Entropy"), ("MinMax",))]
    rows += [(onnx_py, "modelopt-onnx", m, usual) for m in ("max", "entropy")]
    lines = [
        "| tool | calibrator | images | plain forward s | calibration s | ratio | memory over "
        "plain MB |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        from models import settings

        from trtq import QuantizeSpec, quantize

        quantize(
            QuantizeSpec.make(
                {
                    **settings("efficientnet_lite0"),
                    "out": folder,
                    "calib_images": 16,
                    "calib_cache": folder,
                }
            )
        )
        for python, tool, method, images in rows:
            if python is None:
                continue
            command = [
                python,
                __file__,
                "--one",
                tool,
                method,
                str(images),
                f"{folder}/model.fp32.onnx",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
            if found:
                r = json.loads(found[0][7:])
                line = (
                    f"| {tool} | {method} | {images} | {r['plain_s']:.1f} | {r['seconds']:.1f} "
                    f"| {r['ratio']:.2f} | {r['memory_mb']:.0f} |"
                )
            else:
                line = (
                    f"| {tool} | {method} | {images} | failed: "
                    f"{done.stderr.strip().splitlines()[-1:]} | | | |"
                )
            print(line, flush=True)
            lines.append(line)
    if args.out:
        usage = (
            "TRTQ_DATA=<images> python benchmarks/calibration_cost.py --modelopt-python <...> "
            "--modelopt-onnx-python <...>"
        )
        args.out.write_text(
            f"# Cost of calibration, EfficientNet-Lite0\n\n`{usage}`\n\nBatches of {BATCH}, torch "
            f"{torch.__version__}, {torch.get_num_threads()} threads, CPU. Memory is the highest "
            "resident size after calibration over that before it (images and model loaded, plain "
            "passes done; for trtq also the graph captured).\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
