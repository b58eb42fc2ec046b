"""nvinfer's configuration: known keys, the numbers of the preprocessing, and who reads boxes."""

from __future__ import annotations

import configparser
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import trtq
from tests.package.conftest import YOLO
from tests.support.onnx_files import model_of, random_weight
from trtq.engine.manifest import read_manifest
from trtq.errors import UsageError
from trtq.export.onnx_file import get_metadata, set_metadata_
from trtq.export.ort import open_session, run_batch
from trtq.package.deepstream_config import config_text, known_keys

INCLUDE = Path(__file__).with_name("include")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {
    "input_size": [3, 8, 8],
    "mean": MEAN,
    "std": STD,
    "resize": None,
    "crop": None,
    "interpolation": "bilinear",
}
TASKS = {"yolo": "detection:yolo", "float": "classification"}


def labels_in(folder: Path) -> Path:
    """Return a file with names of classes."""
    (folder / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    return folder / "names.txt"


def parsed(folder: Path) -> configparser.ConfigParser:
    """Return a configuration whose keys are all documented, and whose files are all there."""
    config = configparser.ConfigParser(delimiters="=", interpolation=None)
    config.optionxform = str
    config.read(folder / "config_infer_primary.txt")
    keys = known_keys()
    assert set(config["property"]) <= keys.property
    if "class-attrs-all" in config:
        assert set(config["class-attrs-all"]) <= keys.class_attrs
    for key in ("labelfile-path", "onnx-file"):
        assert folder.joinpath(config["property"].get(key, ".")).exists(), key
    return config


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split(";")]


def fed(config, pixels: np.ndarray) -> np.ndarray:
    """Return what nvinfer feeds: ``scale * (pixel - offset)``, in float32."""
    own = config["property"]
    offsets = np.array(numbers(own.get("offsets", "0;0;0")), np.float32).reshape(-1, 1, 1)
    return np.float32(own["net-scale-factor"]) * (pixels.astype(np.float32) - offsets)


def normalised(pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (MEAN, STD))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def test_a_detector(packaged, engines):
    folder = packaged(engines.yolo, "deepstream")
    config = parsed(folder)
    own = config["property"]
    assert float(own["net-scale-factor"]) == pytest.approx(1 / 255, rel=1e-8)
    assert "offsets" not in own
    assert own["model-color-format"] == "0"
    assert (own["maintain-aspect-ratio"], own["symmetric-padding"]) == ("1", "1")
    assert (own["network-type"], own["num-detected-classes"]) == ("0", "2")
    assert (own["infer-dims"], own["output-blob-names"], own["batch-size"]) == (
        "3;64;64",
        "output0",
        "1",
    )
    assert (own["cluster-mode"], own["parse-bbox-func-name"], own["custom-lib-path"]) == (
        "2",
        "NvDsInferParseTrtq",
        "parser/libnvdsinfer_trtq.so",
    )
    assert own["network-mode"] == "0"
    assert (folder / own["model-engine-file"]).read_bytes() == engines.yolo.read_bytes()
    assert (folder / "model.engine.json").is_file()
    assert (folder / own["labelfile-path"]).read_text() == "red\ngreen\n"
    assert dict(config["class-attrs-all"]) == {
        "pre-cluster-threshold": "0.25",
        "topk": "300",
        "nms-iou-threshold": "0.7",
    }


def test_notes_of_a_detector(engines, tmp_path):
    record = trtq.package(engines.yolo, for_=["deepstream"], out=tmp_path / "o")
    (consumer,) = record.consumers
    assert consumer.notes == [
        "build the parser where DeepStream is: make -C parser",
        "boxes below a score of 0.25 are left out (pre-cluster-threshold)",
        "nvinfer resizes without the antialiasing that the calibration had",
        "nvinfer's borders are black; the calibration had 114",
    ]
    text = (tmp_path / "o/README.md").read_text()
    assert "config-file=deepstream/config_infer_primary.txt" in text
    assert "- nvinfer's borders are black" in text


@pytest.mark.parametrize("name", ["classifier", "segmenter", "float"])
def test_what_is_fed_gives_the_same_classes(name, packaged, files):
    """A std of each channel is in the graph, behind a quantizer or in a convolution."""
    file = getattr(files, name)
    folder = packaged(file, "deepstream")
    config = parsed(folder)
    own = config["property"]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32))
    session = open_session(folder / own["onnx-file"])
    (got,) = run_batch(session, fed(config, pixels))
    (logits,) = run_batch(open_session(file), normalised(pixels))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(got, shifted / shifted.sum(axis=1, keepdims=True), atol=1e-5)
    quantized = name == "classifier"
    assert own["network-mode"] == "0"  # nvinfer sets no flag then
    assert own.get("strongly-typed", "0") == ("1" if quantized else "0")
    assert float(own["net-scale-factor"]) == pytest.approx(
        1.0 if quantized else 1 / (255 * np.mean(STD)), rel=1e-6
    )
    stored = get_metadata(onnx.load(folder / own["onnx-file"]))["preprocess"]
    assert len(set(stored["std"])) == 1
    assert own["network-type"] == ("2" if name == "segmenter" else "1")


def test_files_of_a_classifier_and_a_segmenter(packaged, files):
    folder = packaged(files.classifier, "deepstream")
    own = parsed(folder)["property"]
    assert (folder / own["labelfile-path"]).read_text() == "ant;bee;cat;dog\n"
    assert own["model-engine-file"] == "model.onnx_b32_gpu0_fp32.engine"
    own = parsed(packaged(files.segmenter, "deepstream"))["property"]
    assert (own["num-detected-classes"], own["segmentation-output-order"]) == ("3", "0")
    assert "labelfile-path" not in own


def conv_model(groups: int = 1, *, first: str = "Conv") -> onnx.ModelProto:
    """Return a float model with the preprocessing of ImageNet in its metadata."""
    weight = random_weight(6, 3 // groups, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1] * 4, group=groups),
        helper.make_node("Relu", ["y"], ["out"], "relu"),
    ]
    if first != "Conv":
        nodes[0].input[0] = "z"
        nodes.insert(0, helper.make_node(first, ["x"], ["z"], "first"))
    shape = [1, 3, 8, 8]
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("out", TensorProto.FLOAT, [1, 6, 8, 8])],
        {"w": weight},
    )
    set_metadata_(model, {"preprocess": IMAGENET})
    return model


@pytest.mark.parametrize("change", [{}, {"groups": 3}, {"first": "Sigmoid"}], ids=str)
def test_a_folded_std_equals_the_unfolded_model(change, packaged, tmp_path):
    model = conv_model(**change)
    onnx.save(model, tmp_path / "m.onnx")
    folder = packaged(tmp_path / "m.onnx", "deepstream")
    config = parsed(folder)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8))
    (got,) = run_batch(open_session(folder / "model.onnx"), fed(config, pixels))
    (wanted,) = run_batch(open_session(model), normalised(pixels))
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)
    changed = onnx.load(folder / "model.onnx")
    added = len(changed.graph.node) - len(model.graph.node)
    assert added == (3 if "first" in change else 0)
    assert config["property"]["network-type"] == "100"  # no task: tensors go to the application


def test_a_weight_that_others_read_stays(packaged, tmp_path):
    model = conv_model()
    model.graph.node.append(helper.make_node("ReduceSum", ["w"], ["sum"], "sum", keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    onnx.save(model, tmp_path / "m.onnx")
    folder = packaged(tmp_path / "m.onnx", "deepstream")
    pixels = np.full((1, 3, 8, 8), 7)
    got = run_batch(open_session(folder / "model.onnx"), fed(parsed(folder), pixels))
    wanted = run_batch(open_session(model), normalised(pixels))
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_scale_needs_no_change(packaged, files):
    folder = packaged(files.yolo, "deepstream")
    assert (folder / "model.onnx").read_bytes() == files.yolo.read_bytes()


@pytest.mark.parametrize("name", ["yolo", "float"])
def test_a_file_of_someone_else_is_fed_as_the_user_says(name, packaged, files, tmp_path):
    """The same folder as from a file that says it itself."""
    own = files.yolo if name == "yolo" else files.float
    wanted = parsed(packaged(own, "deepstream"))
    model = onnx.load(own)
    kept = [p for p in model.metadata_props if p.key in ("names", "task", "stride")]
    how = get_metadata(model)["preprocess"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    foreign = tmp_path / own.name
    onnx.save(model, foreign)
    with pytest.raises(UsageError, match='say how it is fed: preprocess="imagenet"'):
        packaged(foreign, "deepstream", task=TASKS[name], labels=labels_in(tmp_path))
    given = {"preprocess": "yolo"} if name == "yolo" else {"mean": how["mean"], "std": how["std"]}
    folder = packaged(foreign, "deepstream", task=TASKS[name], labels=labels_in(tmp_path), **given)
    got = parsed(folder)
    for key in ("net-scale-factor", "offsets", "model-color-format", "maintain-aspect-ratio"):
        assert got["property"].get(key) == wanted["property"].get(key), key


def test_images_for_a_model_that_takes_none(packaged, files):
    with pytest.raises(
        UsageError,
        match=r"Cannot prepare images for this model: its inputs are ids int64 .*, and packages "
        r"prepare one image \[batch, 3, 224, 224\]. Leave the options about images out",
    ):
        packaged(files.text, "triton", preprocess="imagenet")
    with pytest.raises(UsageError, match=r"prepare one image \[batch, 3, 48, 48\]"):
        packaged(files.yolo, "triton", input_size=(3, 48, 48))


def test_an_engine_with_a_std_for_each_channel(packaged, engines):
    with pytest.raises(
        UsageError,
        match="Cannot package classifier.engine for DeepStream: nvinfer has one scale for all "
        r"channels, and they are divided by 0.229, 0.224, 0.225. Package the ONNX file: trtq "
        "package classifier.onnx --for deepstream --out DIR; it moves the division into the graph",
    ):
        packaged(engines.classifier, "deepstream")


def test_what_nvinfer_cannot_take(packaged, engines, files, rtx, tmp_path):
    with pytest.raises(
        UsageError,
        match="Cannot package text.engine for DeepStream: nvinfer feeds one image whose "
        r"preprocessing is known; the inputs are ids int64 \[batch, length\]; mask int64",
    ):
        packaged(engines.text, "deepstream")
    with pytest.raises(UsageError, match="TensorRT for RTX built it, and DeepStream loads engin"):
        packaged(rtx.classifier, "deepstream")
    model = onnx.load(files.yolo)
    set_metadata_(model, {"preprocess": {**YOLO, "dtype": "uint8"}})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="feeds floats of gray or three colours; the input takes"):
        packaged(tmp_path / "m.onnx", "deepstream")
    small = model_of(
        [helper.make_node("MaxPool", ["x"], ["out"], kernel_shape=[2, 2], strides=[2, 2])],
        [("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [("out", TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    set_metadata_(small, {"preprocess": IMAGENET, "answer": "pixels"})
    onnx.save(small, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"nvinfer reads a map of the input's size, 8x8: out flo"):
        packaged(tmp_path / "m.onnx", "deepstream")


def detr(tmp_path: Path) -> Path:
    """Return a detector whose head no known parser reads."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"], "pool"),
        helper.make_node("Conv", ["p", "wl"], ["l"], "cl"),
        helper.make_node("Reshape", ["l", "sl"], ["pred_logits"], "rl"),
        helper.make_node("Conv", ["p", "wb"], ["b"], "cb"),
        helper.make_node("Reshape", ["b", "sb"], ["pred_boxes"], "rb"),
    ]
    weights = {
        "wl": random_weight(30, 3, 1, 1),
        "wb": random_weight(40, 3, 1, 1),
        "sl": np.array([1, 10, 3], np.int64),
        "sb": np.array([1, 10, 4], np.int64),
    }
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [
            ("pred_logits", TensorProto.FLOAT, [1, 10, 3]),
            ("pred_boxes", TensorProto.FLOAT, [1, 10, 4]),
        ],
        weights,
    )
    set_metadata_(model, {"preprocess": YOLO})
    onnx.save(model, tmp_path / "detr.onnx")
    return tmp_path / "detr.onnx"


def test_a_head_without_a_parser_says_what_to_write(packaged, tmp_path):
    file = detr(tmp_path)
    with pytest.raises(
        UsageError,
        match="No parser is known for the head detr of detr.onnx: nvinfer needs a C function that "
        r"reads .*\. Write one with the prototype NvDsInferParseCustomFunc of "
        'nvdsinfer_custom_impl.h, and give parser=FUNCTION parser_library="FILE.so"',
    ):
        packaged(file, "deepstream", task="detection:detr")
    with pytest.raises(UsageError, match="parser needs parser_library: nvinfer loads a function"):
        packaged(file, "deepstream", task="detection:detr", parser="Own")
    with pytest.raises(UsageError, match="parser_library needs parser: nvinfer loads a function"):
        packaged(file, "deepstream", task="detection:detr", parser_library="libown.so")
    folder = packaged(
        file, "deepstream", task="detection:detr", parser="Own", parser_library="libown.so"
    )
    own = parsed(folder)["property"]
    assert (own["parse-bbox-func-name"], own["custom-lib-path"]) == ("Own", "libown.so")


def test_a_parser_of_a_model_without_boxes(packaged, files):
    with pytest.raises(
        UsageError,
        match="parser has no effect: it reads boxes, and the task of segmenter.onnx is segmentat",
    ):
        packaged(files.segmenter, "deepstream", parser="Own", parser_library="libown.so")


def test_keys_and_texts_that_nvinfer_does_not_read():
    with pytest.raises(ValueError, match="nvinfer has no key net-scale"):
        config_text({"net-scale": 1}, {})
    with pytest.raises(UsageError, match="Cannot write 'a;b' into the configuration of nvinfer: "):
        config_text({"output-blob-names": ["a;b"]}, {})
    with pytest.raises(UsageError, match="it begins or ends with a space"):
        config_text({"onnx-file": " a"}, {})


@pytest.mark.parametrize(("task", "threshold"), [("", "0.5"), (":logits", "0")])
def test_one_map_has_no_softmax(task, threshold, packaged, tmp_path):
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["out"], "conv")],
        [("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [("out", TensorProto.FLOAT, [1, 1, 8, 8])],
        {"w": random_weight(1, 3, 1, 1)},
    )
    set_metadata_(model, {"preprocess": {**IMAGENET, "std": [0.5]}})
    onnx.save(model, tmp_path / "m.onnx")
    folder = packaged(tmp_path / "m.onnx", "deepstream", task=f"segmentation{task}")
    own = parsed(folder)["property"]
    assert (own["segmentation-threshold"], own["num-detected-classes"]) == (threshold, "1")
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert numbers(own["offsets"]) == pytest.approx([255 * m for m in MEAN])


def test_the_way_out_for_an_engine(packaged, files, rtx, tmp_path):
    """An engine built from the packaged file divides all channels by one number."""
    folder = packaged(files.classifier, "deepstream")
    built = trtq.build(folder / "model.onnx", target="sm86", batch=(1, 2, 4))
    assert built.manifest.preprocess["std"] == [pytest.approx(1 / 255)]
    assert built.manifest.coverage is not None
    assert built.manifest.coverage.summary == _coverage(rtx.classifier)


def _coverage(engine: Path) -> str:
    return read_manifest(engine).coverage.summary


def test_an_engine_of_several_sizes(packaged, changed, engines):
    def opened(manifest: dict) -> None:
        manifest["tensors"][0]["shape"][2:] = [-1, -1]
        manifest["inputs"][0]["axes"][2:] = ["height", "width"]

    with pytest.raises(
        UsageError,
        match=r"nvinfer runs one size; the engine was built for several: images float32 \[1, 3, "
        r"height, width\]. Build it for one: shapes=.*images.*1x3x64x64",
    ):
        packaged(changed(engines.yolo, opened), "deepstream")


def test_an_engine_for_the_dla(packaged, changed, engines):
    engine = changed(engines.yolo, lambda m: m["spec"].update(dla=0))
    own = parsed(packaged(engine, "deepstream"))["property"]
    assert (own["enable-dla"], own["use-dla-core"]) == ("1", "0")


def outputs_of(kind: int, shape: list[int], tmp_path: Path) -> Path:
    """Return a file of one image and one output of a type and a shape."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], "mean", axes=[1, 2, 3], keepdims=0),
        helper.make_node("Expand", ["m", "shape"], ["e"], "spread"),
        helper.make_node("Cast", ["e"], ["out"], "cast", to=kind),
    ]
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [("out", kind, shape)],
        {"shape": np.array(shape, np.int64)},
        opset=13,
    )
    set_metadata_(model, {"preprocess": YOLO})
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize(
    ("kind", "shape", "task", "text"),
    [
        (
            TensorProto.FLOAT,
            [1, 10, 6],
            "detection:end-to-end",
            "the number of classes is not known. Give their names: labels=FILE",
        ),
        (
            TensorProto.FLOAT16,
            [1, 4],
            "classification",
            "nvinfer's parsers read float32 and int32: out float16 [1, 4]. Cast the output",
        ),
        (
            TensorProto.FLOAT,
            [1, 4, 1, 1],
            "classification",
            "nvinfer reads 2 axes for the task classification: out float32 [1, 4, 1, 1]. Package",
        ),
    ],
)
def test_outputs_that_nvinfer_cannot_read(kind, shape, task, text, packaged, tmp_path):
    with pytest.raises(UsageError) as caught:
        packaged(outputs_of(kind, shape, tmp_path), "deepstream", task=task)
    assert text in str(caught.value)


def test_options_about_images_that_no_consumer_reads(packaged, engines):
    with pytest.raises(UsageError, match="std have no effect: only packages for triton and deeps"):
        packaged(engines.classifier, "python", std=(0.5,))
    with pytest.raises(UsageError, match="with preprocess and preset: both name one preset"):
        packaged(engines.classifier, "triton", preset="yolo", preprocess="yolo")
