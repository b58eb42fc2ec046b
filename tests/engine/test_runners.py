"""Engines that run: versions, trust, and accuracy."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from tests.support.bench import QUICK
from tests.support.builds import asked
from trtq import BenchSpec, EvaluateSpec, bench, build, evaluate
from trtq.bench import harness
from trtq.bench.engine_workload import EngineWorkload
from trtq.commands.doctor import doctor
from trtq.engine import open_engine as opening
from trtq.engine.manifest import read_manifest
from trtq.engine.open_engine import open_engine, require_same
from trtq.engine.runner import EngineRunner, OnnxRunner
from trtq.errors import EngineError, ExportError, UsageError
from trtq.export.ort import open_session, run_batch
from trtq.testing.tensorrt import names_of
from trtq.testing.trtexec import write_fake_trtexec

# ---- runners: both APIs, and what must not be loaded -------------------------------------------


@pytest.mark.parametrize("version", ["8.2.1", "8.5.2", "10.3.0", "11.4.0"])
def test_engines_run_through_the_api_of_their_release(version, files, tmp_path, tensorrt):
    tensorrt(version)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    wanted = run_batch(open_session(files / "model.qdq.onnx"), x)[0]
    names = names_of(version)
    builder, logger = names["Builder"](names["Logger"]()), names["Logger"]()
    network = builder.create_network(1)
    assert names["OnnxParser"](network, logger).parse((files / "model.qdq.onnx").read_bytes())
    profile = builder.create_optimization_profile()
    profile.set_shape("input", [1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32])
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    runner = EngineRunner(plan, "tensorrt", device="cpu")
    assert runner.input_shape == [None, 3, 32, 32]
    np.testing.assert_allclose(next(iter(runner.run(x).values())), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        EngineError, match=r"does not take input \[8, 3, 32, 32\]: it is outside the profile"
    ):
        runner.run(np.zeros((8, 3, 32, 32), np.float32))
    with pytest.raises(EngineError, match=rf"TensorRT {version} cannot load the engine"):
        EngineRunner(b"something else", "tensorrt", device="cpu")


def test_a_tensor_of_a_type_is_named(files, tmp_path, tensorrt, monkeypatch):
    tensorrt("10.3.0")
    names = names_of("10.3.0")
    builder, logger = names["Builder"](names["Logger"]()), names["Logger"]()
    network = builder.create_network(1)
    names["OnnxParser"](network, logger).parse((files / "model.qdq.onnx").read_bytes())
    plan = builder.build_serialized_network(network, builder.create_builder_config())

    def refuse(kind):
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")

    monkeypatch.setattr(importlib.import_module("tensorrt"), "nptype", refuse)
    with pytest.raises(EngineError, match="its tensor input is float32, a type that numpy does"):
        EngineRunner(plan, "tensorrt", device="cpu")


def test_onnx_runtime_providers_that_are_not_here(files):
    for provider, spelled in (
        ("CUDA", "CUDA"),
        ("TensorRT", "TensorRT"),
    ):
        with pytest.raises(
            ExportError,
            match=f"ONNX Runtime here cannot run on {spelled}: it offers .*CPUExecutionProvider",
        ):
            OnnxRunner(files / "model.qdq.onnx", provider=provider)


def test_pain_17_an_engine_of_another_version_or_gpu_is_explained_before_it_is_loaded(
    files, tmp_path, tensorrt
):
    tensorrt("10.3.0")
    build(asked(files, tmp_path))
    engine, manifest = tmp_path / "e.engine", read_manifest(tmp_path / "e.engine")
    with pytest.raises(
        EngineError,
        match=r"e.engine is not for the TensorRT here: it was built with 10.3.0, here is 10.7.0, "
        r"plans do not travel. "
        r"Build it again: trtq build .*model.qdq.onnx --target sm86 --out .*e.engine --backend "
        r"tensorrt, or add --rebuild",
    ):
        require_same(engine, manifest, "10.7.0", "8.6")
    with pytest.raises(
        EngineError,
        match=r"not for the GPU here: .*\(compute capability 8.6\), here is 8.9. .*--target sm89",
    ):
        require_same(engine, manifest, "10.3.0", "8.9")
    require_same(engine, manifest, "10.3.0", "8.6")
    loose = build(asked(files, tmp_path, version_compatible=True, hardware_compatible="ampere+"))
    require_same(engine, loose, "10.16.0", "9.0")
    with pytest.raises(
        EngineError, match="here is 10.0.1, .*--version-compatible --hardware-compatible ampere"
    ):
        require_same(engine, loose, "10.0.1", "8.6")  # later releases, not earlier ones
    with pytest.raises(EngineError, match="here is 11.4.0"):
        require_same(engine, loose, "11.4.0", "8.6")


@pytest.fixture
def on_cpu(monkeypatch):
    """Engines of the stand-in compute in host memory."""
    for name in ("open_engine", "rebuild_engine"):
        monkeypatch.setattr(
            f"trtq.commands.evaluate.{name}", partial(getattr(opening, name), device="cpu")
        )


def test_accuracy_of_an_engine_is_that_of_its_file(files, images, tmp_path, tensorrt, on_cpu):
    tensorrt("10.3.0")
    build(asked(files, tmp_path, batch=(1, 4, 8)))
    found = evaluate(
        EvaluateSpec(
            onnx=f"{tmp_path}/e.engine", data=str(images), reference=f"{files}/model.qdq.onnx"
        )
    )
    assert (found.runtime, found.images, found.agreement) == ("engine e.engine", 32, 100.0)
    assert found.preprocess.input_size == (3, 32, 32)  # from the manifest
    assert (
        found.top1 == evaluate(EvaluateSpec(onnx=f"{files}/model.qdq.onnx", data=str(images))).top1
    )


def test_a_tensorrt_newer_than_the_catalogue_is_named_and_used(
    files, images, tmp_path, tensorrt, on_cpu, monkeypatch
):
    """Builds, evaluations, measurements and the doctor name it and go on as with the newest."""
    newer = "TensorRT 12.0 is newer than this trtq, which knows releases up to 11.5"
    tensorrt("12.0.0")
    made = build(asked(files, tmp_path, batch=(1, 4, 8)))
    assert any(n.startswith(newer) for n in made.notes)
    engine = tmp_path / "e.engine"
    found = evaluate(EvaluateSpec(onnx=str(engine), data=str(images)))
    assert found.images == 32
    assert any(n.startswith(newer) for n in found.notes)
    feed = {"input": np.zeros((4, 3, 32, 32), np.float32)}
    workload = EngineWorkload(open_engine(engine, device="cpu"), feed, graph=False)
    monkeypatch.setattr("trtq.bench.workload.open_workload", lambda *_, **__: workload)
    monkeypatch.setattr(harness, "open_gpu", lambda device: (None, "a test"))
    (row,) = bench(BenchSpec(file=(str(engine),), **QUICK)).rows
    assert row.e2e.median.value > 0.0
    assert any(n.startswith(newer) for n in row.notes)
    monkeypatch.setattr("trtq.commands.doctor.package_version", {"tensorrt": "12.0.0"}.get)
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v120000")))
    notes = {c.name: c.note for c in doctor() if c.note}
    assert notes.keys() == {"tensorrt", "trtexec"}
    assert all(n.startswith(newer) for n in notes.values())


def test_pain_17_rebuild_gives_a_working_engine_beside_the_original(
    files, images, tmp_path, tensorrt, on_cpu
):
    tensorrt("10.3.0")
    build(asked(files, tmp_path))
    engine, sidecar = tmp_path / "e.engine", tmp_path / "e.engine.json"
    changed = json.loads(sidecar.read_text())
    changed["builder"]["version"] = "10.7.0"
    sidecar.write_text(json.dumps(changed))
    before = engine.read_bytes(), sidecar.read_bytes()
    wanted = EvaluateSpec(onnx=str(engine), data=str(images), reference=f"{files}/model.qdq.onnx")
    with pytest.raises(
        EngineError,
        match=r"it was built with 10.7.0, here is 10.3.0, plans do not travel. .*--rebuild",
    ):
        evaluate(wanted)
    found = evaluate(msgspec.structs.replace(wanted, rebuild=True))
    assert (found.agreement, found.runtime) == (100.0, "engine e.sm86.rebuilt.engine")
    assert (engine.read_bytes(), sidecar.read_bytes()) == before
    changed["onnx_sha256"] = "0" * 64
    sidecar.write_text(json.dumps(changed))
    with pytest.raises(
        EngineError,
        match="Cannot build e.engine again: .*model.qdq.onnx, which it was built from, is another "
        "file by now",
    ):
        evaluate(msgspec.structs.replace(wanted, rebuild=True))


def test_a_foreign_engine_is_not_loaded_without_trust(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    build(asked(files, tmp_path))
    engine = tmp_path / "e.engine"
    (tmp_path / "foreign.engine").write_bytes(engine.read_bytes())
    with pytest.raises(EngineError, match="has no manifest"):
        open_engine(tmp_path / "foreign.engine", device="cpu")
    assert open_engine(tmp_path / "foreign.engine", trust=True, device="cpu").input_shape == [
        None,
        3,
        32,
        32,
    ]
    engine.write_bytes(
        engine.read_bytes()[:-1] + b"\x00"
    )  # one byte flipped: no trust helps where a manifest speaks
    with pytest.raises(EngineError, match="belongs to another engine"):
        open_engine(engine, trust=True, device="cpu")


def test_no_gpu_and_no_tensorrt(files, tmp_path, tensorrt, monkeypatch):
    import torch

    tensorrt("10.3.0")
    build(asked(files, tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UsageError,
        match="Cannot run the engine e.engine here: it needs its NVIDIA GPU, and torch finds none",
    ):
        open_engine(tmp_path / "e.engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "fake-" not in p])
    sys.modules.pop("tensorrt", None)
    sys.path_importer_cache.clear()
    with pytest.raises(
        UsageError, match="the module tensorrt is not installed. pip install tensorrt"
    ):
        open_engine(tmp_path / "e.engine")


@pytest.mark.parametrize("size", [(50, 40), (40, 53)])
def test_the_programs_of_the_engine_page_answer_like_the_file(
    size, files, images, tmp_path, tensorrt, monkeypatch, capsys
):
    import torch
    from PIL import Image

    from trtq.data.preprocess import Preprocess
    from trtq.data.source import open_source
    from trtq.export.onnx_file import get_metadata, load_onnx

    tensorrt("10.3.0")
    (tmp_path / "out").mkdir()
    build(asked(files, tmp_path / "out"))
    shutil.copytree(images, tmp_path / "images/val")
    Image.open(next(images.rglob("*.png"))).resize(size).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model = load_onnx(files / "model.qdq.onnx")
    preprocess = msgspec.convert(get_metadata(model)["preprocess"], Preprocess)
    session = open_session(model)
    page = (Path(__file__).parents[2] / "docs/engine.md").read_text()
    programs = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.S))
    for name, text in programs.items():
        here = text.replace('.to("cuda")', "")
        here = re.sub(r"open_engine\(\s*engine\s*\)", 'open_engine(engine, device="cpu")', here)
        assert here != text
        here = here.replace("rtx4090.engine", "e.engine")
        exec(compile(here, name, "exec"), {})
        said = capsys.readouterr().out
        if name == "alone.py":
            wanted = run_batch(session, preprocess.apply(Image.open("image.png"))[None].numpy())[0]
            assert said.strip() == str(wanted.argmax(1).tolist())
        else:
            source = open_source("images/val")
            wanted = [
                run_batch(session, preprocess.apply(source.image(i))[None].numpy())[0].argmax(1)[0]
                for i in range(len(source))
            ]
            assert [int(v) for v in re.findall(r"\d+", said)] == wanted
    assert set(programs) == {"with_trtq.py", "alone.py"}


def test_truncated_engines(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    build(asked(files, tmp_path))
    engine = tmp_path / "e.engine"
    engine.write_bytes(engine.read_bytes()[:100])
    with pytest.raises(
        EngineError,
        match=r"e.engine.json belongs to another engine: it describes \d+ bytes .*, e.engine has "
        r"100 bytes",
    ):
        open_engine(engine, device="cpu")
    (tmp_path / "e.engine.json").unlink()
    with pytest.raises(EngineError, match=r"TensorRT 10.3.0 cannot load the engine e.engine"):
        open_engine(engine, device="cpu", trust=True)
