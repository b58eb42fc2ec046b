"""What a training step costs with the codes in place, next to ModelOpt's QAT.

Usage: TRTQ_DATA=... python benchmarks/qat_cost.py [--models ...] [--device cpu|cuda] \
    [--compile] [--modelopt-python PY] --out FILE

The figures are time and memory over the same step in float. A step is forward, cross-entropy and
backward on one batch of 64 random images in channels-last, w8a8. Float and quantized steps take
turns; the ratio is that of their medians. Memory is the high-water mark of what torch allocated
during one step (on a CPU from its profiler, on a GPU torch.cuda.max_memory_allocated), without the
weights. The float step is the captured graph with BatchNorm folded for trtq and the eager module
in training mode for ModelOpt: each tool is compared with what it starts from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from smoke import arguments, few

BATCH, ROUNDS = few(64, 4), few(15, 2)


def model_of(name: str) -> tuple[torch.nn.Module, tuple[int, int, int], dict[str, Any]]:
    from models import settings

    from trtq.models.load import load_model

    plain = {
        n: {"model": f"timm:{n}", "input_size": "3x224x224"}
        for n in ("resnet18", "deit_tiny_patch16_224")
    }
    own = plain[name] if name in plain else settings(name)
    checkpoint = Path(own["checkpoint"]) if "checkpoint" in own else None
    loaded = load_model(own["model"], args=own.get("model_arg"), checkpoint=checkpoint)
    return loaded.module, tuple(int(v) for v in own["input_size"].split("x")), own


def peak(step: Callable[[], None], device: torch.device) -> float:
    """Return the most bytes that one step held at once, beside what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = sorted(
        (e.start_ns(), e.nbytes())
        for e in seen.profiler.kineto_results.events()
        if e.name() == "[memory]"
    )
    now = most = 0
    for _, size in events:
        now += size
        most = max(most, now)
    return float(most)


def timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(
    plain: Callable[[], None],
    quantized: Callable[[], None],
    device: torch.device,
    *,
    memory: bool = True,
) -> dict[str, float]:
    for step in (plain, quantized, plain, quantized):
        step()
    times = [(timed(plain, device), timed(quantized, device)) for _ in range(ROUNDS)]
    a, b = (statistics.median(t[i] for t in times) for i in (0, 1))
    held = (peak(plain, device), peak(quantized, device)) if memory else (0.0, 0.0)
    return {
        "float_ms": 1e3 * a,
        "ms": 1e3 * b,
        "ratio": b / a,
        "float_mb": held[0] / 1e6,
        "mb": held[1] / 1e6,
    }


def stepper(
    module: Callable[[torch.Tensor], torch.Tensor],
    learning: list[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    lean: bool,
) -> Callable[[], None]:
    from contextlib import nullcontext

    def step() -> None:
        for p in learning:
            p.grad = None
        if lean:
            from trtq.train.learned import LeanMemory

            context: Any = LeanMemory()
        else:
            context = nullcontext()
        with context:
            answer = module(x)
        torch.nn.functional.cross_entropy(answer, y).backward()

    return step


def trtq_rows(name: str, device: torch.device, compiled: bool) -> dict[str, dict[str, float]]:
    from trtq import Encodings, QuantizeSpec, quantize
    from trtq.graph.capture import capture
    from trtq.graph.device import to_device_
    from trtq.testing.images import write_images
    from trtq.train.run_state import keep_freed_memory_
    from trtq.train.training_graph import TrainingGraph

    keep_freed_memory_()
    torch.manual_seed(0)
    module, size, own = model_of(name)
    with tempfile.TemporaryDirectory() as folder:
        if "data" not in own:
            own["data"] = str(write_images(Path(folder) / "images", 16, size=256))
        spec = {
            **{k: v for k, v in own.items() if k != "calib_images"},
            "out": folder,
            "calib_cache": folder,
            "calib_images": 16,
            "preset_quant": "none",
        }
        quantize(QuantizeSpec.make({**spec, "parity_images": 4, "batch_size": 8}))
        encodings = Encodings.load(Path(folder) / "encodings.safetensors")
    captured = capture(module, size)
    graph = TrainingGraph(captured.module, encodings, learn_amax=True)
    to_device_(graph.module, device)
    plain = to_device_(captured.module, device)
    floats = [p.requires_grad_(True) for p in plain.parameters()]
    x = torch.randn(BATCH, *size, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, plain(x[:2]).shape[1], (BATCH,), device=device)
    learning: list[torch.Tensor] = [*graph.trained, *graph.ranges]
    found = {
        "trtq": ratios(
            stepper(plain, floats, x, y, False), stepper(graph.module, learning, x, y, True), device
        )
    }
    if compiled:
        a, b = torch.compile(plain), torch.compile(graph.module)
        found["trtq, both compiled"] = ratios(
            stepper(a, floats, x, y, False), stepper(b, learning, x, y, False), device
        )
        found["trtq --compile over eager float"] = ratios(
            stepper(plain, floats, x, y, False), stepper(b, learning, x, y, False), device
        )
    return found


def modelopt_row(name: str, device: torch.device) -> dict[str, float]:
    """Run in a process of ModelOpt's own."""
    import copy

    import modelopt.torch.quantization as mtq
    from methods import modelopt_config

    from trtq.train.run_state import keep_freed_memory_

    keep_freed_memory_()
    module, size, _ = model_of(name)
    x = torch.randn(BATCH, *size, device=device).contiguous(memory_format=torch.channels_last)
    module = module.to(device).train()
    quantized = mtq.quantize(
        copy.deepcopy(module),
        modelopt_config(module, "w8a8", "max"),
        forward_loop=lambda m: m(x[:16]),
    ).train()
    y = torch.randint(0, module(x[:2]).shape[1], (BATCH,), device=device)
    plain, other = list(module.parameters()), list(quantized.parameters())
    return ratios(
        stepper(module, plain, x, y, False), stepper(quantized, other, x, y, False), device
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["resnet20", "mobilevit_xxs"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--modelopt-python")
    parser.add_argument("--modelopt-row", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["resnet20"])
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.modelopt_row:
        print("RESULT " + json.dumps(modelopt_row(args.modelopt_row, device)))
        return
    lines = [
        "| model | tool | float ms | quantized ms | time | float MB | quantized MB | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def emit(name: str, tool: str, r: dict[str, float]) -> None:
        memory = f"{r['float_mb']:.0f} | {r['mb']:.0f} | {r['mb'] / max(r['float_mb'], 1e-9):.2f} x"
        lines.append(
            f"| {name} | {tool} | {r['float_ms']:.0f} | {r['ms']:.0f} | {r['ratio']:.2f} x | "
            f"{memory} |"
        )
        print(lines[-1], flush=True)

    for name in args.models:
        for tool, r in trtq_rows(name, device, args.compile).items():
            emit(name, tool, r)
        if args.modelopt_python:
            command = [
                args.modelopt_python,
                __file__,
                "--modelopt-row",
                name,
                "--device",
                args.device,
                "--threads",
                str(args.threads),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
            if found:
                emit(name, "ModelOpt 0.47", json.loads(found[0][7:]))
            else:
                lines.append(
                    f"| {name} | ModelOpt | failed: {done.stderr.strip().splitlines()[-1:]} | | "
                    "| | | |"
                )
                print(lines[-1], flush=True)
    if args.out:
        usage = (
            f"TRTQ_DATA=<images> python benchmarks/qat_cost.py --models {' '.join(args.models)} "
            f"--device {args.device} --threads {args.threads}"
        )
        usage += (" --compile" if args.compile else "") + (
            " --modelopt-python <python with nvidia-modelopt>" if args.modelopt_python else ""
        )
        args.out.write_text(
            f"# What a training step costs\n\n`{usage}`\n\ntorch {torch.__version__}, "
            f"{args.device.upper()}.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
