"""Methods and bit widths: agreement with the float model, next to ModelOpt.

Usage: TRTQ_DATA=... python benchmarks/methods.py [--models ...] [--bits ...] \
    --modelopt-python PY --out benchmarks/results/methods.md

ModelOpt has the same bits, images and quantized layers. The exported file runs in ONNX Runtime,
with 512 calibration images (256 for EfficientNet-Lite0). It is evaluated on 2,500 CIFAR-10 test
images, or the rest of the ImageNet sample. Both tools quantize every conv and linear, the first
and the last at 8 bits, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from smoke import arguments, few

MODELS = ("resnet20", "vit", "mobilevit_xxs", "resnet56", "efficientnet_lite0")
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
LIMIT = few(2500, 16)
# "none" is calibration alone (mse), "preset" what trtq does when nothing is asked; any other recipe
# is methods joined by "+".
RECIPES = ("none", "preset")
ATTENTION = (
    "ranking",
    "attention-percentile",
    "repq",
    "integer-softmax",
    "efficientquant",
)  # for them the products count, too
# At 224x224 on two cores a step is costly: fewer and smaller ones.
SMALL_STEPS = {
    "efficientnet_lite0": {"reconstruct.steps": 60, "reconstruct.batch": 8, "reconstruct.lr": 0.02}
}
ONLY_WEIGHTED = ("*.residual", "*.qk", "*.av")


def trtq_row(name: str, bits: str, recipe: str) -> dict[str, object]:
    from models import evaluated, settings

    from trtq import QuantizeSpec, quantize
    from trtq.errors import UsageError

    own, parts = (
        settings(name),
        [m for m in recipe.split("+") if m not in ("none", "preset", "int8-attention")],
    )
    methods = [p.partition(":")[0] for p in parts]  # NAME or NAME:K=V
    arguments = {
        f"{n}.{kv.partition('=')[0]}": kv.partition("=")[2]
        for n, _, kv in (p.partition(":") for p in parts)
        if kv
    }
    with tempfile.TemporaryDirectory() as folder:
        values = {
            **own,
            "out": f"{folder}/o",
            "calib_cache": f"{folder}/c",
            "bits": bits,
            "method": methods,
            "min_agreement": 0,
            "preset_quant": "auto" if recipe == "preset" else "none",
        }
        small = SMALL_STEPS.get(name, {}) if "reconstruct" in methods else {}
        values["method_arg"] = {**small, **arguments}
        whole = "int8-attention" in recipe or any(m in ATTENTION for m in methods)
        options = (
            [{"attention": "int8"}]
            if whole
            else [{"high_precision": p} for p in (ONLY_WEIGHTED, ("*.residual",), ())]
        )
        for option in options:  # a pattern that matches nothing is refused: take what the model has
            try:
                record = quantize(QuantizeSpec.make({**values, **option}))
                break
            except UsageError as exc:
                if "matches no layer" not in str(exc):
                    return {"failed": str(exc).split(": ", 1)[-1][:110]}
        r = evaluated(name, Path(folder) / "o", LIMIT)
        spent = sum(record.seconds.get(m.name, 0.0) for m in record.methods)
        return {
            "agreement": r.agreement,
            "sqnr": r.sqnr_db,
            "top1": r.top1,
            "images": r.images,
            "seconds": spent,
        }


def modelopt_config(model: torch.nn.Module, bits: str, algorithm: str) -> dict[str, object]:
    """Return ModelOpt's settings for every conv and linear at ``bits``, first and last at 8."""
    import copy

    import modelopt.torch.quantization as mtq

    from trtq.quant.formats import BitConfig

    widths = BitConfig.parse(bits)
    layers = [
        n for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    base = mtq.INT8_SMOOTHQUANT_CFG if algorithm == "smoothquant" else mtq.INT8_DEFAULT_CFG
    config = copy.deepcopy(base)
    rules = config[
        "quant_cfg"
    ]  # a list, the last rule that matches wins; its own exceptions (BatchNorm, ...) stay
    for rule in rules:
        for kind, width in (
            ("*weight_quantizer", widths.weight),
            ("*input_quantizer", widths.input),
        ):
            if rule["quantizer_name"] == kind and "cfg" in rule:
                rule["cfg"]["num_bits"] = width
    for layer in (layers[0], layers[-1]):
        rules.append(
            {"quantizer_name": f"{layer}.weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}}
        )
        rules.append(
            {"quantizer_name": f"{layer}.input_quantizer", "cfg": {"num_bits": 8, "axis": None}}
        )
    config["algorithm"] = algorithm
    return config


def modelopt_row(name: str, bits: str, algorithm: str) -> dict[str, object]:
    """Run in a process of ModelOpt's own."""
    from ptq_accuracy import modelopt_scores

    return modelopt_scores(name, lambda model: modelopt_config(model, bits, algorithm), LIMIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--bits", nargs="*", default=BITS)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--modelopt-python")
    parser.add_argument("--algorithms", nargs="*", default=["max", "mse", "smoothquant"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--modelopt-row", nargs=3, help=argparse.SUPPRESS)
    args = arguments(parser, models=["resnet20"], bits=["w8a8"])
    if args.modelopt_row:
        print("RESULT " + json.dumps(modelopt_row(*args.modelopt_row)))
        return
    lines = [
        "| model | bits | recipe | agreement % | SQNR dB | top-1 % | images | method s |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def emit(name: str, bits: str, recipe: str, r: dict[str, object]) -> None:
        if "failed" in r:
            lines.append(f"| {name} | {bits} | {recipe} | does not fit: {r['failed']} | | | | |")
        else:
            spent = f"{r['seconds']:.0f}" if r.get("seconds") else ""
            lines.append(
                f"| {name} | {bits} | {recipe} | {r['agreement']:.2f} | {r['sqnr']:.2f} | "
                f"{r['top1']:.2f} | {r['images']} | {spent} |"
            )
        print(lines[-1], flush=True)

    for name in args.models:
        for bits in args.bits:
            for asked in args.recipes:
                fewer = asked == "preset" and name in SMALL_STEPS and bits != "w8a8"
                recipe = (
                    "reconstruct+bias-correction" if fewer else asked
                )  # the preset's methods, with fewer steps
                emit(name, bits, f"trtq {recipe}", trtq_row(name, bits, recipe))
            for algorithm in args.algorithms if args.modelopt_python else ():
                command = [args.modelopt_python, __file__, "--modelopt-row", name, bits, algorithm]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                found = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                emit(
                    name,
                    bits,
                    f"ModelOpt {algorithm}",
                    json.loads(found[0][7:]) if found else {"failed": last},
                )
    if args.out:
        usage = (
            f"TRTQ_DATA=<images> python benchmarks/methods.py --models {' '.join(args.models)} "
            f"--bits {' '.join(args.bits)}"
        )
        about = (
            "Every conv and linear quantized, the first and the last at 8 bits, nothing else; "
            "trtq in ONNX Runtime from the exported "
            "file, ModelOpt in torch; CPU. `none` is calibration alone."
        )
        args.out.write_text(
            f"# Methods and widths\n\n`{usage}`\n\n{about}\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
