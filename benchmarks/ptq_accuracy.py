"""INT8 post-training quantization: trtq's exported file against ModelOpt's torch simulation.

Usage: TRTQ_DATA=... python benchmarks/ptq_accuracy.py --modelopt-python PY \
    --out benchmarks/results/ptq_accuracy.md

trtq's file runs in ONNX Runtime; both use the same images. PY is a Python with nvidia-modelopt
0.47 and trtq installed (``pip install nvidia-modelopt==0.47.0 -e .``); without it the ModelOpt
rows are left out. Calibration images are the same. ModelOpt quantizes every convolution and linear
layer; trtq's default also quantizes the two products of each attention and the shortcut of each
residual add behind a convolution, which is where TensorRT gains its speed. The row "same layers"
leaves those in float: it compares like with like. The rows "refine" add the method of that name.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import evaluated, evaluation, settings
from smoke import arguments

from trtq import QuantizeSpec, quantize
from trtq.data.answers import Tally
from trtq.data.preprocess import batches, resolve_preprocess
from trtq.data.source import open_source
from trtq.models.load import load_model
from trtq.tasks.classification import TopScore

MODELS = ("efficientnet_lite0", "resnet20", "resnet56", "mobilevit_xxs", "vit")
MODELOPT = ("max", "mse", "smoothquant")
CALIBRATORS = ("max", "ema", "percentile", "entropy", "mse")


def prepare(name: str):
    spec = QuantizeSpec.make({**settings(name), "out": "unused"})
    loaded = load_model(
        spec.model,
        args=spec.model_arg,
        checkpoint=Path(spec.checkpoint),
        match=spec.checkpoint_match,
    )
    preprocess, _ = resolve_preprocess(
        input_size=spec.input_size, preset=spec.preset, hints=loaded.input_hints
    )
    source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
    return loaded.module, preprocess, source, source.sample(spec.calib_images, 0)


def modelopt_row(name: str, method: str) -> dict[str, float]:
    """Run in a process of ModelOpt's own: quantize, then count on the evaluation images."""
    import modelopt.torch.quantization as mtq

    return modelopt_scores(name, lambda _: {**mtq.INT8_DEFAULT_CFG, "algorithm": method})


def modelopt_scores(
    name: str,
    config_of: Callable[[torch.nn.Module], dict[str, Any]],
    limit: int | None = None,
) -> dict[str, float]:
    """Quantize a model with ModelOpt, and count on images that calibration did not see.

    Args:
        name: of the model.
        config_of: returns ModelOpt's configuration for the module; it is not changed.
        limit: of the images.
    """
    import modelopt.torch.quantization as mtq

    model, preprocess, source, indices = prepare(name)
    calibration = list(batches(source, indices, preprocess, 32))
    quantized = mtq.quantize(
        copy.deepcopy(model),
        copy.deepcopy(config_of(model)),
        forward_loop=lambda m: [m(x) for x in calibration],
    )
    return score_in_torch(name, quantized, model, preprocess, source, indices, limit)


def score_in_torch(
    name: str, quantized, model, preprocess, source, indices, limit: int | None = None
) -> dict[str, float]:
    """Score the model on the evaluation images that calibration did not see.

    ``limit`` takes the images that ``trtq evaluate --limit`` takes.
    """
    where = evaluation(name)
    test = open_source(
        where["data"], Path(where["class_index"]) if "class_index" in where else None
    )
    used = set(source.contents(indices))
    picks = [i for i, content in enumerate(test.contents(range(len(test)))) if content not in used]
    if limit is not None and limit < len(picks):
        picks = [picks[int(i)] for i in np.linspace(0, len(picks) - 1, limit).round()]
    scores, tally, done = TopScore(ignore=-100), Tally(name, "classes"), 0
    with torch.inference_mode():
        for x in batches(test, picks, preprocess, 50):
            labels = [test.labels[i] for i in picks[done : done + len(x)]]
            done += len(x)
            answer = quantized(x).numpy()
            scores.add(answer, np.asarray(labels))
            tally.add(model(x).numpy(), answer)
    return {
        "top1": 100 * scores.top1 / scores.labelled,
        "agreement": tally.result.agreement,
        "sqnr": tally.result.sqnr_db,
        "images": done,
    }


def trtq_row(name: str, calibrator: str, out: Path, **own: Any) -> dict[str, float]:
    places = {"out": str(out), "calibrator": calibrator, "calib_cache": str(out / "cache")}
    quantize(QuantizeSpec.make({**settings(name), **places, **own}))
    r = evaluated(name, out)
    return {
        "top1": r.top1,
        "agreement": r.agreement,
        "sqnr": r.sqnr_db,
        "fp32": r.reference_top1,
        "images": r.images,
    }


def trtq_rows(name: str, calibrators: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return trtq's rows of a model: the label, the calibrator, and what else is asked for."""
    floats = ("*.residual",) if name != "vit" else ()
    floats += ("*.qk", "*.av") if name in ("vit", "mobilevit_xxs") else ()
    same = {"high_precision": floats}
    refine = {"method": [*(("smooth",) if name == "vit" else ()), "refine"]}  # beside the preset's
    return [
        *((f"trtq {c}", c, {}) for c in calibrators),
        ("trtq mse, refine", "mse", refine),
        ("trtq max, same layers", "max", same),
        ("trtq mse, same layers", "mse", same),
        ("trtq mse, refine, same layers", "mse", {**same, **refine}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--calibrators", nargs="*", default=CALIBRATORS)
    parser.add_argument("--modelopt-python", default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--modelopt-row", nargs=2, default=None, help=argparse.SUPPRESS)
    args = arguments(parser, models=["resnet20"], calibrators=["max"])
    if args.modelopt_row:
        print("RESULT " + json.dumps(modelopt_row(*args.modelopt_row)))
        return
    lines = [
        "| model | images | tool | top-1 % | agreement % | SQNR dB |",
        "|---|---|---|---|---|---|",
    ]

    def emit(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    def row(name: str, tool: str, r: dict[str, float]) -> str:
        figures = f"{r['top1']:.2f} | {r['agreement']:.2f} | {r['sqnr']:.2f}"
        return f"| {name} | {r['images']} | {tool} | {figures} |"

    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for i, (tool, calibrator, own) in enumerate(trtq_rows(name, args.calibrators)):
                r = trtq_row(name, calibrator, Path(folder) / str(i), **own)
                if i == 0:
                    emit(f"| {name} | {r['images']} | FP32 | {r['fp32']:.2f} | 100 | |")
                emit(row(name, tool, r))
        for method in MODELOPT if args.modelopt_python else ():
            command = [args.modelopt_python, __file__, "--modelopt-row", name, method]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            results = [ln for ln in done.stdout.splitlines() if ln.startswith("RESULT ")]
            if results:
                emit(row(name, f"ModelOpt torch {method}", json.loads(results[0][7:])))
                continue
            last = done.stderr.strip().splitlines()[-1:]
            emit(f"| {name} | | ModelOpt torch {method} | failed: {last} | | |")
    if args.out:
        usage = (
            f"TRTQ_DATA=<images> python benchmarks/ptq_accuracy.py --models {' '.join(args.models)}"
        )
        usage += (
            f" --calibrators {' '.join(args.calibrators)} --modelopt-python <python with "
            "nvidia-modelopt>"
        )
        args.out.write_text(
            f"# INT8 accuracy\n\n`{usage}`\n\ntorch {torch.__version__}, numpy "
            f"{np.__version__}, CPU.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
