"""Builders of every generation: the Python API, trtexec, memory, missing kernels.

The Python API runs against a stand-in with the names of each release.
"""

from __future__ import annotations

import os

import msgspec
import numpy as np
import onnx
import pytest

from tests.support.builds import asked
from trtq import build
from trtq.engine.build import dry_run
from trtq.errors import ArtifactError, EngineError
from trtq.platform.releases import releases
from trtq.testing.tensorrt import names_of, read_fake_plan

RELEASES = ("8.5.2", "8.6.1", "9.3.0", "10.0.1", "10.3.0", "10.13.3", "10.16.1", "11.4.0", "11.5.0")


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
    assert (made.builder.backend, made.builder.version) == ("tensorrt", version)
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
    assert msgspec.to_builtins(made.tensors[0]) == {
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
    assert any("ignoring the incompatible timing cache" in line for line in made.builder_log)
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
        assert [t.name for t in made.tensors] == ["input", "output"]
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


def test_a_dla_takes_no_pairs_and_no_fp32(files, tmp_path, tensorrt):
    tensorrt("8.5.2", (7, 2))
    with pytest.raises(
        EngineError,
        match="for the DLA: the DLA does not support Q/DQ nodes. Export a calibration cache",
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


def test_a_typed_graph_on_a_dla_is_adjusted_for_it(files, tmp_path, tensorrt):
    """Precision by the types; the parser may rewrite layers so that the DLA takes them."""
    tensorrt("11.4.1", (8, 7))
    plain = {"onnx": f"{files}/model.fp32.onnx", "target": "orin@11.4", "precision": "fp16"}
    build(asked(files, tmp_path, **plain, dla=0))
    head, _ = read_fake_plan((tmp_path / "e.engine").read_bytes())
    assert head["adjusted for DLA"] and head["flags"] == {
        **dict.fromkeys(head["flags"], False),
        "GPU_FALLBACK": True,
    }
    build(asked(files, tmp_path, **plain))
    assert not read_fake_plan((tmp_path / "e.engine").read_bytes())[0]["adjusted for DLA"]
    line = dry_run(asked(files, tmp_path, **plain, dla=0, backend="trtexec"))
    assert "--useDLACore=0 --allowGPUFallback --adjustForDLA" in line
    tensorrt("10.3.0", (8, 7))
    build(asked(files, tmp_path, **plain | {"target": "orin@10.3"}, dla=0))
    assert not read_fake_plan((tmp_path / "e.engine").read_bytes())[0]["adjusted for DLA"]


def test_a_full_disk_keeps_the_engine_of_before(files, tmp_path, small_disk, tensorrt):
    tensorrt("10.3.0")
    engine = small_disk / "e.engine"
    engine.write_bytes(b"the one of before")
    with pytest.raises(ArtifactError, match="No space left"):
        build(asked(files, small_disk))
    assert engine.read_bytes() == b"the one of before"
    assert not (small_disk / "e.engine.json").exists()
