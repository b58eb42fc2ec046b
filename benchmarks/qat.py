"""What training brings back: PTQ, PTQ with the family's methods, and QAT, next to ModelOpt's QAT.

Usage: TRTQ_DATA=... python benchmarks/qat.py [--models ...] [--bits ...] [--epochs N] \
    [--images N] [--modelopt-python PY] --out FILE

QAT starts from the PTQ encodings. The figure is top-1 of the exported file in ONNX Runtime on the
CIFAR-10 test images (ModelOpt: of its torch model). Every conv and linear is quantized, the first
and the last at 8 bits. "FP32, trained" had the same training with no codes in place: it shows what
the images alone bring. ModelOpt trains with the same images in the same order, the same mirroring
and crops, loss, optimizer and schedule; its BatchNorm is not folded.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from smoke import arguments

MODELS = ("resnet20", "mobilevit_xxs")
BITS = ("w8a8", "w4a8", "w4a4")
# Of SGD with momentum on the folded network. At w8a8 nothing must be learned back, and a mobile
# network wants a small rate.
RATES = {("resnet20", "w8a8"): 1e-3, ("mobilevit_xxs", "w8a8"): 1e-4}
OTHER_RATES = {"resnet20": 1e-3, "mobilevit_xxs": 3e-4}
HEAD = [
    "| model | bits | what | top-1 % | points against FP32 | agreement % | images | |",
    "|---|---|---|---|---|---|---|---|",
]


def shared(name: str) -> dict[str, Any]:
    from models import settings

    own = settings(name)
    return {
        k: own[k]
        for k in ("model", "model_arg", "checkpoint", "data", "input_size", "preset")
        if k in own
    }


def rate_of(name: str, bits: str) -> float:
    return RATES.get((name, bits), OTHER_RATES[name])


def training(name: str, bits: str, epochs: int, images: int) -> dict[str, Any]:
    return {**shared(name), "epochs": epochs, "limit": images, "lr": rate_of(name, bits)}


def measured(name: str, folder: Path) -> Any:
    from models import evaluation

    from trtq import EvaluateSpec, evaluate

    given = {k: v for k, v in shared(name).items() if k in ("input_size", "preset")}
    files = {"onnx": str(folder / "model.qdq.onnx"), "reference": str(folder / "model.fp32.onnx")}
    return evaluate(EvaluateSpec.make({**evaluation(name), **given, **files, "batch_size": 50}))


def line(name: str, bits: str, what: str, r: Any, note: str) -> str:
    return (
        f"| {name} | {bits} | {what} | {r.top1:.2f} | {r.top1 - r.reference_top1:+.2f} | "
        f"{r.agreement:.2f} | {r.images} | {note} |"
    )


def trained(name: str, bits: str, encodings: Path, out: Path, epochs: int, images: int) -> str:
    from trtq import FinetuneSpec, finetune

    values = {**training(name, bits, epochs, images), "out": str(out), "encodings": str(encodings)}
    record = finetune(FinetuneSpec.make(values))
    return (
        f"{len(record.history)} epochs of {min(images, 50_000)} images, "
        f"{record.seconds['train']:.0f} s, rate {rate_of(name, bits):g}"
    )


def without_codes(source: Path, target: Path) -> Path:
    """Write encodings that leave every tensor in float, for the control."""
    from trtq import Encodings

    given = Encodings.load(source)
    target.mkdir(parents=True, exist_ok=True)
    none = dict.fromkeys(given.formats, "the control trains without codes")
    return Encodings(amax={}, formats={}, left_in_float=none, origin=given.origin).save(
        target / "encodings.safetensors"
    )


def rows(
    name: str, bits: str, args: argparse.Namespace, folder: Path, *, control: bool, emit: Any
) -> None:
    from models import settings

    from trtq import QuantizeSpec, quantize

    cache = {"calib_cache": str(folder / "cache")}
    for what, preset in (("PTQ", "none"), ("PTQ with methods", "auto")):
        record = quantize(
            QuantizeSpec.make(
                {
                    **settings(name),
                    **cache,
                    "out": str(folder / what),
                    "bits": bits,
                    "preset_quant": preset,
                }
            )
        )
        emit(
            line(
                name,
                bits,
                what,
                measured(name, folder / what),
                ", ".join(m.name for m in record.methods),
            )
        )
    start = folder / "PTQ/encodings.safetensors"
    if control:
        note = trained(
            name,
            bits,
            without_codes(start, folder / "none"),
            folder / "control",
            args.epochs,
            args.images,
        )
        emit(line(name, "fp32", "FP32, trained", measured(name, folder / "control"), note))
    note = trained(name, bits, start, folder / "qat", args.epochs, args.images)
    emit(line(name, bits, "QAT", measured(name, folder / "qat"), note))
    if args.modelopt_python:
        command = [
            args.modelopt_python,
            __file__,
            "--modelopt-row",
            name,
            bits,
            "--epochs",
            str(args.epochs),
            "--images",
            str(args.images),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
        if not found:
            emit(
                f"| {name} | {bits} | ModelOpt QAT | failed: "
                f"{done.stderr.strip().splitlines()[-1:]} | | | | |"
            )
            return
        r = json.loads(found[0][7:])
        emit(
            f"| {name} | {bits} | ModelOpt QAT | {r['top1']:.2f} | "
            f"{r['top1'] - r['float']:+.2f} | {r['agreement']:.2f} | {r['images']} "
            f"| {args.epochs} epochs of {min(args.images, 50_000)} images, {r['seconds']:.0f} "
            f"s; PTQ of the same ranges {r['ptq']:.2f} |"
        )


def modelopt_row(name: str, bits: str, epochs: int, images: int) -> dict[str, float]:
    """Run in a process of ModelOpt's own."""
    import copy

    import modelopt.torch.quantization as mtq
    import numpy as np
    import torch
    from methods import modelopt_config
    from models import evaluation, settings

    from trtq.data.preprocess import batches, resolve_preprocess
    from trtq.data.source import open_source
    from trtq.models.load import load_model
    from trtq.train.objective import Objective
    from trtq.train.run_state import Draws, keep_freed_memory_, rate

    keep_freed_memory_()
    own = settings(name)
    teacher = load_model(
        own["model"], args=own.get("model_arg"), checkpoint=Path(own["checkpoint"])
    ).module.eval()
    size = tuple(int(v) for v in own["input_size"].split("x"))
    preprocess, _ = resolve_preprocess(input_size=size, preset=own["preset"])
    source, test = open_source(own["data"]), open_source(evaluation(name)["data"])
    calibration = list(batches(source, source.sample(own["calib_images"], 0), preprocess, 32))
    model = copy.deepcopy(teacher)
    config = modelopt_config(model, bits, "mse" if bits == "w8a8" else "max")
    model = mtq.quantize(model, config, forward_loop=lambda m: [m(x) for x in calibration])

    def score() -> tuple[float, float, float]:
        right = same = floats = 0
        model.eval()
        with torch.no_grad():
            for i, batch in enumerate(batches(test, range(len(test)), preprocess, 50)):
                labels = torch.tensor(test.labels[i * 50 : i * 50 + len(batch)])
                found, wanted = model(batch).argmax(1), teacher(batch).argmax(1)
                right, same, floats = (
                    right + int((found == labels).sum()),
                    same + int((found == wanted).sum()),
                    floats + int((wanted == labels).sum()),
                )
        return tuple(100.0 * v / len(test) for v in (right, same, floats))

    before, _, full = score()
    objective = Objective(distill=0.5, temperature=2.0, weights=None, ignore=-100, own=None)
    many, few = (
        [p for p in model.parameters() if p.ndim > 1],
        [p for p in model.parameters() if p.ndim <= 1],
    )
    optimizer = torch.optim.SGD(
        [{"params": many}, {"params": few}], lr=rate_of(name, bits), momentum=0.9
    )
    began = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        order = [int(i) for i in np.random.default_rng([0, epoch]).permutation(len(source))][
            :images
        ]
        steps = math.ceil(len(order) / 64)
        for step, decoded in enumerate(batches(source, order, preprocess, 64)):
            part = order[step * 64 : step * 64 + len(decoded)]
            drawn = Draws(
                "flip-crop",
                len(part),
                size[1:],
                torch.Generator().manual_seed(epoch * 1_000_003 + step),
            )
            batch, _ = drawn.vary(decoded, None, range(len(part)))
            with torch.no_grad():
                asked = teacher(batch)
            parts = objective.parts(
                model(batch), torch.tensor([source.labels[i] for i in part]), asked
            )
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate_of(
                name, bits
            ) * rate("cosine", (epoch + step / steps) / epochs)
            optimizer.zero_grad()
            sum(p.share * p.total / p.norm for p in parts).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    after, agreement, _ = score()
    return {
        "top1": after,
        "agreement": agreement,
        "float": full,
        "ptq": before,
        "images": len(test),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--bits", nargs="*", default=BITS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--modelopt-python")
    parser.add_argument("--modelopt-row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["resnet20"], bits=["w8a8"], epochs=1, images=32)
    if args.modelopt_row:
        print("RESULT " + json.dumps(modelopt_row(*args.modelopt_row, args.epochs, args.images)))
        return
    lines = list(HEAD)

    def emit(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    for name in args.models:
        for i, bits in enumerate(args.bits):
            with tempfile.TemporaryDirectory() as folder:
                rows(name, bits, args, Path(folder), control=i == 0, emit=emit)
    if args.out:
        usage = (
            f"TRTQ_DATA=<images> python benchmarks/qat.py --models {' '.join(args.models)} "
            f"--bits {' '.join(args.bits)} --epochs {args.epochs}"
        )
        usage += f" --images {args.images} --modelopt-python <python with nvidia-modelopt>"
        args.out.write_text(
            f"# Training with the codes in place\n\n`{usage}`\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
