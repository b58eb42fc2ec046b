"""Engines and measurements from Python: a quantized module becomes an engine, with no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import trtq
from tests.support.builds import asked
from tests.support.onnx_files import open_sizes, two_images
from trtq.bench import harness
from trtq.engine import objects
from trtq.engine.manifest import read_manifest
from trtq.engine.worker_process import is_installed
from trtq.errors import UsageError
from trtq.export.ort import open_session, run_batch
from trtq.specs import BenchSpec, BuildSpec

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="no TensorRT for RTX")
QUICK = {"duration": 0.05, "min_samples": 10, "max_duration": 1.0}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    return trtq.quantize(module.eval(), torch.randn(16, 3, 16, 16), calib_images=16)


@pytest.fixture(scope="module")
def engine(small):
    return trtq.build(small, target="rtx3080", precision="fp16", batch="1:2:4")


@needs_rtx
def test_an_engine_of_a_quantized_model_is_that_of_its_file(small, engine, tmp_path):
    file = small.export("rtx3080").save(tmp_path / "m.onnx")
    spec = BuildSpec(
        onnx=str(file),
        target="rtx3080",
        precision="fp16",
        batch=(1, 2, 4),
        out=str(tmp_path / "e.engine"),
    )
    wanted = trtq.build(spec)
    for name in ("onnx_sha256", "inputs", "tensors", "quantized_tensors", "builder", "precision"):
        assert getattr(engine.manifest, name) == getattr(wanted, name), name
    ours, theirs = dict(engine.manifest.spec), dict(wanted.spec)
    assert (ours.pop("onnx"), ours.pop("out")) == (objects.IN_MEMORY, "")
    assert (theirs.pop("onnx"), theirs.pop("out")) == (str(file), spec.out)
    assert ours == theirs
    assert engine.manifest.coverage is not None
    assert engine.plan


@needs_rtx
def test_an_engine_is_saved_with_its_manifest(engine, tmp_path):
    saved = engine.save(tmp_path / "folder/model.engine")
    assert saved.read_bytes() == engine.plan
    assert read_manifest(saved).spec["out"] == str(saved)
    assert engine.summary == read_manifest(saved).summary
    with pytest.raises(UsageError, match="Cannot run the engine in memory here: it needs its NVID"):
        engine.open()


@needs_rtx
def test_models_in_memory_and_files_are_built(tmp_path):
    path = tmp_path / "two.onnx"
    onnx.save(two_images(), path)
    built = [
        trtq.build(model, target="sm86", out=tmp_path / f"{i}.engine", batch=(1, 1, 2))
        for i, model in enumerate((two_images(), path))
    ]
    assert [b.manifest.spec["onnx"] for b in built] == [objects.IN_MEMORY, str(path)]
    assert [read_manifest(tmp_path / f"{i}.engine").engine_sha256 for i in range(2)] == [
        b.manifest.engine_sha256 for b in built
    ]
    shapes = "images=1x3x32x32:1x3x64x64:2x3x64x96"
    (row,) = trtq.build(open_sizes(), target="sm86", shapes=shapes).manifest.inputs
    assert (row.axes, row.least, row.usual, row.most) == (
        ["batch", 3, "height", "width"],
        [1, 3, 32, 32],
        [1, 3, 64, 64],
        [2, 3, 64, 96],
    )


def test_what_cannot_be_built(files, tmp_path):
    with pytest.raises(
        UsageError,
        match="Cannot use a Linear as an ONNX model: expected a quantized or an exported model, .*"
        "Quantize a module first",
    ):
        trtq.build(nn.Linear(2, 2), target="sm86")
    with pytest.raises(UsageError, match="Cannot use other arguments beside a BuildSpec"):
        trtq.build(asked(files, tmp_path), target="sm86")
    with pytest.raises(UsageError, match="Cannot use other arguments beside a BenchSpec"):
        trtq.bench(BenchSpec(file=("x.onnx",)), duration=1.0)
    with pytest.raises(UsageError, match="trtq build needs --target"):
        trtq.build(two_images())
    with pytest.raises(UsageError, match="Unknown setting 'precison' in trtq.build.*precision"):
        trtq.build(two_images(), target="sm86", precison="fp16")


def test_an_engine_in_memory_runs(files, tensorrt):
    tensorrt("10.3.0")
    model = onnx.load(files / "model.fp32.onnx")
    engine = trtq.build(model, target="sm86", backend="tensorrt", batch=(1, 2, 2))
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    (answer,) = engine.open(device="cpu").run({"input": x}).values()
    np.testing.assert_allclose(answer, run_batch(open_session(model), x)[0], rtol=1e-4, atol=1e-5)


def test_a_model_in_memory_is_measured():
    (row,) = trtq.bench(open_sizes(), shapes="images=2x3x32x48", **QUICK).rows
    assert (row.kind, row.batch) == ("onnx", 2)
    assert row.input_shapes == {"images": [2, 3, 32, 48]}


@needs_rtx
def test_what_is_measured_of_objects(small, engine, monkeypatch):
    """A quantized model has its float model beside it, which the verdict compares it with."""
    seen = []

    def bench(spec, progress):
        seen.extend((f, sorted(p.name for p in Path(f).parent.iterdir())) for f in spec.file)
        return spec

    monkeypatch.setattr(harness, "bench", bench)
    asked_for = trtq.bench([small, engine, two_images()], batch=2, device="cuda:0")
    assert (asked_for.batch, asked_for.device, asked_for.shapes) == ((2,), "cuda:0", ())
    assert [(Path(f).name, beside) for f, beside in seen] == [
        ("model.onnx", ["model.fp32.onnx", "model.onnx"]),
        ("e.engine", ["e.engine", "e.engine.json"]),
        ("model.onnx", ["model.onnx"]),
    ]
