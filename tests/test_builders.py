"""Builders of every generation: the Python API, trtexec, memory, missing kernels.

The Python API runs against a stand-in with the names of each release.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest

from tests.conftest import run_cli, spec
from trtq import BuildSpec, EvaluateSpec, build, evaluate, quantize
from trtq.artifact import locked
from trtq.engine import open_engine as opening
from trtq.engine import select_builder as choose
from trtq.engine import worker_process
from trtq.engine.manifest import read_manifest
from trtq.engine.open_engine import open_engine, require_same
from trtq.engine.runner import EngineRunner, OnnxRunner
from trtq.engine.worker_process import is_installed, start_early
from trtq.errors import (
    AgreementError,
    ArtifactError,
    BuilderMemoryError,
    EngineError,
    ExportError,
    MissingExtraError,
    MissingKernelError,
    UsageError,
)
from trtq.export.ort import open_session, run_batch
from trtq.platform.releases import releases
from trtq.testing.tensorrt import names_of, read_fake_plan, write_fake_tensorrt
from trtq.testing.trtexec import write_fake_trtexec

RELEASES = ("8.5.2", "8.6.1", "9.3.0", "10.0.1", "10.3.0", "10.13.3", "10.16.1", "11.4.0")


@pytest.fixture(scope="module")
def files(images, tmp_path_factory) -> Path:
    """The tiny CNN in opset 13, which every release reads."""
    out = tmp_path_factory.mktemp("old")
    quantize(spec(images, out, opset=13))
    return out


@pytest.fixture
def tensorrt(tmp_path, monkeypatch):
    """Return a function that puts a TensorRT of some release and a GPU of the target here."""
    import torch

    def make(version: str, capability: tuple[int, int] = (8, 6)) -> None:
        folder = write_fake_tensorrt(tmp_path / f"fake-{version}", version)
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop("tensorrt", None)
        monkeypatch.setattr(choose, "is_installed", lambda module: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    yield make
    sys.modules.pop("tensorrt", None)


def asked(files: Path, out: Path, **more) -> BuildSpec:
    given = {
        "onnx": f"{files}/model.qdq.onnx",
        "target": "sm86",
        "backend": "tensorrt",
        "out": str(out / "e.engine"),
        **more,
    }
    return BuildSpec(**given)


def with_note(files: Path, folder: Path, note: str) -> Path:
    """Return a copy of the Q/DQ file that the stand-ins stumble over."""
    model = onnx.load(files / "model.qdq.onnx")
    model.doc_string = note
    onnx.save(model, folder / "model.qdq.onnx")
    return folder


# ---- the Python API of each release ------------------------------------------------------------


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pain_4_every_release_is_asked_in_its_own_words(
    version, precision, files, tmp_path, tensorrt
):
    """Up to TensorRT 9 flags give the precision; from 10 on the graph does.

    No flag that a release no longer has is touched.
    """
    tensorrt(version)
    made = build(asked(files, tmp_path, precision=precision, workspace=512, batch=(1, 2, 4)))
    head, model = read_fake_plan((tmp_path / "e.engine").read_bytes())
    release = tuple(int(v) for v in version.split(".")[:2])
    old = release < (10, 0)
    assert (made.builder["backend"], made.builder["version"]) == ("tensorrt", version)
    assert head["workspace"] == 512
    assert head["shapes"] == {"input": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]]}
    assert head["flags"].get("INT8", False) == old
    assert head["flags"].get("FP16", False) == (old and precision == "fp16")
    assert head["creation"].get("STRONGLY_TYPED", False) == (not old)
    assert head["creation"].get("EXPLICIT_BATCH", False) == old
    halves = [
        i
        for i in onnx.load_from_string(model).graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT16
    ]
    assert bool(halves) == (not old and precision == "fp16")
    assert made.tensors[0] == {
        "name": "input",
        "dtype": "FLOAT",
        "shape": [-1, 3, 32, 32],
        "mode": "input",
    }


def test_what_a_release_does_not_have_is_refused_before_it_builds(files, tmp_path, tensorrt):
    tensorrt("8.5.2")
    for option, value, feature in (
        ("optimization_level", 5, "optimization level"),
        ("version_compatible", True, "version-compatible engines"),
        ("hardware_compatible", "ampere+", "hardware-compatible engines"),
        ("strip_weights", True, "engines without weights"),
    ):
        name = option.replace("_", "-")
        with pytest.raises(
            EngineError,
            match=f"Cannot build with --{name} for .* 8.5 has no {feature} .*Leave --{name} out",
        ):
            build(asked(files, tmp_path, **{option: value}))
    with pytest.raises(
        EngineError, match="Cannot build with --dla for compute capability 8.6: it has no DLA"
    ):
        build(asked(files, tmp_path, dla=0))
    tensorrt("10.3.0", (7, 5))
    with pytest.raises(
        EngineError,
        match=r"--hardware-compatible ampere\+: Tesla T4 has compute capability 7.5, below 8.0",
    ):
        build(asked(files, tmp_path, target="t4", hardware_compatible="ampere+"))


def test_options_reach_the_builder(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    cache = tmp_path / "timing.cache"
    build(
        asked(
            files,
            tmp_path,
            optimization_level=1,
            version_compatible=True,
            strip_weights=True,
            timing_cache=str(cache),
        )
    )
    head, _ = read_fake_plan((tmp_path / "e.engine").read_bytes())
    assert head["level"] == 1
    assert head["flags"]["VERSION_COMPATIBLE"] and head["flags"]["STRIP_PLAN"]
    assert cache.read_bytes() == b"timings "
    build(asked(files, tmp_path, timing_cache=str(cache)))
    assert cache.read_bytes() == b"timings timings "  # read, and more was learned


def test_a_damaged_timing_cache_is_made_anew_and_that_is_said(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"\x00 garbage")
    made = build(asked(files, tmp_path, timing_cache=str(cache)))
    assert any(
        "is damaged, or of another GPU or TensorRT: it is made anew" in line
        for line in made.builder_log
    )
    assert cache.read_bytes() == b"timings "


def test_a_release_that_is_not_the_one_asked_for(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    with pytest.raises(
        EngineError,
        match="Cannot build for sm86@10.16 here: the module tensorrt is of TensorRT 10.3, not "
        "10.16",
    ):
        build(asked(files, tmp_path, target="sm86@10.16"))


def test_a_tensorrt_that_does_not_load(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    (tmp_path / "fake-10.3.0/tensorrt/__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10 is not there')"
    )
    with pytest.raises(
        EngineError,
        match="Cannot tell which TensorRT is installed: ImportError: libnvinfer.so.10 is not there",
    ):
        build(asked(files, tmp_path))


def test_the_stand_in_has_the_names_of_its_release_alone():
    assert hasattr(names_of("8.5.2")["BuilderFlag"], "FP16")
    assert not hasattr(names_of("11.4.0")["BuilderFlag"], "FP16")
    assert "IProgressMonitor" not in names_of("8.6.1")
    config = names_of("10.0.0")["Builder"](None).create_builder_config()
    with pytest.raises(AttributeError, match="config of TensorRT 10.0.0 has no max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match="has no set_memory_pool_limit"):
        names_of("8.2.1")["Builder"](None).create_builder_config().set_memory_pool_limit(
            "workspace", 1
        )


def test_progress_comes_from_the_builder(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    seen = []

    class Told:
        def begin(self, label, total):
            seen.append((label, total))

        def advance(self, count):
            seen.append(count)

        def status(self, text): ...

        def note(self, text): ...

    build(asked(files, tmp_path), Told())
    assert seen == [("TensorRT: Building", 2), 1]


def test_a_parser_that_refuses_says_all_it_has(files, tmp_path, tensorrt, monkeypatch):
    tensorrt("8.6.1")
    # A catalogue that is wrong about the explicit batch of 8.x: what TensorRT then says reaches the
    # user.
    wrong = tmp_path / "sitecustomize.py"
    wrong.write_text(
        "from trtq.platform import releases\n"
        "late = releases.Span((10, 0), (10, 16))\n"
        "releases.releases().apis['EXPLICIT_BATCH'] = late\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    with pytest.raises(
        EngineError, match="the ONNX parser refuses node 0: Network must have an explicit batch"
    ):
        build(asked(files, tmp_path))
    assert releases().apis["EXPLICIT_BATCH"].first == (8, 0)


# ---- pains 18, 26: no kernel, no memory --------------------------------------------------------


@pytest.mark.parametrize("backend", ["tensorrt", "trtexec"])
def test_pain_26_a_builder_killed_for_memory_gets_less_of_it(
    backend, files, tmp_path, tensorrt, monkeypatch
):
    tensorrt("10.3.0")
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300", sm="8.6")))
    with_note(files, tmp_path, "memory:600")
    made = build(asked(tmp_path, tmp_path, backend=backend))
    assert [a.workspace for a in made.attempts] == [None, 4096, 2048, 1024]
    assert made.workspace == 512
    assert "4 attempts before" in made.summary
    assert all(
        "the system killed it, most likely for the memory it took" in a.error for a in made.attempts
    )


def test_pain_26_nothing_helps(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    with_note(files, tmp_path, "memory:10")
    with pytest.raises(
        BuilderMemoryError,
        match=r"tried workspaces of 256 MiB, 128 MiB, 64 MiB. Give it less .*, or add swap",
    ):
        build(asked(tmp_path, tmp_path, workspace=256))
    assert not (tmp_path / "e.engine").exists()


@pytest.mark.parametrize("backend", ["tensorrt", "trtexec"])
def test_pain_18_a_node_without_a_kernel_loses_its_pairs_and_only_it(
    backend, files, tmp_path, tensorrt, monkeypatch
):
    tensorrt("10.3.0")
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300", sm="8.6")))
    name = next(
        n.name
        for n in onnx.load(files / "model.qdq.onnx").graph.node
        if n.op_type == "Conv" and "conv1" in n.name
    )
    with_note(files, tmp_path, f"no-kernel:{name}")
    with pytest.raises(
        MissingKernelError, match=r"Could not find any implementation for node .*--fallback"
    ):
        build(asked(tmp_path, tmp_path, backend=backend))
    made = build(asked(tmp_path, tmp_path, backend=backend, fallback=True))
    assert made.fallback == f"without Q/DQ pairs, for want of a kernel: {name}"
    assert [a.without for a in made.attempts] == [[]]
    if backend == "tensorrt":
        _, model = read_fake_plan((tmp_path / "e.engine").read_bytes())
        graph = onnx.load_from_string(model).graph
        made_by = {o: n for n in graph.node for o in n.output}
        dequantized = [
            n.name
            for n in graph.node
            if n.op_type == "Conv" and made_by[n.input[0]].op_type == "DequantizeLinear"
        ]
        before = [
            n.name for n in onnx.load(files / "model.qdq.onnx").graph.node if n.op_type == "Conv"
        ]
        assert dequantized == [n for n in before if n != name]


def test_a_kernel_that_lacks_scratch_memory_is_no_missing_kernel(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    with_note(files, tmp_path, "starved:conv1/Conv")
    with pytest.raises(
        EngineError,
        match="insufficient workspace.*Give the builder more scratch memory: --workspace",
    ) as found:
        build(asked(tmp_path, tmp_path, workspace=16, fallback=True))
    assert not isinstance(found.value, MissingKernelError)


def test_files_without_node_names_lose_the_pairs_of_one_node_alone(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    model = onnx.load(files / "model.qdq.onnx")
    for node in model.graph.node:
        node.name = ""
    number = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Conv")
    model.doc_string = f"no-kernel:Conv_{number}"
    onnx.save(model, tmp_path / "model.qdq.onnx")
    made = build(asked(tmp_path, tmp_path, fallback=True))
    assert made.fallback == f"without Q/DQ pairs, for want of a kernel: Conv_{number}"
    whole = sum(n.op_type == "QuantizeLinear" for n in model.graph.node)
    assert made.quantized_tensors == whole - 2


def test_the_ladder_of_old_releases_starts_where_they_do(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8201", sm="7.2")))
    with_note(files, tmp_path, "memory:300")
    made = build(asked(tmp_path, tmp_path, backend="trtexec", target="xavier"))
    assert [a.workspace for a in made.attempts] == [1024, 512]
    assert made.builder["command"].startswith(
        f"{tmp_path}/trtexec --onnx={tmp_path}/model.qdq.onnx --saveEngine={tmp_path}/e.engine"
    )
    assert "--workspace=256" in made.builder["command"]
    assert made.builder["version"] == "8.2.1"


def test_what_cannot_be_kept_in_fp32_is_said_and_not_claimed(images, tmp_path, monkeypatch):
    quantize(spec(images, tmp_path / "q", model="tests.test_half:large", opset=13))
    wanted = {
        "onnx": f"{tmp_path}/q/model.fp32.onnx",
        "target": "xavier",
        "backend": "trtexec",
        "precision": "fp16",
    }
    for version, kept in (("v8201", False), ("v8502", True)):
        monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, version, sm="7.2")))
        made = build(BuildSpec(**wanted, out=f"{tmp_path}/e.engine"))
        assert bool(made.float_nodes) == kept
        assert ("--layerPrecisions=" in made.builder["command"]) == kept
        assert ("--layerOutputTypes=" in made.builder["command"]) == kept
        assert (
            any(
                "this builder cannot keep" in n and "--precision fp32 is safe" in n
                for n in made.notes
            )
            != kept
        )


def test_constants_that_are_listed_as_inputs_are_none(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    model = onnx.load(files / "model.fp32.onnx")
    weights = [
        onnx.helper.make_tensor_value_info(i.name, i.data_type, list(i.dims))
        for i in model.graph.initializer
    ]
    inputs = [*weights, *model.graph.input]  # weights first, as some tools write IR 3
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, tmp_path / "m.onnx")
    for precision in ("fp32", "fp16"):
        made = build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", precision=precision))
        assert [t["name"] for t in made.tensors] == ["input", "output"]
        assert made.batch == (1, 8, 32)


def test_an_open_batch_that_is_written_as_minus_one(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    model = onnx.load(files / "model.qdq.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "m.onnx")
    assert build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", batch=(1, 2, 4))).batch == (
        1,
        2,
        4,
    )


def test_weights_in_a_file_beside_are_part_of_the_digest(files, tmp_path, tensorrt):
    tensorrt("10.3.0")
    model, seen = onnx.load(files / "model.qdq.onnx"), set()
    for value in (0.0, 1.0):
        for t in model.graph.initializer:
            if t.name == "conv1.weight":
                t.CopyFrom(
                    onnx.numpy_helper.from_array(
                        onnx.numpy_helper.to_array(t) + np.float32(value), t.name
                    )
                )
        onnx.save(
            onnx.load_from_string(model.SerializeToString()),
            tmp_path / "m.onnx",
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
        )
        seen.add(build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx")).onnx_sha256)
        (tmp_path / "m.data").unlink()
    assert len(seen) == 2


def test_what_tensorrt_for_rtx_does_not_have(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    for option, value in (
        ("hardware_compatible", "ampere+"),
        ("version_compatible", True),
        ("strip_weights", True),
        ("dla", 0),
    ):
        name = option.replace("_", "-")
        with pytest.raises(
            EngineError,
            match=f"Cannot build with --{name} for .* has no .*Leave --{name} out",
        ):
            build(asked(files, tmp_path, backend="tensorrt-rtx", **{option: value}))
    with pytest.raises(UsageError, match="Cannot use a timing cache with TensorRT for RTX"):
        build(asked(files, tmp_path, backend="tensorrt-rtx", timing_cache=f"{tmp_path}/c"))


def test_a_dla_takes_no_pairs_and_no_fp32(files, tmp_path, tensorrt):
    tensorrt("8.5.2", (7, 2))
    with pytest.raises(
        EngineError,
        match="for the DLA: it takes no Q/DQ pairs, in no release. Export a calibration cache",
    ):
        build(asked(files, tmp_path, target="xavier", dla=0))
    plain = {"onnx": f"{files}/model.fp32.onnx", "target": "xavier", "dla": 0}
    with pytest.raises(
        EngineError,
        match="for the DLA in FP32: it computes in FP16 and INT8 alone: everything would run on "
        "the GPU",
    ):
        build(asked(files, tmp_path, **plain))
    build(asked(files, tmp_path, **plain, precision="fp16"))
    head, _ = read_fake_plan((tmp_path / "e.engine").read_bytes())
    assert head["flags"]["FP16"] and head["flags"]["GPU_FALLBACK"]


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


def test_onnx_runtime_providers_that_are_not_here(files):
    for provider, spelled in (
        ("CUDA", "CUDA"),
        ("TensorRT", "TensorRT"),
        ("NvTensorRTRTX", "NvTensorRTRTX"),
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
    page = (Path(__file__).parent.parent / "docs/engine.md").read_text()
    programs = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', page, re.S))
    for name, text in programs.items():
        here = text.replace('.to("cuda")', "").replace(
            "open_engine(engine)", 'open_engine(engine, device="cpu")'
        )
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


# ---- pain 3: the agreement gate ----------------------------------------------------------------


def test_agreement_without_a_gpu_runs_what_exists_and_says_so(files, images, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = build(
        asked(files, tmp_path, backend="auto", precision="fp16", data=str(images), check_images=8)
    )
    (one,) = made.agreement.comparisons
    assert one.runner == "what was built, in ONNX Runtime, every FP16 result rounded"
    assert one.passed and one.sqnr_db > 15.0
    assert any("torch's simulation agreed with the file on" in m for m in made.agreement.missing)
    assert any(
        "the engine did not run: it needs its NVIDIA GPU" in m for m in made.agreement.missing
    )
    same = build(asked(files, tmp_path, backend="auto", data=str(images), check_images=8))
    assert same.agreement.comparisons == []
    assert "nothing but the file itself ran" in same.summary


def test_pain_3_a_wrong_engine_fails_and_the_place_is_named(
    files, images, tmp_path, tensorrt, monkeypatch
):
    """The builder below doubles the scale of one layer.

    The shipped engine computes something else than the file.
    """
    tensorrt("10.3.0")
    monkeypatch.setattr("trtq.engine.build.EngineRunner", partial(EngineRunner, device="cpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    good = build(asked(files, tmp_path, data=str(images), check_images=8))
    assert [c.runner for c in good.agreement.comparisons] == ["engine"]
    assert good.agreement.comparisons[0].agreement == 100.0
    kept = (tmp_path / "e.engine").read_bytes()
    broken = tmp_path / "fake-10.3.0/sitecustomize.py"
    broken.write_text(
        "import numpy as np, onnx\n"
        "from onnx import numpy_helper\n"
        "import trtq.testing.tensorrt as fake\n"
        "right = fake._Parser.parse\n"
        "def parse(self, model):\n"
        "    done = right(self, model)\n"
        "    graph = self.network.model.graph\n"
        "    pair = next(n for n in graph.node if n.name == 'conv1.input/DequantizeLinear')\n"
        "    scale = next(t for t in graph.initializer if t.name == pair.input[1])\n"
        "    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale) * "
        "np.float32(2), 'doubled'))\n"
        "    pair.input[1] = 'doubled'\n"
        "    return done\n"
        "fake._Parser.parse = parse\n"
    )
    with pytest.raises(
        AgreementError,
        match=r"does not compute what the ONNX file says: engine: .*they part first at conv1.input",
    ):
        build(asked(files, tmp_path, data=str(images), check_images=8))
    assert (tmp_path / "e.engine").read_bytes() == kept  # the engine that was right stays


def test_the_engine_that_ships_is_the_one_that_runs(files, images, tmp_path, tensorrt, monkeypatch):
    """The first plan of a builder is wrong and its second is right: the first must be compared."""
    tensorrt("10.3.0")
    monkeypatch.setattr("trtq.engine.build.EngineRunner", partial(EngineRunner, device="cpu"))
    flag = tmp_path / "built-once"
    (tmp_path / "fake-10.3.0/sitecustomize.py").write_text(
        "import pathlib, onnx\n"
        "from onnx import numpy_helper\n"
        "import trtq.testing.tensorrt as fake\n"
        "right = fake._Parser.parse\n"
        "def parse(self, model):\n"
        "    done = right(self, model)\n"
        f"    flag = pathlib.Path({str(flag)!r})\n"
        "    if not flag.exists():\n"
        "        flag.touch()\n"
        "        t = next(t for t in self.network.model.graph.initializer if t.name == "
        "'head.weight')\n"
        "        t.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(t), t.name))\n"
        "    return done\n"
        "fake._Parser.parse = parse\n"
    )
    with pytest.raises(
        AgreementError, match="engine: .*they part first at the output, after the last of them"
    ):
        build(asked(files, tmp_path, data=str(images), check_images=10, batch=(4, 8, 8)))
    assert not (tmp_path / "e.engine").exists()


def test_fp16_that_overflows_does_not_pass(files, images, tmp_path):
    """ONNX Runtime computes chains of FP16 ops in float32 and shows no overflow.

    The gate rounds every result.
    """
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(files / "model.fp32.onnx")
    big = onnx.numpy_helper.from_array(np.float32(3e4), "big")
    small = onnx.numpy_helper.from_array(np.float32(1 / 3e4), "small")
    model.graph.initializer.extend([big, small])
    first = model.graph.node[0]
    up = [
        onnx.helper.make_node("Mul", ["input", "big"], ["u"], name="up"),
        onnx.helper.make_node("Mul", ["u", "big"], ["v"], name="up2"),
    ]
    down = [
        onnx.helper.make_node("Mul", ["v", "small"], ["w"], name="d"),
        onnx.helper.make_node("Mul", ["w", "small"], ["x2"], name="d2"),
    ]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "input":
                node.input[i] = "x2"
    nodes = [*up, *down, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for entry in list(model.metadata_props):
        if entry.key == "trtq.float_nodes":
            model.metadata_props.remove(entry)
    onnx.save(model, tmp_path / "m.onnx")
    assert first.op_type
    with pytest.raises(
        AgreementError,
        match="every FP16 result rounded: an output is missing, NaN or infinite.*they part first "
        "at",
    ):
        build(
            asked(
                files,
                tmp_path,
                onnx=f"{tmp_path}/m.onnx",
                backend="auto",
                precision="fp16",
                data=str(images),
            )
        )


def test_agreement_needs_to_know_the_preprocessing(files, images, tmp_path):
    model = onnx.load(files / "model.qdq.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(
        UsageError, match="the file does not say how images become its input. Leave --data out"
    ):
        build(
            asked(
                files, tmp_path, onnx=f"{tmp_path}/foreign.onnx", backend="auto", data=str(images)
            )
        )


# ---- the command -------------------------------------------------------------------------------


def test_two_builds_of_one_engine_at_once(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    line = [
        sys.executable,
        "-m",
        "trtq",
        "build",
        f"{files}/model.qdq.onnx",
        "--target",
        "rtx3080",
        "--out",
        f"{tmp_path}/e.engine",
    ]
    both = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    read_manifest(tmp_path / "e.engine")
    with locked(tmp_path / ".e.engine.lock"):
        late = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert (
            "Another trtq is at work here (.e.engine.lock); waiting for it to end"
            in late.stderr.readline()
        )
    assert late.communicate(timeout=120) and late.returncode == 0


def test_the_python_of_a_dry_run_names_the_module(files, tmp_path):
    done = run_cli(
        "build",
        f"{files}/model.qdq.onnx",
        "--target",
        "h200@11.4",
        "--backend",
        "tensorrt",
        "--dry-run",
        "--out",
        f"{tmp_path}/e",
    )
    assert done.stdout.startswith('import os\nos.environ["TRTQ_TENSORRT"] = "tensorrt"\n')
    asked_for = json.loads(json.loads(done.stdout.partition("build_json(")[2].rpartition(")")[0]))
    assert asked_for["typed"] is True
    assert asked_for["sm"] is None


def test_a_full_disk_keeps_the_engine_of_before(files, tmp_path, small_disk, tensorrt):
    tensorrt("10.3.0")
    engine = small_disk / "e.engine"
    engine.write_bytes(b"the one of before")
    with pytest.raises(ArtifactError, match="No space left"):
        build(asked(files, small_disk))
    assert engine.read_bytes() == b"the one of before"
    assert not (small_disk / "e.engine.json").exists()


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


def test_all_errors_of_the_parser_with_their_nodes(files, tmp_path, monkeypatch):
    """The real parser refuses an unknown op, and the error names the op's module.

    Lint names the same nodes before the builder starts.
    """
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(files / "model.fp32.onnx")
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "MyRelu", "com.me"
    model.opset_import.append(onnx.helper.make_opsetid("com.me", 1))
    onnx.save(model, tmp_path / "m.onnx")
    said = (
        r"L02, relu/Relu: no TensorRT reads MyRelu of the domain com.me; L02, relu_1/Relu: .*; "
        r"L02, relu_2/Relu: .*"
    )
    with pytest.raises(EngineError, match=said):
        build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", backend="auto"))
    monkeypatch.setattr("trtq.engine.build.refuse_errors", lambda *_: None)
    with pytest.raises(
        EngineError,
        match=r"the ONNX parser refuses relu/Relu \(MyRelu\): .*; relu_1/Relu \(MyRelu\): .*; "
        r"relu_2/Relu",
    ):
        build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", backend="auto"))


# ---- the file that is built from ---------------------------------------------------------------


def test_a_file_is_built_from_where_it_lies_and_must_not_change(files, tmp_path, monkeypatch):
    """A file that needs no change is not copied.

    A file that changes during the build gives no engine, and the old engine stays.
    """
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="8.7")))
    with_note(files, tmp_path, "seconds:1.5")
    given = partial(
        asked, tmp_path, tmp_path, backend="trtexec", target="orin@8.5", precision="fp32"
    )
    made = build(given())
    assert f"--onnx={tmp_path}/model.qdq.onnx" in made.builder["command"]
    before = (tmp_path / "e.engine").read_bytes()
    path = tmp_path / "model.qdq.onnx"
    timer = threading.Timer(0.8, lambda: path.write_bytes(path.read_bytes() + b""))
    timer.start()
    with pytest.raises(
        EngineError,
        match="model.qdq.onnx changed while the engine was built from it: what was checked may "
        "not be what",
    ):
        build(given())
    timer.join()
    assert (tmp_path / "e.engine").read_bytes() == before
    timer = threading.Timer(0.8, path.unlink)
    timer.start()
    with pytest.raises(EngineError, match="changed while the engine was built"):
        build(given())
    timer.join()


def test_what_rtx_is_not(files, tmp_path):
    """A release of TensorRT in the target is no wish that TensorRT for RTX can meet."""
    with pytest.raises(
        EngineError,
        match=r"Cannot build for rtx4090@8.6 with TensorRT-RTX: its engines load .*, not in "
        r"TensorRT 8.6",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.qdq.onnx",
                target="rtx4090@8.6",
                backend="tensorrt-rtx",
                out=str(tmp_path / "e.engine"),
            )
        )
    with pytest.raises(
        MissingExtraError,
        match=r"Building for rtx4090@10.3 .* needs full TensorRT.*TensorRT-RTX has releases of "
        r"its own",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.qdq.onnx",
                target="rtx4090@10.3",
                out=str(tmp_path / "e.engine"),
            )
        )


def test_a_cache_of_another_model(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="7.2")))
    (tmp_path / "c.cache").write_text(
        "TRT-8502-EntropyCalibration2\nfoo: 3c010a14\nbar: 3c010a14\n"
    )
    with pytest.raises(
        EngineError,
        match=r"the cache names no tensor of the model \(it has foo, bar\). Give the ONNX file "
        r"that the cache",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.fp32.onnx",
                target="xavier@8.5",
                backend="trtexec",
                calibration=str(tmp_path / "c.cache"),
                out=str(tmp_path / "e.engine"),
            )
        )


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT for RTX is not installed")
def test_the_worker_loads_while_the_file_is_read_and_ends_without_a_request(cnn_out, tmp_path):
    asked = BuildSpec(
        onnx=f"{cnn_out}/model.qdq.onnx", target="rtx3080", out=f"{tmp_path}/e.engine"
    )
    start_early(asked)
    (early,) = worker_process._early
    assert build(asked).builder["backend"] == "tensorrt-rtx"
    assert (early.process.returncode, worker_process._early) == (0, [])
    start_early(msgspec.structs.replace(asked, target="xavier@8.5"))  # another builder's
    assert worker_process._early == []
    start_early(asked)
    worker = worker_process.start("tensorrt_rtx")
    with worker.errors:
        out, _ = worker.process.communicate("")
    assert (out, worker.process.returncode) == ("", 0)
