"""FP8, INT4 blocks and NVFP4: answers next to the float model's, beside ModelOpt's own.

Usage: TRTQ_DATA=... python benchmarks/formats.py [--models ...] \
    --modelopt-python PY --out benchmarks/results/formats.md

Each tool quantizes with the same samples. trtq's exported file runs in ONNX Runtime, ModelOpt 0.47
is simulated in torch. INT4 blocks and NVFP4 leave the first and the last layer in float, in
ModelOpt too; FP8 has every convolution and linear layer in both, and in trtq the products of
attentions; "same layers" leaves those in float. ModelOpt simulates NVFP4 on a GPU alone.
``minilm`` is the text encoder of ``s2_text.py``, with its sentences.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smoke import arguments, few
from subprocess_runner import print_result, run_apart

MODELS = ("vit", "efficientnet_lite0", "minilm")
LIMIT = few(2500, 16)


@dataclass(frozen=True)
class Format:
    """A format in both tools.

    Attributes:
        bits: trtq's ``--bits``.
        peers: ModelOpt's configurations.
        inner: whether the first and the last layer stay in float.
        models: those that have layers for it.
    """

    bits: str
    peers: tuple[str, ...]
    inner: bool
    models: tuple[str, ...]


LINEAR = ("vit", "minilm")
FORMATS = (
    Format("fp8", ("FP8_DEFAULT_CFG",), False, MODELS),
    Format("w4a16:64", ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT4_AWQ_CFG"), True, LINEAR),
    Format("nvfp4", ("NVFP4_DEFAULT_CFG", "NVFP4_AWQ_LITE_CFG"), True, LINEAR),
)


# ---- trtq -----------------------------------------------------------------------------------


def trtq_pictures(name: str, form: Format, options: dict[str, Any]) -> dict[str, Any]:
    """Quantize a classifier and score its file on images that calibration did not see."""
    from models import evaluated, settings

    from trtq import QuantizeSpec, quantize

    with tempfile.TemporaryDirectory() as folder:
        values = {
            **settings(name),
            "out": f"{folder}/o",
            "calib_cache": f"{folder}/c",
            "bits": form.bits,
            "min_agreement": 0,
            **options,
        }
        quantize(QuantizeSpec.make(values))
        r = evaluated(name, Path(folder) / "o", LIMIT)
    return {"words": words_of(r.agreement, r.sqnr_db, r.top1, r.images)}


def words_of(agreement: float, sqnr: float, top1: float, images: int) -> str:
    """Return the scores of a classifier as a cell of the table."""
    return f"agreement {agreement:.2f} %, SQNR {sqnr:.2f} dB, top-1 {top1:.2f} % ({images} images)"


def trtq_sentences(folder: Path, form: Format, options: dict[str, Any]) -> dict[str, Any]:
    """Quantize the text encoder and score its file on the other sentences."""
    import s2_text

    s2_text.STEPS[form.bits] = {"bits": form.bits, **options}
    lab = s2_text.Lab(folder, argparse.Namespace(modelopt_python=None, epochs=1))
    return {"words": lab.step(form.bits).words}


# ---- ModelOpt, in a process of its own -------------------------------------------------------


def modelopt(name: str, setting: str, form: Format, work: Path) -> dict[str, Any]:
    """Simulate a configuration of ModelOpt's and score it."""
    return {"minilm": _modelopt_sentences}.get(name, _modelopt_pictures)(name, setting, form, work)


def modelopt_config(model: torch.nn.Module, setting: str, form: Format) -> dict[str, Any]:
    """Return a configuration of ModelOpt's with the layers and the block size of trtq's."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(getattr(mtq, setting))
    weighted = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [n for n, m in model.named_modules() if isinstance(m, weighted)]
    for layer in (layers[0], layers[-1]) if form.inner else ():
        config["quant_cfg"].append({"quantizer_name": f"*{layer}.*", "enable": False})
    block = form.bits.partition(":")[2]
    for rule in config["quant_cfg"] if block else ():
        sizes = (rule.get("cfg") or {}).get("block_sizes")
        if sizes and -1 in sizes:
            sizes[-1] = int(block)
    return dict(config)


def _modelopt_pictures(name: str, setting: str, form: Format, _: Path) -> dict[str, Any]:
    from ptq_accuracy import modelopt_scores

    r = modelopt_scores(name, lambda model: modelopt_config(model, setting, form), LIMIT)
    return {"words": words_of(r["agreement"], r["sqnr"], r["top1"], int(r["images"]))}


def _modelopt_sentences(_: str, setting: str, form: Format, work: Path) -> dict[str, Any]:
    import modelopt.torch.quantization as mtq
    import numpy as np
    import s2_text

    _, calibration, evaluation = s2_text.feeds(work)
    model = s2_text.encoder()

    def embed(net: torch.nn.Module, feeds: list[dict[str, Any]]) -> Any:
        with torch.inference_mode():
            made = [net(*(torch.from_numpy(f[n]) for n in s2_text.INPUTS)).numpy() for f in feeds]
        return np.concatenate(made)

    reference = embed(model, evaluation)
    config = modelopt_config(model, setting, form)
    quantized = mtq.quantize(model, config, forward_loop=lambda m: embed(m, calibration))
    return {"words": s2_text.score(reference, embed(quantized, evaluation)).words}


# ---- the table ------------------------------------------------------------------------------


def ours(name: str, form: Format, work: Path) -> dict[str, dict[str, Any]]:
    """Return trtq's rows: defaults, and what compares like with like."""
    settings: dict[str, dict[str, Any]] = {"trtq": {}}
    if form.bits.startswith("w4"):
        settings["trtq, no method"] = {"preset_quant": "none"}
    if form.bits == "fp8" and name in LINEAR:
        settings["trtq, same layers"] = {"attention": "float"}
    if name == "minilm":
        return {k: trtq_sentences(work, form, v) for k, v in settings.items()}
    return {k: trtq_pictures(name, form, v) for k, v in settings.items()}


def main() -> None:
    """Make the table, or run one setting of ModelOpt."""
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--formats", nargs="*", default=[f.bits for f in FORMATS])
    parser.add_argument("--modelopt-python", default=None, help="a Python with nvidia-modelopt")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = arguments(parser, models=["vit", "minilm"], formats=["fp8", "nvfp4"])
    forms = {f.bits: f for f in FORMATS}
    if args.one:
        name, setting, bits, work = args.one
        print_result(modelopt(name, setting, forms[bits], Path(work)))
        return
    lines = ["| model | format | tool | answers next to the float model's |", "|---|---|---|---|"]
    for name in args.models:
        for form in (forms[bits] for bits in args.formats if name in forms[bits].models):
            with tempfile.TemporaryDirectory() as work:
                rows = ours(name, form, Path(work))
                for setting in form.peers if args.modelopt_python else ():
                    line = [args.modelopt_python, __file__, "--one", name, setting, form.bits, work]
                    rows[f"ModelOpt {setting}"] = run_apart(line)
            for tool, row in rows.items():
                words = row.get("words") or f"failed: {row['error']}"
                lines.append(f"| {name} | {form.bits} | {tool} | {words} |")
                print(lines[-1], flush=True)
    if args.out:
        head = (__doc__ or "").split("\n\n")
        usage = "TRTQ_DATA=<images> python benchmarks/formats.py --modelopt-python <python>"
        text = ["# Formats with kernels", f"`{usage}`", head[-1].strip(), "\n".join(lines)]
        args.out.write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
