"""What training brings back: PTQ, PTQ with the family's methods, and QAT from the PTQ encodings, side by side.

Usage: TRTQ_DATA=... python benchmarks/qat.py [--models ...] [--bits ...] [--epochs N] [--images N] --out benchmarks/results/qat.md
Top-1 of the exported file in ONNX Runtime on the CIFAR-10 test images. Every conv and linear, the first and the last at 8 bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

MODELS = ("resnet20", "mobilevit_xxs")
BITS = ("w8a8", "w4a8", "w4a4")
RATES = {"resnet20": 1e-3, "mobilevit_xxs": 3e-4}


def rows(name: str, bits: str, epochs: int, images: int, folder: Path) -> list[str]:
    from models import evaluation, settings

    from trtq import EvaluateSpec, FinetuneSpec, QuantizeSpec, evaluate, finetune, quantize

    own, where = settings(name), evaluation(name)
    shared = {k: own[k] for k in ("input_size", "preset") if k in own}
    cache = {"calib_cache": str(folder / "cache")}
    lines = []

    def emit(what: str, out: Path, note: str) -> None:
        files = {"onnx": str(out / "model.qdq.onnx"), "reference": str(out / "model.fp32.onnx")}
        r = evaluate(EvaluateSpec.make({**where, **shared, **files, "batch_size": 50}))
        assert r.top1 is not None
        assert r.reference_top1 is not None
        lines.append(
            f"| {name} | {bits} | {what} | {r.top1:.2f} | {r.top1 - r.reference_top1:+.2f} | {r.agreement:.2f} | {r.images} | {note} |"
        )
        print(lines[-1], flush=True)

    for what, preset in (("PTQ", "none"), ("PTQ with methods", "auto")):
        record = quantize(QuantizeSpec.make({**own, **cache, "out": str(folder / what), "bits": bits, "preset_quant": preset}))
        emit(what, folder / what, ", ".join(m.name for m in record.methods))
    keep = ("model", "model_arg", "checkpoint", "data", *shared)
    values = {
        **{k: v for k, v in own.items() if k in keep},
        "out": str(folder / "qat"),
        "encodings": str(folder / "PTQ/encodings.safetensors"),
    }
    record = finetune(FinetuneSpec.make({**values, "epochs": epochs, "limit": images, "lr": RATES[name]}))
    spent = record.seconds["train"]
    emit("QAT", folder / "qat", f"{len(record.history)} epochs of {images} images, {spent:.0f} s")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--bits", nargs="*", default=BITS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| model | bits | what | top-1 % | points against FP32 | agreement % | images | |", "|---|---|---|---|---|---|---|---|"]
    for name in args.models:
        for bits in args.bits:
            with tempfile.TemporaryDirectory() as folder:
                lines += rows(name, bits, args.epochs, args.images, Path(folder))
    if args.out:
        usage = f"TRTQ_DATA=<images> python benchmarks/qat.py --models {' '.join(args.models)} --bits {' '.join(args.bits)} --epochs {args.epochs}"
        args.out.write_text(f"# Training with the codes in place\n\n`{usage} --images {args.images}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
