"""How the cost of each job grows with samples, layers and pixels.

Usage: python benchmarks/growth.py --out benchmarks/results/growth.md

One of the three is changed at a time, from a ResNet of basic blocks with 18 layers, 128 images of
160x160. Images and weights are random: only time is measured. The unit is one plain eager forward
pass of the float model over the same images, in the same process, so a figure that stays the same
from left to right grows as the passes do, and one that falls has a fixed part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from smoke import arguments, few
from torchvision.models.resnet import BasicBlock, ResNet

import trtq


class Size(NamedTuple):
    """What a job works on: blocks in each of four stages, side of an image, number of images."""

    blocks: int
    side: int
    images: int


BASE = few(Size(2, 160, 128), Size(1, 32, 16))
AXES: Mapping[str, tuple[Size, ...]] = {
    "images": tuple(BASE._replace(images=n) for n in few((64, 128, 256), (16,))),
    "pixels": tuple(BASE._replace(side=n) for n in few((112, 160, 224), (32,))),
    "layers": tuple(BASE._replace(blocks=n) for n in few((1, 2, 4), (1,))),
}
LABELS: Mapping[str, Callable[[Size], str]] = {
    "images": lambda s: f"{s.images} images",
    "pixels": lambda s: f"{s.side}x{s.side}",
    "layers": lambda s: f"{8 * s.blocks + 2} layers",
}
FIRST = few(32, 4)  # images that the slower jobs look at
Job = Callable[[], object]


def seconds(job: Job) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def plain(model: torch.nn.Module, batches: list[torch.Tensor]) -> float:
    """Return the seconds of one pass over the images, the best of three."""
    with torch.inference_mode():
        model(batches[0])
        return min(seconds(lambda: [model(b) for b in batches]) for _ in range(3))


def measure(size: Size, folder: Path) -> dict[str, tuple[float, int]]:
    """Return seconds and images of each job, the pass itself as ``pass``."""
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [size.blocks] * 4, num_classes=10).eval()
    images = torch.randn(size.images, 3, size.side, size.side)
    samples, some = list(images), list(images[:FIRST])
    given = {"min_agreement": 0.0, "calib_cache": str(folder / "cache")}
    whole = {**given, "calib_images": size.images}
    slow = {**given, "calib_images": FIRST}
    times: dict[str, tuple[float, int]] = {
        "pass": (plain(model, list(images.split(8))), size.images)
    }

    def timed(name: str, images: int, job: Callable[[], object]) -> object:
        answer: list[object] = []
        times[name] = (seconds(lambda: answer.append(job())), images)
        return answer[0]

    for calibrator in ("max", "mse"):
        quantized = timed(
            f"quantize, calibrator {calibrator}",
            size.images,
            lambda c=calibrator: trtq.quantize(model, samples, calibrator=c, **whole),
        )
    assert isinstance(quantized, trtq.Quantized)
    timed("save (Q/DQ and float ONNX)", size.images, lambda: quantized.save(folder / "out"))
    timed("evaluate against float", size.images, lambda: quantized.evaluate(samples))
    analyze: dict[str, Any] = {"images": FIRST, "calib_images": FIRST, "bits": ("4",)}
    analyze |= {"task": "classification", "calib_cache": given["calib_cache"]}  # nothing is reused
    timed("analyze, jsd, one width", FIRST, lambda: trtq.analyze(model, some, **analyze))
    learned = {"bits": "w4a8", "method": ("reconstruct",), "method_arg": {"reconstruct.steps": 5}}
    timed(
        "quantize w4a8, reconstruct, 5 steps",
        FIRST,
        lambda: trtq.quantize(model, some, **slow, **learned),
    )
    labelled = [(image, i % 10) for i, image in enumerate(some)]
    trained = {"epochs": 1, "batch_size": 8, "val": labelled[:8], "augment": "none"}
    timed("finetune, one epoch", FIRST, lambda: trtq.finetune(quantized, labelled, **trained))
    timed("build for an RTX 3080", size.images, lambda: trtq.build(quantized, target="rtx3080"))
    return times


def table(axis: str, found: Mapping[Size, dict[str, tuple[float, int]]]) -> list[str]:
    """Return a table: a row a job, a column a size, in passes over the job's own images."""
    sizes = AXES[axis]
    heads = [LABELS[axis](s) for s in sizes]
    lines = ["", f"## By {axis}", "", f"| job | {' | '.join(heads)} | seconds at the last |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for job in found[sizes[0]]:
        cells = []
        for size in sizes:
            whole, of = found[size]["pass"]
            took, images = found[size][job]
            cells.append(f"{took / (whole * images / of):.1f}")
        lines.append(f"| {job} | {' | '.join(cells)} | {found[sizes[-1]][job][0]:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = arguments(parser)
    found: dict[Size, dict[str, tuple[float, int]]] = {}
    for size in dict.fromkeys(s for sizes in AXES.values() for s in sizes):
        with tempfile.TemporaryDirectory() as folder:
            found[size] = measure(size, Path(folder))
        print(size, {k: round(v, 2) for k, (v, _) in found[size].items()}, flush=True)
    about = (
        f"`python benchmarks/growth.py`, {torch.get_num_threads()} threads of the CPU, one run. "
        f"Passes of the float model over the images that a job looks at ({FIRST} for analyze, "
        "reconstruct and finetune); a step of reconstruct or of training costs what it costs "
        "whatever the images. Seconds are of this machine."
    )
    lines = ["# How costs grow", "", about]
    for axis in AXES:
        lines += table(axis, found)
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
