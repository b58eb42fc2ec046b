"""Triton's configurations parse as its own messages, and say what the signature says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import sys
import types

import msgspec
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from PIL import Image

import trtq
from tests.package.conftest import CLASSES
from tests.support.onnx_files import model_of
from trtq.data.preprocess import Preprocess
from trtq.errors import TrtqError, UsageError
from trtq.export.onnx_file import set_metadata_

PROTOCOL = "tritonclient/grpc/model_config_pb2.py"


@pytest.fixture(scope="module")
def messages():
    """Triton's messages; the package around them would import gRPC."""
    try:
        package = importlib.metadata.distribution("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no tritonclient")
    (file,) = [f for f in package.files or () if str(f) == PROTOCOL]
    spec = importlib.util.spec_from_file_location("model_config_pb2", package.locate_file(file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(messages, packaged):
    """Return a function that packages a file and returns the configurations by model."""

    def parse(file, **options):
        folder = packaged(file, "triton", **options)
        found = {}
        for path in folder.glob("*/config.pbtxt"):
            config = text_format.Parse(path.read_text(), messages.ModelConfig())
            assert config.name == path.parent.name
            found[config.name] = config
        return folder, found

    return parse


def kind(messages, tensor) -> str:
    return messages.DataType.Name(tensor.data_type)


def test_an_engine_with_an_open_batch(read, messages, engines):
    folder, configs = read(engines.classifier)
    config = configs["classifier"]
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    assert config.max_batch_size == 4
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    (given,), (made,) = config.input, config.output
    assert (given.name, kind(messages, given), list(given.dims)) == (
        "input",
        "TYPE_FP32",
        [3, 32, 32],
    )
    assert (made.name, kind(messages, made), list(made.dims)) == ("output", "TYPE_FP32", [4])
    assert made.label_filename == "labels.txt"
    assert (folder / "classifier/labels.txt").read_text().split() == CLASSES
    (group,) = config.instance_group
    assert group.kind == group.KIND_GPU
    assert list(group.profile) == ["0"]
    assert (folder / "classifier/1/model.plan").read_bytes() == engines.classifier.read_bytes()
    beside = json.loads((folder / "classifier/1/model.plan.json").read_bytes())
    assert beside["engine_sha256"] == config.parameters["trtq.sha256"].string_value
    assert config.parameters["trtq.task"].string_value == "classification"


NAMES = ("classifier", "segmenter", "yolo", "text")
KINDS = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT64: "TYPE_INT64"}


@pytest.mark.parametrize("form", ["engine", "onnx"])
@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_file(name, form, read, messages, engines, files):
    """Names, types and sizes; Triton adds an open batch by itself."""
    graph = onnx.load(getattr(files, name)).graph
    _, configs = read(getattr(engines if form == "engine" else files, name))
    config = configs[name]
    assert config.backend == {"engine": "tensorrt", "onnx": "onnxruntime"}[form]
    for given, made in ((graph.input, config.input), (graph.output, config.output)):
        wanted = []
        for value in given:
            tensor = value.type.tensor_type
            dims = [d.dim_value or -1 for d in tensor.shape.dim]
            assert (dims[0] == -1) == (config.max_batch_size > 0)
            shape = dims[1:] if config.max_batch_size else dims
            wanted.append((value.name, KINDS[tensor.elem_type], shape))
        assert [(t.name, kind(messages, t), list(t.dims)) for t in made] == wanted


def test_an_engine_of_several_profiles(read, changed, engines):
    """One group of instances has all of them: Triton takes what fits a request."""

    def more(manifest):
        rows = json.loads(json.dumps(manifest["inputs"]))
        for row in rows:
            row["usual"][0], row["most"][0] = 16, 32
        manifest["profiles"] = [rows]

    _, configs = read(changed(engines.text, more))
    (group,) = configs["text"].instance_group
    assert list(group.profile) == ["0", "1"]
    assert configs["text"].max_batch_size == 32
    assert list(configs["text"].dynamic_batching.preferred_batch_size) == [2, 16]


def test_an_engine_of_fixed_sizes_has_the_batch_in_its_dims(read, engines):
    _, configs = read(engines.yolo)
    config = configs["yolo"]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [1, 3, 64, 64]
    assert list(config.output[0].dims) == [1, 6, 84]
    assert config.optimization.cuda.graphs
    assert not config.output[0].label_filename  # boxes have no score a class


def test_several_inputs_with_open_axes(read, messages, engines):
    _, configs = read(engines.text)
    assert list(configs) == ["text"]  # no ensemble: it takes no image
    config = configs["text"]
    shapes = [(t.name, kind(messages, t), list(t.dims)) for t in config.input]
    assert shapes == [("ids", "TYPE_INT64", [-1]), ("mask", "TYPE_INT64", [-1])]
    assert config.max_batch_size == 4
    assert not config.optimization.cuda.graphs


def test_an_onnx_file_runs_in_onnx_runtime(read, files):
    folder, configs = read(files.classifier, name="my_model")
    config = configs["my_model"]
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == (
        "tensorrt",
        {"precision_mode": "INT8"},
    )
    assert config.max_batch_size == 32
    assert (folder / "my_model/1/model.onnx").read_bytes() == files.classifier.read_bytes()
    _, configs = read(files.segmenter)
    config = configs["segmenter"]
    assert list(config.output[0].dims) == [3, 32, 32]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(accelerator.parameters) == {"precision_mode": "FP32"}


def test_the_ensemble_joins_image_files_and_the_model(read, messages, engines):
    _, configs = read(engines.classifier)
    ensemble, reader = configs["classifier_images"], configs["classifier_preprocess"]
    assert ensemble.platform == "ensemble"
    assert [s.model_name for s in ensemble.ensemble_scheduling.step] == [
        "classifier_preprocess",
        "classifier",
    ]
    first, second = ensemble.ensemble_scheduling.step
    assert dict(first.input_map) == {"IMAGES": "IMAGES"}
    assert dict(first.output_map) == dict(second.input_map) == {"input": "trtq_input"}
    assert dict(second.output_map) == {"output": "output"}
    assert reader.backend == "python"
    assert [list(t.dims) for t in (*reader.input, *reader.output)] == [[-1], [-1, 3, 32, 32]]
    assert kind(messages, reader.input[0]) == "TYPE_STRING"
    assert [list(t.dims) for t in ensemble.output] == [[-1, 4]]
    # As Triton compares the steps of an ensemble: with the batch where a model batches.
    model = configs["classifier"]
    assert [-1, *model.input[0].dims] == list(reader.output[0].dims)
    assert [-1, *model.output[0].dims] == list(ensemble.output[0].dims)


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


def run_reader(folder, name, config, images):
    """Run the Python model of a package in a stand-in for Triton's Python backend."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.get_input_tensor_by_name = lambda request, name: request[name]
    backend.get_output_config_by_name = lambda config, name: config["output"][0]
    backend.triton_string_to_numpy = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}.get
    backend.Tensor = Tensor
    backend.TritonError = str
    backend.InferenceResponse = lambda output_tensors, error=None: (output_tensors, error)
    sys.modules["triton_python_backend_utils"] = backend
    try:
        space: dict = {"__name__": "model"}
        exec(compile((folder / name / "1/model.py").read_text(), "model.py", "exec"), space)
    finally:
        del sys.modules["triton_python_backend_utils"]
    model = space["TritonPythonModel"]()
    made = {"output": [{"name": config.output[0].name, "data_type": "TYPE_FP32"}]}
    model.initialize(
        {
            "model_repository": str(folder / name),
            "model_version": "1",
            "model_config": json.dumps(made),
        }
    )
    return model.execute([{"IMAGES": Tensor("IMAGES", np.array(images, object))}])


@pytest.mark.parametrize("name", ["classifier", "yolo"])
def test_the_python_model_makes_the_input_that_trtq_makes(name, read, engines):
    folder, configs = read(getattr(engines, name))
    stored = json.loads((engines.classifier.parent / f"{name}.engine.json").read_bytes())
    picture = msgspec.convert(stored["preprocess"], Preprocess)
    rng = np.random.default_rng(0)
    files, wanted = [], []
    for mode, shape in (("RGB", (40, 90, 3)), ("L", (70, 50)), ("RGBA", (33, 32, 4))):
        image = Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8), mode)
        data = io.BytesIO()
        image.save(data, "PNG")
        files.append(data.getvalue())
        wanted.append(picture.apply(image.convert("RGB")).numpy())
    reader = f"{name}_preprocess"
    ((tensors, error),) = run_reader(folder, reader, configs[reader], files)
    assert error is None
    np.testing.assert_array_equal(tensors[0].values, np.stack(wanted))
    ((tensors, error),) = run_reader(folder, reader, configs[reader], [b"no image"])
    assert tensors == []
    assert "cannot read an image: cannot identify image file" in error


def test_what_triton_cannot_take(packaged, files, rtx, tmp_path):
    for name in ("a/b", "", ".hidden", "two words"):
        with pytest.raises(UsageError, match="Cannot use name=.* for Triton: a model's name is "):
            packaged(files.yolo, "triton", name=name)
    with pytest.raises(
        UsageError,
        match="Cannot package classifier.engine for Triton Inference Server: TensorRT for RTX "
        "built it, and Triton Inference Server loads engines of TensorRT. Package the ONNX file",
    ):
        packaged(rtx.classifier, "triton")
    assert not (tmp_path / "triton").exists()


def test_labels_of_a_file_and_names_that_do_not_fit(read, files, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\n")
    folder, configs = read(files.classifier, labels=names)
    assert configs["classifier"].output[0].label_filename == "labels.txt"
    assert (folder / "classifier/labels.txt").read_text() == "one\ntwo\nthree\nfour\n"
    names.write_text("one\ntwo\n")
    record = trtq.package(files.classifier, for_="triton", labels=names, out=tmp_path / "few")
    assert record.consumers[0].notes == [
        "the 2 names of classes are left out: output float32 [batch, 4] has not as many scores"
    ]
    assert not (tmp_path / "few/triton/classifier/labels.txt").exists()
    names.write_text("\n")
    with pytest.raises(UsageError, match=r"Cannot use --labels .*names.txt: it has no names"):
        trtq.package(
            trtq.PackageSpec(
                file=str(files.classifier),
                for_=("triton",),
                out=str(tmp_path / "none"),
                labels=str(names),
            )
        )
    with pytest.raises(TrtqError, match="no such file or directory"):
        trtq.package(
            files.classifier, for_="triton", out=tmp_path / "none", labels=tmp_path / "gone.txt"
        )


def test_types_that_triton_has_not(packaged, changed, engines):
    engine = changed(engines.classifier, lambda m: m["tensors"][1].update(dtype="FP8"))
    with pytest.raises(
        UsageError,
        match=r"Cannot package the tensor output fp8 \[batch, 4\] for Triton: Triton has no type",
    ):
        packaged(engine, "triton")


def test_options_of_the_build_are_options_of_the_server(read, changed, engines):
    options = {"dla": 1, "version_compatible": True}
    engine = changed(engines.yolo, lambda m: m["spec"].update(options))
    folder, configs = read(engine)
    (group,) = configs["yolo"].instance_group
    (device,) = group.secondary_devices
    assert (device.kind, device.device_id) == (device.KIND_NVDLA, 1)
    readme = (folder.parent / "README.md").read_text()
    assert "--backend-config=tensorrt,version-compatible=true" in readme


def test_a_number_a_sample_and_more_channels(read, tmp_path):
    model = model_of(
        [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0)],
        [("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [("mean", TensorProto.FLOAT, ["batch"])],
        opset=13,
    )
    how = {"input_size": [4, 8, 8], "mean": [0], "std": [1], "resize": None, "crop": None}
    set_metadata_(model, {"preprocess": how})
    onnx.save(model, tmp_path / "m.onnx")
    folder, configs = read(tmp_path / "m.onnx")
    (made,) = configs["m"].output
    assert (list(made.dims), made.HasField("reshape"), list(made.reshape.shape)) == ([1], True, [])
    assert list(configs) == ["m"]
    text = "no ensemble for image files: the input has 4 channels"
    assert text in (folder.parent / "README.md").read_text()
