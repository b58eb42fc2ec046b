"""What each golden file holds, and the command lines that make it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.golden.artefacts import list_digest
from tests.golden.models import MODELS, write_weights
from tests.golden.workspace import Workspace

READERS = ("orin@10.3", "xavier@8.5", "rtx3080")
RELEASES = ("8.0", "8.2", "8.4", "8.5", "8.6", "9.3", "10.0", "10.3", "10.7", "10.13", "10.16")
NEWEST = ("11.0", "11.4")
FEW_STEPS = "--method reconstruct --method-arg reconstruct.steps=6"


# ---- PTQ at 8 bits: ten models ---------------------------------------------------------------


def ptq(work: Workspace, name: str) -> dict[str, Any]:
    """Return what ``trtq quantize`` writes, and what every command says about those files."""
    out = work.quantized(name)
    qdq, data = out / "model.qdq.onnx", work.data(name)
    labels = ["--masks", work.masks] if MODELS[name].data == "scenes" else []
    against = ["--reference", out / "model.fp32.onnx", "--exclude", out / "quantize.json"]
    return {
        **work.files(out, "quantize.json"),
        "evaluate": work.json("evaluate", qdq, *against, "--data", data, *labels, code=-1),
        "lint": {target: lint(work, qdq, target) for target in READERS},
        "cost": work.run("cost", qdq, "--device", "xavier")["output"],
        "build": dry_run(work, qdq, "sm86@10.3", "--precision", "fp16"),
        "calibration cache": calibration_cache(work, qdq, "xavier@8.5"),
    }


def _counted(work: Workspace, name: str) -> list[str]:
    """Return the words for a model whose layers are counted: without images, no normalization."""
    words = work.model(name)
    if "--preset" in words:
        at = words.index("--preset")
        words = words[:at] + words[at + 2 :]
    return words


def lint(work: Workspace, onnx: Path, target: str) -> list[Any]:
    """Return what ``trtq lint`` says: a line a finding, and the summary."""
    return work.run("lint", onnx, "--target", target, code=-1)["output"]


def calibration_cache(work: Workspace, onnx: Path, target: str) -> dict[str, Any]:
    """Return a calibration cache as ``trtq export-calib`` writes it: scales as numbers."""
    cache = onnx.with_name("calibration.cache")
    printed = work.run("export-calib", onnx, "--target", target, "--out", cache, code=-1)
    if not cache.is_file():
        return printed
    header, *rows = cache.read_text().splitlines()
    record = work.read.record(cache.with_name("calibration.cache.json"))
    scales = (row.rpartition(": ") for row in rows)
    return {
        **printed,
        "header": header,
        "scales": {tensor: _float_of(digits) for tensor, _, digits in scales},
        "missing": list_digest(f"{k}: {v}" for k, v in record["missing"].items()),
    }


def _float_of(digits: str) -> float:
    bits = torch.tensor([int(digits, 16)], dtype=torch.int64).to(torch.int32)
    return float(f"{float(bits.view(torch.float32)):.9g}")


def dry_run(work: Workspace, onnx: Path, target: str, *more: str) -> str | list[str]:
    """Return the one line that builds an engine, or why there is none."""
    out = onnx.with_name("dry.engine")
    words = ["build", onnx, "--target", target, "--backend", "trtexec", "--dry-run"]
    printed = work.run(*words, *more, "--out", out, code=-1)
    lines = printed["output"] or printed["errors"]
    return lines[0] if len(lines) == 1 else lines


# ---- fewer bits, methods, formats ------------------------------------------------------------


def narrow(work: Workspace, name: str, path: str, more: str) -> dict[str, Any]:
    """Return what ``trtq quantize`` writes with other widths or methods."""
    out = work.quantized(name, path, *more.split())
    words = [*_counted(work, name), "--bits", "w4a8", "--device", "t4"]
    return {
        **work.files(out, "quantize.json"),
        "cost of the model": work.run("cost", *words)["output"],
    }


def methods(work: Workspace, name: str, *wanted: str) -> dict[str, Any]:
    """Return, by method, what it did and what it made of the files."""
    found = {}
    for label in wanted:
        given, _, more = label.partition(" ")
        words = [w for method in given.split("+") for w in ("--method", method)]
        out = work.quantized(name, f"methods/{given}", *words, *more.split())
        record = work.read.record(out / "quantize.json")
        keys = ("preset", "methods", "quantizers", "left_in_float", "parity", "notes")
        found[label] = {
            **{key: record[key] for key in keys},
            "encodings": work.read.encodings(out / "encodings.safetensors"),
            "model.qdq.onnx": work.read.onnx_in_short(out / "model.qdq.onnx"),
        }
    return found


# ---- an allocation ---------------------------------------------------------------------------


def allocation(work: Workspace, name: str, analyze: str, allocate: str) -> dict[str, Any]:
    """Return what analyze, allocate and quantize --allocation write."""
    folder = work.once(f"{name}/allocation-files", lambda _: None)
    sensitivity, widths = folder / "S.json", folder / "A.json"
    images = ["--data", work.images, "--images", "8", "--calib-images", "12", "--batch-size", "4"]
    images += ["--calib-cache", folder]
    words = [*work.model(name), *images, *analyze.split(), "--out", sensitivity]
    printed = work.run("analyze", *words)
    printed["output"] = [_without_numbers(line) for line in printed["output"]]
    found: dict[str, Any] = {
        "analyze": printed,
        "sensitivity": work.read.record(sensitivity),
        "allocate": work.run("allocate", sensitivity, *allocate.split(), "--out", widths),
        "allocation": work.read.record(widths),
        "cost": work.run("cost", *_counted(work, name), "--allocation", widths)["output"],
    }
    out = work.quantized(name, "allocation", "--allocation", widths, *FEW_STEPS.split())
    return {**found, **work.files(out, "quantize.json")}


def _without_numbers(line: str) -> str:
    """Return a line of a table without its numbers, which stand in the record."""
    return re.sub(r"(?<= )[\d.,e+-]+(?= |$)", "#", re.sub(r" +", " ", line))


# ---- training and import ---------------------------------------------------------------------


def training(work: Workspace, name: str) -> dict[str, Any]:
    """Return what ``trtq finetune`` makes of a model at 4 bits in a few steps."""
    start = work.quantized(name, "w4a8", *W4A8.split())

    def make(folder: Path) -> None:
        words = ["finetune", *work.model(name), "--data", work.images, "--val", work.images]
        few = ["--epochs", "2", "--batch-size", "8", "--parity-images", "8", "--device", "cpu"]
        place = ["--encodings", start / "encodings.safetensors", "--out", folder]
        printed = work.run(*words, *few, *place)
        (folder / "printed.json").write_text(json.dumps(printed))

    return work.files(work.once(f"{name}/training", make), "finetune.json")


def imported(work: Workspace) -> dict[str, Any]:
    """Return what ``trtq import-checkpoint`` makes of a state dict of pytorch-quantization."""

    def make(folder: Path) -> None:
        weights = write_weights(MODELS["cnn"], folder / "weights.safetensors", seed=6)
        state = _with_ranges(weights)
        torch.save(state, folder / "quantized.pth")
        model = MODELS["cnn"]  # its weights are those beside the ranges
        words = ["import-checkpoint", *model.words, *model.normalization, "--data", work.images]
        place = ["--ranges", folder / "quantized.pth", "--out", folder / "out"]
        printed = work.run(*words, "--parity-images", "8", *place)
        (folder / "out/printed.json").write_text(json.dumps(printed))

    out = work.once("cnn/import", make) / "out"
    cache = calibration_cache(work, out / "model.qdq.onnx", "xavier@8.5")
    back, plain = out / "back", out / "model.fp32.onnx"
    words = ["import-calib", out / "calibration.cache", "--onnx", plain, "--out", back]
    return {
        **work.files(out, "import.json"),
        "calibration cache": cache,
        "import of the cache": {
            **work.run(*words),
            "record": work.read.record(back / "import.json"),
            "model.qdq.onnx": work.read.onnx(back / "model.qdq.onnx"),
        },
    }


def _with_ranges(weights: Path) -> dict[str, torch.Tensor]:
    """Return a state dict with ranges, one layer without, one range without a place."""
    from safetensors.torch import load_file

    state = load_file(weights)
    for i, layer in enumerate(("stem", "conv1", "depthwise", "head")):
        weight = state[f"{layer}.weight"]
        dims = list(range(1, weight.ndim))
        state[f"{layer}._weight_quantizer._amax"] = weight.abs().amax(dims, keepdim=True)
        state[f"{layer}._input_quantizer._amax"] = torch.tensor(2.0 + i)
    state["pointwise._input_quantizer._amax"] = torch.tensor(3.5)
    state["elsewhere._input_quantizer._amax"] = torch.tensor(1.0)
    return state


# ---- files for targets, and their lines ------------------------------------------------------


def export(work: Workspace, name: str, *targets: str) -> dict[str, Any]:
    """Return what ``trtq export`` writes for several targets, and the line that builds each."""
    start, out = work.quantized(name), Path(name) / "export"
    given = [w for t in targets for w in ("--target", t)]
    words = ["export", *work.model(name), "--data", work.images, *given, "--images", "8"]
    place = ["--encodings", start / "encodings.safetensors", "--out", out]
    printed = work.run(*words, "--fallback", *place)
    record = work.read.record(out / "export.json")
    files = {p.name: p for p in sorted(out.glob("*.onnx"))}
    rows = {row["target"]: row["file"] for row in record["profiles"]}
    return {
        **printed,
        "record": record,
        "files": {name: work.read.onnx_in_short(path) for name, path in files.items()},
        "caches": {p.name: list_digest(_tensors(p)) for p in sorted(out.glob("*.cache"))},
        "build": {
            t: dry_run(work, files[file], t, "--precision", "fp16")
            for t, file in rows.items()
            if "@" in t
        },
        "lint": {t: lint(work, files[file], t) for t, file in rows.items()},
    }


def _tensors(cache: Path) -> list[str]:
    return [line.rpartition(": ")[0] for line in cache.read_text().splitlines()]


def targets(work: Workspace) -> dict[str, Any]:
    """Return the table of targets, and the trtexec line of each for a file that all can read."""
    rows = work.json("targets")
    old = work.quantized("cnn", "opset13", "--opset", "13")
    qdq, plain = old / "model.qdq.onnx", old / "model.fp32.onnx"
    line = partial(dry_run, work)
    calibration_cache(work, qdq, "xavier@8.5")
    with_cache = ["--calibration", str(old / "calibration.cache"), "--precision", "fp16"]
    devices = {}
    for row in rows:
        versions = [row["tensorrt"]] if row["tensorrt"] else ["8.6", "10.16", NEWEST[-1]]
        for version in versions:
            target = f"{row['name']}@{version}"
            devices[target] = line(qdq, target, "--precision", "fp16", "--fallback")
    releases = {}
    for version in (*RELEASES, *NEWEST):
        target = f"sm86@{version}"
        releases[target] = {"Q/DQ": line(qdq, target), "float": line(plain, target)}
    options = {
        "a timing cache": ["--timing-cache", "t.cache", "--optimization-level", "5"],
        "a batch": ["--batch", "1:2:4", "--workspace", "512"],
        "stripped": ["--strip-weights", "--version-compatible"],
        "other GPUs": ["--hardware-compatible", "ampere+"],
    }
    return {
        "targets": {row.pop("name"): row for row in rows},
        "devices": devices,
        "releases": releases,
        "options": {
            f"{label}, {target}": line(qdq, target, *words)
            for label, words in options.items()
            for target in ("xavier@8.2", "sm86@8.6", "orin@10.3", "sm86@11.4")
        },
        "DLA": {
            target: line(plain, target, "--dla", "0", "--precision", "fp16")
            for target in ("xavier@8.5", "orin@10.3", "t4@8.6")
        },
        "calibration": {
            target: line(plain, target, *with_cache) for target in ("xavier@8.5", "orin@10.3")
        },
        "newer than the parser": line(work.quantized("cnn") / "model.qdq.onnx", "xavier@8.2"),
    }


# ---- calibrators -----------------------------------------------------------------------------


def calibrators(work: Workspace) -> dict[str, Any]:
    """Return the ranges that each calibrator finds, and what is told of a cache they share."""
    found = {}
    for run, calibrator in enumerate(("max", "percentile", "entropy", "ema", "entropy")):
        shared = ["--calib-cache", "cnn/calibrators", "--calibrator", calibrator]
        out = work.quantized("cnn", f"calibrator-{run}", *shared)
        record = work.read.record(out / "quantize.json")
        found[f"{run}: {calibrator}"] = {
            "calibration": record["calibration"],
            "encodings": work.read.encodings(out / "encodings.safetensors"),
            "parity": record["parity"],
        }
    return found


def fcn(work: Workspace) -> dict[str, Any]:
    """Return what a larger model is made of, and what is counted of it."""
    words = ["trtq:fcn_resnet18", "--model-arg", "num_classes=3", "--input-size", "3x64x64"]
    counted = work.run("cost", *words, "--bits", "w8a8", "--device", "xavier")
    return {"blocks": work.json("blocks", *words), "cost": counted["output"]}


W4A8 = f"--bits w4a8 {FEW_STEPS}"
CASES: dict[str, Callable[[Workspace], dict[str, Any]]] = {
    **{f"{name}.w8a8": partial(ptq, name=name) for name in MODELS},
    "cnn.w4a8": lambda work: narrow(work, "cnn", "w4a8", W4A8),
    "deit.w4a8": lambda work: narrow(work, "deit", "w4a8", W4A8),
    "unusual.w4a8": lambda work: narrow(work, "unusual", "w4a8", W4A8),
    "cnn.int4": lambda work: narrow(
        work, "cnn", "int4", "--bits w4a4 --weight-storage int4 --opset 21 --preset-quant none"
    ),
    "mobilenet.fallbacks": lambda work: narrow(
        work, "mobilenet", "fallbacks", "--bits w3a3 --method equalize --min-agreement 100"
    ),
    "deit.fallbacks": lambda work: narrow(
        work, "deit", "fallbacks", "--bits w3a3 --method ranking --min-agreement 100"
    ),
    "vit.methods": lambda work: methods(
        work,
        "vit",
        "qads --method-arg qads.steps=8",
        "repq",
        "integer-softmax",
        "efficientquant",
        "attention-percentile+layernorm-ema",
        "ranking --bits w8a4",
    ),
    "cnn.calibrators": calibrators,
    "cnn.allocation": lambda work: allocation(
        work, "cnn", "--metric jsd --bits 4,6,8", "--budget size=0.17"
    ),
    "deit.allocation": lambda work: allocation(
        work,
        "deit",
        "--metric l2 --bits 4,8,w4a16,fp8,fp16",
        "--budget latency@rtx4090=1ms --budget size=0.2 --strategy greedy",
    ),
    "cnn.training": lambda work: training(work, "cnn"),
    "cnn.import": imported,
    "cnn.export": lambda work: export(
        work, "cnn", "nano", "xavier@8.5", "orin@10.3", "t4@8.6", "rtx4090", "h200@11.4"
    ),
    "vit.export": lambda work: export(work, "vit", "orin@10.3", "xavier@8.5"),
    "unusual.export": lambda work: export(
        work, "unusual", "xavier@8.5", "t4@8.6", "orin@10.3", "rtx5090@11.4"
    ),
    "fcn_resnet18.cost": fcn,
    "targets": targets,
}  # by name of the golden file, without .json
