"""What trtq's own work costs on a GPU: calibration, sensitivity, learned rounding, QAT.

Usage: python benchmarks/gpu.py --out benchmarks/results/gpu.md [--device cuda:0] [--models ...]

No data and no network are needed: weights and images are random, which changes no time.

Calibration: images a second of the calibration pass (mse), and its time over that of plain forward
passes on the same batches, which already lie on the GPU; both after a warm-up, turn by turn, the
median of the rounds. Peak memory is what torch allocated at most during the pass.
Reconstruct: milliseconds a step of 32 images. Hessian: milliseconds a probe of 16 images.
QAT: milliseconds a step of 32 images, eager and compiled, data loading included.

``--device cpu`` runs the same on the CPU, for a comparison on one machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from smoke import SMOKE, arguments, few, scratch

ROUNDS = few(5, 1)
IMAGES = few(256, 8)
BATCHES = few((1, 8, 32, 128), (1, 4))


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False).eval()


def _yolov8n() -> Any:
    from ultralytics import YOLO

    return YOLO("yolov8n.yaml").model.eval()


def _tiny() -> Any:
    from trtq.testing.models import tiny_cnn

    return tiny_cnn().eval()


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, int, int]]] = {
    "ResNet-50": (lambda: _timm("resnet50"), (3, 224, 224)),
    "ViT-B/16": (lambda: _timm("vit_base_patch16_224"), (3, 224, 224)),
    "MobileViT-S": (lambda: _timm("mobilevit_s"), (3, 256, 256)),
    "YOLOv8n": (_yolov8n, (3, 640, 640)),
}
if SMOKE:
    MODELS = {"tiny": (_tiny, (3, 32, 32))}


class Clock:
    """Seconds of work on a device, with everything before and after it done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Wait for what was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def of(self, work: Callable[[], object]) -> float:
        """Return the seconds of one call."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak_mb(self, work: Callable[[], object]) -> float | None:
        """Return the most that torch allocated during a call; None on the CPU."""
        if self.device.type != "cuda":
            work()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        self.of(work)
        return torch.cuda.max_memory_allocated(self.device) / 2**20


class Net:
    """A captured model on a device, with random images there.

    Attributes:
        model: captured.
        images: ``IMAGES`` of them, on the device.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        import trtq

        make, size = MODELS[name]
        torch.manual_seed(0)
        self.name, self.device, self.size = name, device, size
        self.model = trtq.load(make(), input_size=size).on(device)
        count = IMAGES if size[1] < 600 else IMAGES // 4
        self.images = torch.rand(count, *size).to(device)


def calibration(net: Net, batch: int, clock: Clock) -> dict[str, Any]:
    """Return the cost of a calibration pass beside plain passes."""
    from trtq.graph.feed import channels_last
    from trtq.quant.observe import observe
    from trtq.quant.placement import place

    graph = net.model.graph.module
    placement, batches = place(graph), net.images.split(batch)

    def plain() -> None:
        with torch.inference_mode():
            for part in batches:
                graph(*channels_last((part,)))

    def calibrated() -> None:
        observe(graph, placement, batches, mode="mse")

    plain(), calibrated()
    times = [(clock.of(plain), clock.of(calibrated)) for _ in range(ROUNDS)]
    forward, pass_ = (statistics.median(t) for t in zip(*times, strict=True))
    return {
        "images_s": len(net.images) / pass_,
        "ratio": pass_ / forward,
        "peak_mb": clock.peak_mb(calibrated),
    }


def long_work(net: Net, clock: Clock) -> dict[str, float]:
    """Return milliseconds of a step of reconstruct, of a probe of the Hessian, of a QAT step."""
    import trtq

    data = net.images[: few(64, 8)].cpu()
    pairs = [(x, i % 2) for i, x in enumerate(data)]
    device = str(net.device)
    common = {"device": device, "preset_quant": "none", "bits": "w4a8"}
    steps = few((10, 30), (1, 3))

    def learned(count: int) -> float:
        options = {"reconstruct.steps": count}
        return clock.of(
            lambda: trtq.quantize(
                net.model, data, method=("reconstruct",), method_arg=options, **common
            )
        )

    learned(few(5, 2))  # calibrates: the others find its ranges in the cache
    few_steps, many = learned(steps[0]), learned(steps[1])
    found = {"reconstruct_ms": 1e3 * (many - few_steps) / (steps[1] - steps[0])}
    probes = few((4, 12), (2, 3))

    def hessian(count: int) -> float:
        return clock.of(
            lambda: trtq.analyze(
                net.model,
                pairs,
                metric="hessian",
                probes=count,
                images=16,
                calib_images=16,
                bits=("4",),
                device=device,
                seed=count,
            )
        )

    found["hessian_ms"] = 1e3 * (hessian(probes[1]) - hessian(probes[0])) / (probes[1] - probes[0])
    start = trtq.quantize(net.model, data, **common)
    for compiled in few((False, True), (False,)):
        done = trtq.finetune(
            start, pairs, epochs=2, batch_size=32, device=device, compile=compiled, learn_amax=True
        )
        rate = done.record.history[-1].images_per_s  # of the epoch after the one that compiles
        found["qat_compiled_ms" if compiled else "qat_ms"] = 1e3 * 32 / rate
    return found


def _row(cells: list[object]) -> str:
    shown = ["-" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells]
    return f"| {' | '.join(shown)} |"


def page(device: torch.device, names: list[str]) -> str:
    """Return the page of results."""
    from trtq.bench.system_info import take_card

    clock = Clock(device)
    rows, work = list[str](), list[str]()
    for name in names:
        try:
            net = Net(name, device)
        except ImportError as exc:
            rows.append(_row([name, f"not installed: {exc.name}", None, None, None]))
            continue
        for batch in BATCHES:
            found = calibration(net, batch, clock)
            rows.append(_row([name, batch, found["images_s"], found["ratio"], found["peak_mb"]]))
            print(rows[-1], flush=True)
        if net.size[1] < 600:
            done = long_work(net, clock)
            work.append(_row([name, *(done.get(k) for k in WORK)]))
            print(work[-1], flush=True)
    card = msgspec.json.encode(take_card("cpu" if device.type == "cpu" else str(device))).decode()
    return "\n".join(
        [
            f"# trtq's work on {device}",
            "",
            f"`python benchmarks/gpu.py --device {device}`; torch {torch.__version__}, float32, "
            "TF32 off.",
            "",
            "| model | batch | calibration, images/s | over plain passes | peak MB |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "| model | reconstruct, ms a step | Hessian, ms a probe | QAT, ms a step | compiled |",
            "|---|---|---|---|---|",
            *work,
            "",
            "Machine:",
            "",
            f"    {card}",
            "",
        ]
    )


WORK = ("reconstruct_ms", "hessian_ms", "qat_ms", "qat_compiled_ms")


def main() -> None:
    """Measure every model and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    args = arguments(parser, device="cpu")
    from trtq.graph.device import choose_device

    device = choose_device(args.device)
    os.environ.setdefault("TRTQ_CALIB_CACHE", str(scratch()))
    text = page(device, args.models)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
