"""What is read as ONNX.

Files that are something else are named for what they are. Tensors in external files stay beside
their model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq import (
    AuditSpec,
    BenchSpec,
    BuildSpec,
    EvaluateSpec,
    ImportCalibSpec,
    LintSpec,
    audit,
    bench,
    build,
    evaluate,
    import_calib,
    run_lint,
)
from trtq.commands.inspect import inspect
from trtq.errors import ExportError
from trtq.export.onnx_file import digest_onnx, load_onnx, read_onnx, require_files
from trtq.flow.loading import load_text

RNG = np.random.default_rng(0)


def network() -> onnx.ModelProto:
    weight = RNG.standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outside(path: Path, location: str = "model.data", *, attribute: bool = False) -> Path:
    """Write the network with its weight in another file."""
    model = network()
    if attribute:  # the weight is the tensor of a Constant node
        held = model.graph.initializer.pop()
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="w", value=held))
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=location,
        size_threshold=0,
        convert_attribute=attribute,
    )
    return path


def pointing(path: Path, **entries: str) -> Path:
    """Write the network with a weight that names these places."""
    model = network()
    held = model.graph.initializer[0]
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        held.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    path.write_bytes(model.SerializeToString())
    return path


WHOLE = network().SerializeToString()
GRAPHDEF = b"\x0a\x05input\x12\x0bPlaceholder"
FILES = {
    "empty": (b"", "the file is empty"),
    "half": (WHOLE[: len(WHOLE) // 2], r"it ends too early: \d+ bytes of an ONNX file"),
    "head": (WHOLE[:100], "it ends too early"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
        "Git LFS pointer.* git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html></html>", r"a web page \(HTML\)"),
    "ort": (b"\x18\0\0\0ORTM" + bytes(100), r"ONNX Runtime's own format \(\.ort\)"),
    "tflite": (b"\x18\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
    "zip": (b"PK\x03\x04" + bytes(100), "a zip archive: a checkpoint of PyTorch"),
    "engine": (b"ftrt" + bytes(100), "a TensorRT engine"),
    "json": (b'{"a": 1}', "it is a JSON file"),
    "graphdef": (b"\x0a" + bytes([len(GRAPHDEF)]) + GRAPHDEF, "a graph of TensorFlow"),
    "text": (b"hello world, this is a text\n", "it is not an ONNX file"),
    "zeros": (bytes(1000), "it is not an ONNX file"),
    "graph alone": (network().graph.SerializeToString(), "it is not an ONNX file"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_onnx_file_is_named_for_what_it_is(kind, tmp_path: Path):
    data, text = FILES[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for reads in (load_onnx, require_files):
        with pytest.raises(ExportError, match=f"model.onnx: .*{text}"):
            reads(path)


def test_folders_and_files_that_are_too_large(tmp_path: Path):
    folder = tmp_path / "run.onnx"
    folder.mkdir()
    with pytest.raises(ExportError, match=r"it is a folder\. Give the \.onnx file"):
        load_onnx(folder)
    (folder / "model.qdq.onnx").write_bytes(WHOLE)
    with pytest.raises(ExportError, match=r"it is a folder\. Give a file in it: model.qdq.onnx"):
        load_onnx(folder)
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate((1 << 31) + 10)  # a sparse file
    with pytest.raises(
        ExportError,
        match=r"2\.1 GB, and an ONNX file ends at 2 GB\. Save it with its tensors outside",
    ):
        load_onnx(large)
    empty = network()
    del empty.graph.node[:], empty.graph.output[:]
    (tmp_path / "nodes.onnx").write_bytes(empty.SerializeToString())
    with pytest.raises(ExportError, match="its graph has no nodes"):
        load_onnx(tmp_path / "nodes.onnx")


def test_nodes_without_their_operands(tmp_path: Path):
    for index in (0, 1):
        model = network()
        model.graph.node.append(
            onnx.NodeProto(op_type="QuantizeLinear", name="q", input=["x"][index:], output=["z"])
        )
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(
            ExportError,
            match=rf"it is damaged: the node 'q' \(QuantizeLinear\) has {1 - index} inputs, "
            r"expected 2 to 3",
        ):
            load_onnx(tmp_path / "m.onnx")


def test_every_command_names_the_missing_file_of_tensors(images: Path, tmp_path: Path):
    path = outside(tmp_path / "m/model.onnx")
    (tmp_path / "m/model.data").unlink()
    (tmp_path / "c.cache").write_text("TRT-8502-EntropyCalibration2\nx: 3c010204\n")
    commands = (
        lambda: run_lint(LintSpec(onnx=str(path), target="rtx4090")),
        lambda: build(BuildSpec(onnx=str(path), target="rtx4090", out=str(tmp_path / "e.engine"))),
        lambda: evaluate(EvaluateSpec(onnx=str(path), data=str(images))),
        lambda: audit(AuditSpec(file=str(tmp_path / "layers.json"), onnx=str(path))),
        lambda: import_calib(
            ImportCalibSpec(
                cache=str(tmp_path / "c.cache"), onnx=str(path), out=str(tmp_path / "o")
            )
        ),
        lambda: bench(BenchSpec(file=(str(path),), device="cpu")),
    )
    for command in commands:
        with pytest.raises(
            ExportError,
            match=r"the file with its tensors is missing: .*m/model\.data\. Copy model\.data "
            r"beside it",
        ):
            command()


@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize("location", ["model.data", "weights/model.data"])
def test_tensors_beside_the_model_are_read_and_hashed(attribute, location, tmp_path: Path):
    path = outside(tmp_path / "m/model.onnx", location, attribute=attribute)
    model, stamp, digest = read_onnx(path)
    assert stamp is None  # what is built from is a copy with everything inside
    assert digest == digest_onnx(path) == require_files(path)[0] == inspect(path)["sha256"]
    assert run_lint(LintSpec(onnx=str(path), target="rtx4090")).onnx_sha256 == digest
    assert not any(t.external_data for t in model.graph.initializer)
    data = bytearray((path.parent / location).read_bytes())
    data[8] ^= 1
    (path.parent / location).write_bytes(data)
    assert digest_onnx(path) != digest  # other weights are another model
    shutil.copy(path.parent / location, tmp_path / "short")
    (path.parent / location).write_bytes(data[:100])
    with pytest.raises(
        ExportError,
        match=r"model\.data has 100 bytes, w would end at byte 864\. Copy .*model\.data again",
    ):
        load_onnx(path)


def test_tensors_outside_of_the_folder_are_refused(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(2000))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "link.data").symlink_to(secret)
    for location in ("../secret", str(secret), "link.data", "x/../../secret"):
        path = pointing(folder / "m.onnx", location=location)
        for reads in (load_onnx, require_files):
            with pytest.raises(
                ExportError,
                match="Refusing to read .*reads tensors from .*, outside the file's own folder",
            ):
                reads(path)
    with pytest.raises(ExportError, match="its tensor w is in another file, and no file is named"):
        load_onnx(pointing(folder / "m.onnx"))
    (folder / "m.data").write_bytes(bytes(2000))
    with pytest.raises(ExportError, match="the place of w is no number"):
        load_onnx(pointing(folder / "m.onnx", location="m.data", offset="far"))
    with pytest.raises(ExportError, match="m.data has 2000 bytes, w would end at byte 2700"):
        load_onnx(pointing(folder / "m.onnx", location="m.data", offset="1836"))


def test_a_cache_of_downloads_links_both_files(tmp_path: Path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/1"
    outside(blobs / "a", "model.data")
    snapshot.mkdir(parents=True)
    for name, blob in (("model.onnx", "a"), ("model.data", "model.data")):
        (snapshot / name).symlink_to(blobs / blob)
    assert load_onnx(snapshot / "model.onnx").graph.initializer[0].raw_data


def test_a_missing_file_and_a_text_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no such file"):
        load_text(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="text.onnx"):
        load_text(str(tmp_path / "text.onnx"))
