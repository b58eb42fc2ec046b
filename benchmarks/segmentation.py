"""FCN-ResNet18 on CamVid at 240x320: FP32, PTQ and QAT (S4 Tables 4.7 and 4.8).

Usage: python benchmarks/segmentation.py --camvid camvid.zip --weights fcn.safetensors \
    [--epochs 3] --out benchmarks/results/segmentation.md

PTQ and QAT are at INT8 and at the thesis's 4MP-A8 and 4MP-A6. train_fcn.py makes the file of
--weights. 4MP: widths of 8 and 4 bits by gradient sensitivity and the Pareto front, at the thesis's
own compression (7.84 times); A8 and A6 are the bits of activations. mIoU is that of the exported
file in ONNX Runtime on the 117 test images, void left out. Training sees the 367 train images and
nothing else, and the last epoch is taken. Predictions side by side are written beside the file of
--out as .png.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from smoke import SMOKE, arguments, data, few, scratch

S4_COMPRESSION = 7.84  # Table 4.8, FCN-ResNet18 4MP
# The usual colours of CamVid's 11 classes, and black for void.
PALETTE = np.array(
    [
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [0, 0, 192],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
        [0, 0, 0],
    ],
    dtype=np.uint8,
)
SIZE = few((240, 320), (48, 64))
SHOWN = few((5, 40, 90), (0, 1, 2))  # test images
# Bits of activations in a 4MP allocation, None without one; FP32 is the same training with no codes
# in place.
SETTINGS: dict[str, int | None] = {"FP32": None, "INT8": None, "4MP-A8": 8, "4MP-A6": 6}


def _smoke_weights() -> Path:
    from safetensors.torch import save_file

    from trtq.models.fcn import fcn_resnet18

    path = scratch() / "fcn.safetensors"
    save_file({k: v.contiguous() for k, v in fcn_resnet18(11).state_dict().items()}, path)
    return path


def base(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": "trtq:fcn_resnet18",
        "model_arg": {"num_classes": 11},
        "checkpoint": str(args.weights),
        "input_size": f"3x{SIZE[0]}x{SIZE[1]}",
        "preset": "imagenet",
        "data": f"{args.camvid}/train",
    }


def allocation(args: argparse.Namespace, folder: Path, activations: int) -> str:
    """Return the file of a 4MP allocation with activations of so many bits."""
    from trtq import AllocateSpec, AnalyzeSpec, allocate, analyze

    ranking, out = folder / f"S{activations}.json", folder / f"A{activations}.json"
    analyze(
        AnalyzeSpec.make(
            {
                **base(args),
                "metric": "gradient",
                "targets": "model",
                "images": 8,
                "trials": 4,
                "calib_images": 64,
                "out": str(ranking),
                "bits": [f"w4a{activations}", f"w8a{activations}"],
                "calib_cache": str(folder / "cache"),
            }
        )
    )
    allocate(
        AllocateSpec.make(
            {
                "analysis": str(ranking),
                "strategy": "pareto",
                "budget": [f"size={1 / S4_COMPRESSION:.4f}"],
                "out": str(out),
            }
        )
    )
    return str(out)


def measured(args: argparse.Namespace, folder: Path) -> Any:
    from trtq import EvaluateSpec, evaluate

    return evaluate(
        EvaluateSpec(
            onnx=str(folder / "model.qdq.onnx"),
            reference=str(folder / "model.fp32.onnx"),
            data=f"{args.camvid}/test",
            masks=f"{args.camvid}/testannot",
            ignore_index=11,
            batch_size=8,
        )
    )


def answers(args: argparse.Namespace, file: Path) -> list[np.ndarray]:
    from trtq.data.preprocess import batches, resolve_preprocess
    from trtq.data.source import open_source
    from trtq.export.ort import open_session, run_batch

    preprocess, _ = resolve_preprocess(input_size=(3, *SIZE), preset="imagenet")
    session, source = open_session(file), open_source(f"{args.camvid}/test")
    return [
        run_batch(session, b.numpy())[0][0].argmax(0) for b in batches(source, SHOWN, preprocess, 1)
    ]


def picture(args: argparse.Namespace, columns: dict[str, list[np.ndarray]], path: Path) -> None:
    """Draw image, truth and every model's predictions, one row an image."""
    from matplotlib.figure import Figure
    from PIL import Image

    with zipfile.ZipFile(args.camvid) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/"))
        images = [
            np.asarray(Image.open(io.BytesIO(archive.read(names[i]))).resize(SIZE[::-1]))
            for i in SHOWN
        ]
        truth = [
            PALETTE[
                np.asarray(
                    Image.open(
                        io.BytesIO(archive.read(f"testannot/{Path(names[i]).stem}.png"))
                    ).resize(SIZE[::-1], Image.Resampling.NEAREST)
                )
            ]
            for i in SHOWN
        ]
    shown = {"image": images, "truth": truth} | {
        k: [PALETTE[a] for a in v] for k, v in columns.items()
    }
    figure = Figure(figsize=(1.9 * len(shown), 1.5 * len(SHOWN)))
    axes = figure.subplots(len(SHOWN), len(shown), squeeze=False)
    for c, (label, pictures) in enumerate(shown.items()):
        axes[0][c].set_title(label, fontsize=8)
        for r, pixels in enumerate(pictures):
            axes[r][c].imshow(pixels)
            axes[r][c].set_axis_off()
    figure.subplots_adjust(left=0, right=1, top=0.93, bottom=0, wspace=0.02, hspace=0.03)
    figure.savefig(path, dpi=75)


def row(label: str, what: str, r: Any, size: float, note: str) -> str:
    points = r.miou - r.reference_miou
    return (
        f"| {label} | {what} | {r.miou:.2f} | {points:+.2f} | {r.pixel_accuracy:.2f} | "
        f"{r.agreement:.2f} | {size:.2f} | {note} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--only", nargs="*", default=[*SETTINGS])
    parser.add_argument("--out", type=Path, required=True)
    args = arguments(
        parser,
        camvid=data() / "camvid.zip" if SMOKE else None,
        weights=_smoke_weights() if SMOKE else None,
        epochs=1,
        only=["INT8"],
    )
    from qat import without_codes

    from trtq import FinetuneSpec, QuantizeSpec, finetune, quantize

    head = (
        "| widths | what | mIoU % | points against FP32 | pixels right % | agreement % | "
        "weights MB | |"
    )
    lines, columns = [head, "|---|---|---|---|---|---|---|---|"], {}

    def emit(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    for label in args.only:
        activations = SETTINGS[label]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            chosen = {"allocation": allocation(args, folder, activations)} if activations else {}
            record = quantize(
                QuantizeSpec.make(
                    {
                        **base(args),
                        **chosen,
                        "out": str(folder / "ptq"),
                        "preset_quant": "none",
                        "calib_images": few(128, 8),
                        "calib_cache": str(folder / "cache"),
                    }
                )
            )
            bits = {
                q.layer: int(q.format.lstrip("uint").split("[")[0])
                for q in record.quantizers
                if q.role == "weight"
            }
            values = record.model["weight_values"]
            size = sum(n * bits.get(layer, 32) / 8 for layer, n in values.items()) / 1e6
            start, codes = folder / "ptq/encodings.safetensors", label != "FP32"
            r = measured(args, folder / "ptq")
            if label == args.only[0]:
                emit(
                    f"| FP32 | | {r.reference_miou:.2f} | | | | "
                    f"{4 * sum(values.values()) / 1e6:.2f} | |"
                )
                columns["FP32"] = answers(args, folder / "ptq/model.fp32.onnx")
            if codes:
                emit(row(label, "PTQ", r, size, ""))
                columns[f"{label} PTQ"] = answers(args, folder / "ptq/model.qdq.onnx")
            else:
                start, size = without_codes(start, folder / "none"), 4 * sum(values.values()) / 1e6
            trained = finetune(
                FinetuneSpec.make(
                    {
                        **base(args),
                        "masks": f"{args.camvid}/trainannot",
                        "ignore_index": 11,
                        "class_weights": "log",
                        "epochs": args.epochs,
                        "batch_size": 8,
                        "lr": args.lr,
                        "out": str(folder / "qat"),
                        "encodings": str(start),
                    }
                )
            )
            note = f"{args.epochs} epochs of 367 images, {trained.seconds['train']:.0f} s"
            emit(
                row(
                    label, "QAT" if codes else "trained", measured(args, folder / "qat"), size, note
                )
            )
            if codes:
                columns[f"{label} QAT"] = answers(args, folder / "qat/model.qdq.onnx")
    picture(args, columns, args.out.with_suffix(".png"))
    usage = (
        "python benchmarks/segmentation.py --camvid camvid.zip --weights fcn.safetensors "
        f"--epochs {args.epochs} --lr {args.lr:g} --only {' '.join(args.only)}"
    )
    args.out.write_text(
        f"# FCN-ResNet18 on CamVid at 240x320\n\n`{usage}`\n\n"
        + "\n".join(lines)
        + f"\n\n![Predictions side by side]({args.out.stem}.png)\n"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
