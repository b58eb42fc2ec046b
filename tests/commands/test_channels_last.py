"""Models with channels last, as TensorFlow exports them, and folders of images."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from tests.conftest import run_cli
from tests.support.onnx_files import model_of, random_weight
from trtq import EvaluateSpec, QuantizeSpec, evaluate, quantize
from trtq.testing.images import write_images


def channels_last(sizes=("batch", 32, 48, 3), dtype=TensorProto.FLOAT) -> onnx.ModelProto:
    """A convolution behind a Transpose, as tf2onnx writes it."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], "first", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["y"], ["z"], "pool"),
        helper.make_node("Flatten", ["z"], ["scores"], "flatten"),
    ]
    plain = dtype == TensorProto.FLOAT
    if plain:
        nodes[0] = helper.make_node("Relu", ["pixels"], ["floats"], "relu")
    return model_of(
        nodes,
        [("pixels", dtype, list(sizes))],
        [("scores", TensorProto.FLOAT, [sizes[0], 4])],
        {"w": random_weight(4, sizes[3], 3, 3)},
    )


def quantized(tmp_path, model, images, **options):
    onnx.save(model, tmp_path / "tf.onnx")
    return quantize(
        QuantizeSpec(
            model=str(tmp_path / "tf.onnx"),
            data=str(images),
            out=str(tmp_path / "out"),
            calib_cache=str(tmp_path / "cache"),
            **options,
        )
    )


def test_images_are_given_with_channels_last(tmp_path):
    images = write_images(tmp_path / "images", 8)
    record = quantized(tmp_path, channels_last(), images)
    assert record.preprocess.input_size == (3, 32, 48)
    assert record.preprocess.layout == "NHWC"
    assert record.parity.passed
    assert any("channels last" in n for n in record.notes)
    scored = evaluate(
        EvaluateSpec(
            onnx=str(tmp_path / "out/model.qdq.onnx"),
            reference=str(tmp_path / "tf.onnx"),
            data=str(images),
        )
    )
    assert scored.sqnr_db > 20


def test_a_file_of_others_is_evaluated_on_what_the_model_takes(tmp_path):
    """The image is bright on its left: with its axes confused the answer would differ."""
    onnx.save(channels_last(), tmp_path / "tf.onnx")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0] = 255
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    from trtq.data.preprocess import resolve_preprocess

    picture, _ = resolve_preprocess(input_size=(3, 32, 48), hints={"layout": "NHWC"})
    given = picture.apply(Image.fromarray(pixels))
    assert given.shape == (32, 48, 3)
    session = onnxruntime.InferenceSession(str(tmp_path / "tf.onnx"))
    (wanted,) = session.run(None, {"pixels": given[None].numpy()})
    onnx.save(constant(wanted), tmp_path / "wanted.onnx")
    scored = evaluate(
        EvaluateSpec(
            onnx=str(tmp_path / "tf.onnx"),
            reference=str(tmp_path / "wanted.onnx"),
            data=str(tmp_path / "images"),
        )
    )
    assert scored.sqnr_db is None or scored.sqnr_db > 100


def constant(values: np.ndarray) -> onnx.ModelProto:
    """A model that gives the same scores for every image."""
    nodes = [
        helper.make_node("ReduceSum", ["pixels", "axes"], ["sum"], "sum", keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["none"], "mul"),
        helper.make_node("Unsqueeze", ["none", "one"], ["column"], "column"),
        helper.make_node("Add", ["column", "values"], ["scores"], "add"),
    ]
    weights = {
        "axes": np.array([1, 2, 3], np.int64),
        "zero": np.zeros(1, np.float32),
        "one": np.array([1], np.int64),
        "values": values.astype(np.float32),
    }
    shape = ["batch", 32, 48, 3]
    outputs = [("scores", TensorProto.FLOAT, ["batch", 4])]
    return model_of(nodes, [("pixels", TensorProto.FLOAT, shape)], outputs, weights)


def test_open_sizes_and_bytes(tmp_path):
    images = write_images(tmp_path / "images", 4)
    opened = quantized(tmp_path, channels_last(("n", "h", "w", 1)), images, input_size=(1, 24, 40))
    assert opened.preprocess.input_size == (1, 24, 40)
    assert opened.parity.passed
    pixels = channels_last(dtype=TensorProto.UINT8)
    record = quantized(tmp_path, pixels, images, input_dtype="uint8", input_size=(3, 32, 48))
    assert record.preprocess.layout == "NHWC"
    assert record.parity.passed


def test_another_size_is_refused_with_what_to_type(tmp_path):
    images = write_images(tmp_path / "images", 4)
    onnx.save(channels_last(), tmp_path / "tf.onnx")
    result = run_cli(
        *("quantize", str(tmp_path / "tf.onnx"), "--data", str(images)),
        *("--input-size", "3x64x64", "--out", str(tmp_path / "out")),
    )
    assert result.returncode == 2
    assert "its input pixels is fixed to 3x32x48" in result.stderr
    assert "--input-size 3x32x48" in result.stderr


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (("batch", 3, 32, 32), "NCHW"),
        (("batch", 32, 32, 3), "NHWC"),
        ((1, "h", "w", 4), "NHWC"),
        ((1, 3, 5, 3), "NCHW"),
        ((1, 64, 7, 9), "NCHW"),
        ((1, 64), None),
    ],
)
def test_the_layout_follows_from_the_sizes(shape, layout):
    from trtq.layouts import layout_of

    assert layout_of(shape) == layout


def test_scores_of_pixels_with_channels_last_are_read_so(tmp_path):
    """The class of each pixel is its red value: read otherwise, nearly none would be right."""
    classes = np.arange(5, dtype=np.float32)
    nodes = [
        helper.make_node("Slice", ["pixels", "zero", "one", "three"], ["red"], "red"),
        helper.make_node("Mul", ["red", "scale"], ["class"], "scale"),
        helper.make_node("Sub", ["class", "classes"], ["far"], "sub"),
        helper.make_node("Abs", ["far"], ["distance"], "abs"),
        helper.make_node("Neg", ["distance"], ["scores"], "neg"),
    ]
    weights = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "three": np.array([3], np.int64),
        "scale": np.array(255, np.float32),
        "classes": classes,
    }
    shape, scores = ["n", 32, 48, 3], ["n", 32, 48, 5]
    ports = [("pixels", TensorProto.FLOAT, shape)], [("scores", TensorProto.FLOAT, scores)]
    onnx.save(model_of(nodes, *ports, weights), tmp_path / "seg.onnx")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        mask = np.random.default_rng(i).integers(0, 5, (32, 48), dtype=np.uint8)
        Image.fromarray(np.stack([mask, mask, mask], -1)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    record = evaluate(
        EvaluateSpec(
            onnx=str(tmp_path / "seg.onnx"),
            data=str(tmp_path / "images"),
            masks=str(tmp_path / "masks"),
            mean=(0.0,),
            std=(1.0,),
        )
    )
    assert record.miou == 100
