"""Damaged files through the verbs that read them.

Each gives an error of trtq or a right answer, never a traceback, never a wrong "valid". The short
form runs a few mutations of each kind; ``make test-slow`` runs 2,000. The seeds are fixed: a
failure names its kind and number.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support import mutations as m
from trtq import (
    AllocateSpec,
    AnalyzeSpec,
    BenchSpec,
    EvaluateSpec,
    allocate,
    analyze,
    bench,
    evaluate,
)
from trtq.artifact import sha256_bytes, write_json
from trtq.bench.gate import gate
from trtq.commands.allocation import read_allocation
from trtq.commands.calibration import export_calib, import_calib
from trtq.commands.inspect import inspect
from trtq.commands.lint import run_lint
from trtq.commands.report import write_report
from trtq.deploy.devices import known_devices
from trtq.engine.manifest import read_manifest
from trtq.errors import TrtqError, explain_system
from trtq.known_records import RECORDS, record_type
from trtq.models.checkpoint import read_state_dict
from trtq.quant.encodings import Encodings
from trtq.recipe import load_recipe
from trtq.specs import ExportCalibSpec, GateSpec, ImportCalibSpec, LintSpec, ReportSpec
from trtq.testing.models import tiny_cnn

SHORT, LONG = 7, 132  # mutations of each kind that is read in milliseconds
PAGES = {
    "quantize record",
    "evaluate record",
    "bench record in a report",
}  # each read writes a page: a second
MODEL = "trtq.testing.models:tiny_cnn"


@pytest.fixture(scope="module")
def home(images, cnn_out, tmp_path_factory) -> Path:
    """A folder with one good file of each kind."""
    out = tmp_path_factory.mktemp("fuzz")
    for path in cnn_out.glob("*.*"):
        if path.is_file():
            shutil.copy(path, out)
    shutil.copy(next((cnn_out / "cache").glob("*.safetensors")), out / "entry.safetensors")
    write_json(
        out / "evaluate.json",
        evaluate(
            EvaluateSpec(
                onnx=f"{out}/model.qdq.onnx",
                reference=f"{out}/model.fp32.onnx",
                data=str(images),
                limit=4,
            )
        ),
    )
    write_json(out / "bench.json", bench(_short(out)))
    shutil.copy(out / "bench.json", out / "bench.qdq.json")
    analyze(
        AnalyzeSpec(
            model=MODEL,
            data=str(images),
            out=f"{out}/analysis.json",
            input_size=(3, 32, 32),
            preset="imagenet",
            calib_images=8,
            images=8,
            calib_cache=f"{out}/cache",
        )
    )
    allocate(
        AllocateSpec(
            analysis=f"{out}/analysis.json", out=f"{out}/allocation.json", budget=("size=0.5",)
        )
    )
    export_calib(
        ExportCalibSpec(onnx=f"{out}/model.qdq.onnx", target="xavier@8.5", out=f"{out}/net.cache")
    )
    state = tiny_cnn().state_dict()
    torch.save({"state_dict": state, "epoch": 3}, out / "w.pt")
    save_file(state, out / "w.safetensors")
    (out / "recipe.toml").write_text(RECIPE)
    (out / "devices.json").write_text(
        json.dumps(
            {
                "orin": {
                    "name": "orin",
                    "host": "h",
                    "user": "u",
                    "port": 22,
                    "identity": "",
                    "jump": "",
                    "workdir": ".trtq",
                }
            }
        )
    )
    (out / "x.engine").write_bytes(b"plan")
    (out / "x.engine.json").write_text(json.dumps(MANIFEST))
    (out / "search.json").write_text(json.dumps(SEARCH))
    return out


def _short(out: Path) -> BenchSpec:
    return BenchSpec(
        file=(f"{out}/model.qdq.onnx",),
        duration=0.05,
        min_samples=10,
        max_duration=0.3,
        verdict=False,
    )


RECIPE = """out = "runs/x"
title = "x"
[quantize]
model = "timm:resnet18"
data = "images"
bits = "w8a8"
input_size = "3x32x32"
[finetune]
epochs = 2
[evaluate]
limit = 5
[[build]]
target = "rtx4090"
[[build]]
target = "orin@10.3"
precision = "fp16"
[bench]
duration = 1.5
"""
ENVIRONMENT = {
    "python": "3",
    "packages": {"torch": "2"},
    "system": "Linux",
    "cpu": "x",
    "cores": 2,
    "time": "2026-11-01T00:00:00+0000",
}
MANIFEST = {
    "schema": 1,
    "verb": "build",
    "spec": {"onnx": "model.qdq.onnx", "calibration": None},
    "engine_sha256": sha256_bytes(b"plan"),
    "engine_bytes": 4,
    "builder": {"backend": "tensorrt", "version": "10.3"},
    "target": {"name": "orin", "device": "Orin", "capability": "8.7"},
    "precision": "fp32",
    "quantized_tensors": 3,
    "batch": [1, 8, 32],
    "tensors": [{"name": "input", "shape": [-1, 3, 32, 32]}],
    "onnx_sha256": "0" * 64,
    "onnx_bytes": 9,
    "encodings_sha256": None,
    "model": "m",
    "builder_log": [],
    "audit": None,
    "quantized_convolutions": 3,
    "seconds": 1.5,
    "environment": ENVIRONMENT,
    "coverage": {"asked": 3, "got": 3, "unknown": 0, "short": [], "source": "the plan"},
}
TRY = {
    "label": "a",
    "model": "m",
    "candidate": 0,
    "folder": "tries/a",
    "widths": {"w8a8": 4},
    "methods": [],
    "costs": {"size": 1.0},
    "accuracy": 90.0,
    "change": -0.5,
    "agreement": 99.0,
    "sqnr_db": 30.0,
    "within": True,
    "accurate": True,
    "onnx_bytes": 10,
}
SEARCH = {
    "schema": 1,
    "verb": "search",
    "spec": {"model": MODEL},
    "reference": {"model": "m", "accuracy": 90.5, "measure": "top-1", "costs": {"size": 2.0}},
    "images": 8,
    "constraints": [{"name": "size", "allowed": "1", "got": "1", "met": True, "needed": None}],
    "met": True,
    "tries": [TRY],
    "chosen": "a",
    "qdq_sha256": "0" * 64,
    "notes": [],
    "seconds": 1.0,
    "environment": ENVIRONMENT,
}


def _record(path: Path, good: Path) -> None:
    info = inspect(path)
    kind = str(info["kind"]).partition(" ")[0]
    if kind in RECORDS and not info.get("damaged"):  # what was accepted is a record of its verb
        import msgspec

        msgspec.convert(json.loads(path.read_text(encoding="utf-8-sig")), record_type(kind))


def _report(path: Path, good: Path) -> None:
    write_report(ReportSpec(run=(str(path.parent),), out=str(path.parent / "page.html")))
    text = (path.parent / "page.html").read_text()
    assert "\x1b" not in text
    assert text.endswith("</html>\n") or "</html>" in text


def _gate(path: Path, good: Path) -> None:
    record = gate(GateSpec(record=str(path), baseline=str(good / "bench.json")))
    if record.outcome == "passed":
        row = json.loads(path.read_text(encoding="utf-8-sig"))["rows"][0]
        median = row["e2e"]["median"]
        assert record.checks
        assert row["valid"] is True
        assert 0 < median["low"] <= median["value"] <= median["high"] < math.inf


def _gate_accuracy(path: Path, good: Path) -> None:
    bench_record = str(good / "bench.json")
    gate(
        GateSpec(
            record=bench_record, baseline=bench_record, accuracy=str(path), max_accuracy_drop=1.0
        )
    )


def _evaluation(path: Path, good: Path) -> None:
    _record(path, good)
    _gate_accuracy(path, good)
    _report(path, good)


def _quantize(path: Path, good: Path) -> None:
    _record(path, good)
    _report(path, good)


def _analysis(path: Path, good: Path) -> None:
    _record(path, good)
    made = allocate(
        AllocateSpec(analysis=str(path), out=str(path.parent / "made.json"), budget=("size=0.5",))
    )
    assert all(math.isfinite(v) for v in made.costs.values())
    assert math.isfinite(made.loss)


def _allocation(path: Path, good: Path) -> None:
    _record(path, good)
    weights = json.loads((good / "allocation.json").read_text())["model"]["weights_sha256"]
    read_allocation(path, weights)


def _manifest(path: Path, good: Path) -> None:
    engine = path.parent / "x.engine"
    manifest = read_manifest(engine)
    assert manifest.engine_sha256 == MANIFEST["engine_sha256"]
    _record(path, good)


def _encodings(path: Path, good: Path) -> None:
    """What loads is what was written: the digest notices everything else."""
    assert Encodings.load(path).digest() == Encodings.load(good / path.name).digest()
    inspect(path)


def _entry(path: Path, good: Path) -> None:
    from trtq.quant.cache import CacheKey, CalibrationCache

    inspect(good / path.name)
    parts = inspect(good / path.name)["key"]
    cache = CalibrationCache(path.parent)
    key = CacheKey(parts)
    shutil.copy(path, cache.path(key))
    found, why = cache.load(key)
    assert why
    if found is not None:
        shutil.copy(good / path.name, cache.path(key))
        kept, _ = cache.load(key)
        assert kept is not None
        assert {k: v.amax for k, v in found.items()} == {k: v.amax for k, v in kept.items()}
    inspect(path)


def _weights(path: Path, good: Path) -> None:
    state = read_state_dict(path)
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    inspect(path) if path.suffix == ".safetensors" else None


def _cache(path: Path, good: Path) -> None:
    import_calib(
        ImportCalibSpec(
            cache=str(path), onnx=str(good / "model.fp32.onnx"), out=str(path.parent / "imported")
        )
    )


def _recipe(path: Path, good: Path) -> None:
    load_recipe(path)
    inspect(path)


def _devices(path: Path, good: Path) -> None:
    assert isinstance(known_devices(), dict)


def _onnx(path: Path, good: Path) -> None:
    inspect(path)
    run_lint(LintSpec(onnx=str(path), target="rtx4090"))
    run_lint(LintSpec(onnx=str(path), target="orin@10.3", fix=str(path.parent / "fixed.onnx")))


def _onnx_build(path: Path, good: Path) -> None:
    from trtq.engine.build import dry_run
    from trtq.specs import BuildSpec

    dry_run(
        BuildSpec(
            onnx=str(path),
            target="orin@10.3",
            backend="trtexec",
            out=str(path.parent / "e.engine"),
            precision="fp16",
        )
    )


@dataclass(frozen=True)
class Kind:
    """A kind of file: which one, how it is damaged, what reads it."""

    file: str
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path, Path], None]


KINDS = {
    "quantize record": Kind("quantize.json", m.mutate_json, _quantize),
    "evaluate record": Kind("evaluate.json", m.mutate_json, _evaluation),
    "bench record in a gate": Kind("bench.json", m.mutate_json, _gate),
    "bench record in a report": Kind("bench.qdq.json", m.mutate_json, _report),
    "analysis": Kind("analysis.json", m.mutate_json, _analysis),
    "allocation": Kind("allocation.json", m.mutate_json, _allocation),
    "search record": Kind("search.json", m.mutate_json, _record),
    "manifest": Kind("x.engine.json", m.mutate_json, _manifest),
    "encodings": Kind("encodings.safetensors", m.mutate_safetensors, _encodings),
    "calibration entry": Kind("entry.safetensors", m.mutate_safetensors, _entry),
    "checkpoint of torch": Kind("w.pt", m.mutate_zip, _weights),
    "checkpoint in safetensors": Kind("w.safetensors", m.mutate_safetensors, _weights),
    "calibration cache": Kind("net.cache", m.mutate_lines, _cache),
    "recipe": Kind("recipe.toml", m.mutate_lines, _recipe),
    "devices": Kind("devices.json", m.mutate_json, _devices),
    "ONNX": Kind("model.qdq.onnx", m.mutate_onnx, _onnx),
    "ONNX to build": Kind("model.fp32.onnx", m.mutate_onnx, _onnx_build),
}
BESIDE = (
    "quantize.json",
    "encodings.safetensors",
    "x.engine",
)  # what some readers want beside the damaged file


def fuzz(name: str, numbers: range, home: Path, folder: Path) -> None:
    """Damage one kind of file in many ways.

    Raises:
        AssertionError: an exception that a user would see as a traceback, or a wrong answer; names
            the mutation.
    """
    kind, wrong = KINDS[name], []
    good = (home / kind.file).read_bytes()
    for number in numbers:
        place = folder / f"{number}"
        place.mkdir()
        for beside in BESIDE:
            shutil.copy(home / beside, place)
        path = place / kind.file
        path.write_bytes(kind.mutate(good, random.Random(f"{name} {number}")))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path, home)
        except TrtqError as exc:
            assert str(exc).strip()
        except Exception as exc:
            if explain_system(exc) is None:
                wrong.append(f"{name} {number}: {type(exc).__name__}: {exc!s:.200} {_place(exc)}")
        shutil.rmtree(place, ignore_errors=True)
    assert not wrong, "\n".join(wrong)


def _place(exc: BaseException) -> str:
    import traceback

    return " < ".join(
        f"{Path(f.filename).name}:{f.lineno}"
        for f in reversed(traceback.extract_tb(exc.__traceback__)[-4:])
    )


@pytest.mark.parametrize(
    "name", [k for k in KINDS if k not in ("bench record in a gate", "devices")]
)
def test_the_undamaged_file_is_read(name, home, tmp_path):
    kind = KINDS[name]
    for file in (*BESIDE, kind.file):
        shutil.copy(home / file, tmp_path)
    kind.read(tmp_path / kind.file, home)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_errors_of_trtq(name, home, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / "0"))
    count = 1 if name in PAGES or name == "devices" else SHORT
    fuzz(name, range(count), home, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_thousand_damaged_files(name, home, tmp_path, monkeypatch):
    last = LONG // 2 if name in PAGES else LONG
    if name != "devices":
        fuzz(name, range(last), home, tmp_path)
        return
    for number in range(last):
        monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / str(number)))
        fuzz(name, range(number, number + 1), home, tmp_path)
