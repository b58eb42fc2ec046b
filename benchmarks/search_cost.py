"""What a search costs: each metric in passes of the model, the integer program in seconds.

Usage: python benchmarks/search_cost.py --out benchmarks/results/search_cost.md

The passes are of the same model over the same images. Images and weights are random: only time is
measured. Every figure is a ratio to plain eager passes of the captured graph in the same process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from smoke import TINY, arguments, few

from trtq.graph.capture import capture
from trtq.models.load import load_model
from trtq.quant.formats import read_options
from trtq.search.allocate import Choice, mixed_integer
from trtq.search.gradients import hessian
from trtq.search.layers import prepare_layers
from trtq.search.outputs import jsd, l2
from trtq.search.sensitivity import MetricArguments, SensitivityContext
from trtq.search.work_cache import WorkCache

Labelled = tuple[tuple[torch.Tensor, ...], torch.Tensor]  # inputs of a batch, and class indices


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def study(
    name: str, size: int, images: int, probes: int, widths: list[str]
) -> tuple[SensitivityContext, list[Labelled]]:
    captured = capture(load_model(name).module, (3, size, size))
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            (torch.randn(8, 3, size, size, generator=generator),),
            torch.randint(0, few(1000, 4), (8,), generator=generator),
        )
        for _ in range(images // 8)
    ]
    layers = prepare_layers(
        captured.module,
        read_options(widths),
        [b for b, _ in batches],
        calibrator="max",
        percentile=99.99,
    )
    made = SensitivityContext(
        graph=captured.module,
        layers=layers,
        batches=lambda: batches,
        units=WorkCache(None, "x"),
        begin=lambda *_: None,
        advance=lambda _: None,
        arguments=MetricArguments(probes=probes, trials=1, epsilon=1.0, seed=0),
    )
    return made, batches


def forward(made: SensitivityContext, batches: list[Labelled]) -> float:
    with torch.inference_mode():
        made.graph(*batches[0][0])
        return min(seconds(lambda: [made.graph(*feed) for feed, _ in batches]) for _ in range(3))


def backward(made: SensitivityContext, batches: list[Labelled]) -> float:
    """Return the seconds of a forward and a backward pass to every weight."""
    weights = [p.requires_grad_(True) for p in made.graph.parameters()]
    images, targets = torch.cat([x for (x,), _ in batches]), torch.cat([t for _, t in batches])

    def once() -> None:
        loss = torch.nn.functional.cross_entropy(made.graph(images), targets)
        torch.autograd.grad(loss, weights, allow_unused=True)

    once()
    whole = min(seconds(once) for _ in range(3))
    for p in made.graph.parameters():
        p.requires_grad_(False)
    return whole


def integer_program() -> list[float]:
    generator, found = np.random.default_rng(0), []
    labels = ("w2a2", "w4a4", "w6a6", "w8a8")
    bits = {o: int(o[1]) for o in labels}
    for _ in range(few(5, 1)):
        choices = []
        for i, (s, p) in enumerate(
            zip(generator.gamma(1.0, 5.0, 200), generator.integers(1e3, 1e6, 200), strict=True)
        ):
            macs = int(p) * int(generator.integers(10, 1000))
            costs = {
                "size": {o: p * b / 8 for o, b in bits.items()},
                "bitops": {o: macs * b * b for o, b in bits.items()},
                "energy": {o: macs * b * b / 1024 + 200 * p * b / 32 for o, b in bits.items()},
            }
            choices.append(
                Choice(
                    name=f"l{i}",
                    layers=(f"l{i}",),
                    sensitivity=s,
                    loss={o: s * 4.0**-b for o, b in bits.items()},
                    costs=costs,
                )
            )
        most = {b: sum(c.costs[b]["w8a8"] for c in choices) for b in ("size", "bitops", "energy")}
        budgets = {
            "size": 0.6 * most["size"],
            "bitops": 0.4 * most["bitops"],
            "energy": 0.5 * most["energy"],
        }
        found.append(seconds(lambda c=choices, b=budgets: mixed_integer(c, labels, b)))  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = arguments(parser)
    lines = ["| what | model | measured | asked for |", "|---|---|---|---|"]

    def emit(*cells: str) -> None:
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    for name, size in few(
        (
            ("timm:resnet18", 224),
            ("timm:mobilenetv2_100", 224),
            ("timm:deit_tiny_patch16_224", 224),
        ),
        ((TINY["tiny"], 32),),
    ):
        made, batches = study(name, size, 16, 2, ["2", "4", "6", "8"])
        plain = forward(made, batches)
        emit(
            "l2, four widths",
            name,
            f"{seconds(lambda m=made: l2(m)) / plain:.2f} forward passes",
            "6",
        )  # type: ignore[misc]
        made, batches = study(name, size, 16, 2, ["4"])
        plain, depth = forward(made, batches), len(made.layers)
        passes = seconds(lambda m=made: jsd(m)) / plain  # type: ignore[misc]
        emit(
            f"jsd, one width, {depth} layers",
            name,
            f"{passes:.1f} forward passes, {passes / depth:.2f} a layer",
            "0.6 a layer",
        )
    made, batches = study(few("timm:resnet50", TINY["tiny"]), few(224, 32), 8, 50, ["4"])
    unit = backward(made, batches)
    made.arguments = msgspec.structs.replace(made.arguments, probes=few(50, 4))
    started = time.perf_counter()
    _, said = hessian(made)
    spent = (time.perf_counter() - started) / unit
    emit(
        f"hessian, {said['probes']} probes",
        "timm:resnet50",
        f"{spent:.1f} forward and backward passes",
        "110 for 50 probes",
    )
    times = integer_program()
    emit(
        "integer program, 200 layers, 4 widths, 3 budgets",
        "five random",
        f"{min(times):.2f} to {max(times):.2f} s",
        "2 s",
    )
    if args.out:
        about = (
            "`python benchmarks/search_cost.py`, 2 CPU cores; ratios to plain passes of the "
            "same graph over the same images in the same process."
        )
        args.out.write_text(f"# What a search costs\n\n{about}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
