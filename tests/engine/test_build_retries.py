"""Builds that are tried again: memory, missing kernels, precision."""

from __future__ import annotations

import onnx
import pytest

from tests.conftest import spec
from tests.support.builds import asked, with_note
from trtq import BuildSpec, build, quantize
from trtq.errors import BuilderMemoryError, EngineError, MissingKernelError
from trtq.testing.tensorrt import read_fake_plan
from trtq.testing.trtexec import write_fake_trtexec

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
    assert made.builder.command.startswith(
        f"{tmp_path}/trtexec --onnx={tmp_path}/model.qdq.onnx --saveEngine={tmp_path}/e.engine"
    )
    assert "--workspace=256" in made.builder.command
    assert made.builder.version == "8.2.1"


def test_what_cannot_be_kept_in_fp32_is_said_and_not_claimed(images, tmp_path, monkeypatch):
    quantize(spec(images, tmp_path / "q", model="tests.export.test_fp16:large", opset=13))
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
        assert ("--layerPrecisions=" in made.builder.command) == kept
        assert ("--layerOutputTypes=" in made.builder.command) == kept
        assert (
            any(
                "this builder cannot keep" in n and "--precision fp32 is safe" in n
                for n in made.notes
            )
            != kept
        )
