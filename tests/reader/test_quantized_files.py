"""Files that are quantized already: their ranges are read, taken over or replaced."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import trtq
from tests.reader.test_files import image_model
from tests.support.onnx_files import random_weight
from trtq.errors import EncodingsError, UsageError
from trtq.export.ort import open_session
from trtq.export.strip import strip_at
from trtq.reader import read_onnx
from trtq.reader.ranges import foreign_of


def quantized_model(zero=0, kind=np.int8, scale=0.02, per_channel=True):
    """A convolution whose input and weight have Q/DQ pairs."""
    weight = random_weight(4, 3, 3, 3)
    steps = np.abs(weight).max((1, 2, 3)) / 127 if per_channel else np.float32(0.03)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"], name="qx"),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"], name="dx"),
        helper.make_node("QuantizeLinear", ["w", "sw", "zw"], ["qw"], name="qw", axis=0),
        helper.make_node("DequantizeLinear", ["qw", "sw", "zw"], ["dw"], name="dw", axis=0),
        helper.make_node("Conv", ["dx", "dw"], ["y"], name="/stem/conv", kernel_shape=[3, 3]),
    ]
    weights = {
        "w": weight,
        "sx": np.float32(scale),
        "zx": np.array(zero, kind),
        "sw": steps.astype(np.float32),
        "zw": np.zeros(np.shape(steps), np.int8),
    }
    return image_model(nodes, weights)


def test_ranges_are_scales_times_the_largest_code():
    module = read_onnx(quantized_model())
    assert [n.op_type for n in module.nodes] == ["Conv"]
    amax = module.ranges.amax
    assert float(amax["stem.conv.input"]) == pytest.approx(0.02 * 127)
    largest = np.abs(random_weight(4, 3, 3, 3)).max((1, 2, 3))
    np.testing.assert_allclose(amax["stem.conv.weight"], largest, rtol=1e-6)
    assert module.ranges.axes == {"stem.conv.weight": 0}


def test_unsigned_codes_around_128_are_symmetric_and_others_are_said():
    ranges = read_onnx(quantized_model(zero=128, kind=np.uint8)).ranges
    assert float(ranges.amax["stem.conv.input"]) == pytest.approx(0.02 * 127)
    assert not ranges.notes
    ranges = read_onnx(quantized_model(zero=0, kind=np.uint8)).ranges
    assert float(ranges.amax["stem.conv.input"]) == pytest.approx(0.02 * 255)
    assert "1 ranges were asymmetric" in ranges.notes[0]


def test_codes_without_a_zero_point_are_int8_as_in_tensorrt_and_a_note_says_so():
    model = quantized_model()
    for node in model.graph.node[:2]:
        del node.input[2:]
    ranges = read_onnx(model).ranges
    assert float(ranges.amax["stem.conv.input"]) == pytest.approx(0.02 * 127)
    assert ranges.notes == [
        "1 ranges have no zero point and are read as TensorRT reads them, INT8 around 0; ONNX "
        "means UINT8 from 0: stem.conv.input"
    ]


def test_a_quantized_file_is_refused_unless_its_ranges_are_replaced(tmp_path):
    path = tmp_path / "q.onnx"
    onnx.save(quantized_model(), path)
    samples = [torch.randn(3, 8, 8) for _ in range(4)]
    with pytest.raises(UsageError, match="its Q/DQ pairs have 2 ranges") as caught:
        trtq.quantize(str(path), samples)
    assert "--requantize" not in caught.value.hint
    assert "requantize" in caught.value.hint
    assert "trtq import-checkpoint" in caught.value.hint
    again = trtq.quantize(str(path), samples, requantize=True, min_agreement=0.0, parity_images=2)
    assert float(again.encodings.amax["stem.conv.input"]) != pytest.approx(0.02 * 127)


def test_ranges_that_are_taken_over_on_random_inputs_are_not_called_calibrated(tmp_path):
    path = tmp_path / "q.onnx"
    onnx.save(quantized_model(), path)
    spec = trtq.ImportCheckpointSpec(
        model=str(path), ranges=str(path), data="random:4", out=str(tmp_path / "out")
    )
    record = trtq.import_checkpoint(spec)
    assert record.random is True
    assert "on 4 random inputs (NOT CALIBRATED)" in record.summary


def test_a_quantized_file_is_neither_analysed_nor_searched(tmp_path):
    path = str(tmp_path / "q.onnx")
    onnx.save(quantized_model(), path)
    samples = [(torch.randn(3, 8, 8), 0) for _ in range(4)]
    asked = {"calib_images": 2, "images": 2}
    for call in (
        lambda: trtq.analyze(path, samples, metric="l2", **asked),
        lambda: trtq.search(path, samples, budget={"size": 0.5}, metric="l2", **asked),
    ):
        with pytest.raises(UsageError, match="its Q/DQ pairs have 2 ranges") as caught:
            call()
        assert "Give the float file that it was made from. Take them over:" in caught.value.hint
    with pytest.raises(UsageError, match="--data is for a float model: .* is quantized already"):
        trtq.advise(trtq.AdviseSpec(model=path, data="digits"))


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(EncodingsError, match="a scale must be finite and not below 0"):
        read_onnx(quantized_model(scale=float("nan")))


def test_a_file_without_a_range_that_fits_is_refused():
    with pytest.raises(EncodingsError, match="no layer reads a Q/DQ pair"):
        foreign_of({}, {}, "q.onnx")


def test_ranges_around_a_matmul_of_two_activations_are_taken_over(tmp_path):
    """As attentions have them: the file that trtq writes gives what the other one gives."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], name="/turn", perm=[0, 1, 3, 2]),
        helper.make_node("QuantizeLinear", ["x", "s1", "zero"], ["q1"], name="q1"),
        helper.make_node("DequantizeLinear", ["q1", "s1", "zero"], ["d1"], name="d1"),
        helper.make_node("QuantizeLinear", ["turned", "s2", "zero"], ["q2"], name="q2"),
        helper.make_node("DequantizeLinear", ["q2", "s2", "zero"], ["d2"], name="d2"),
        helper.make_node("MatMul", ["d1", "d2"], ["y"], name="/attn/MatMul"),
    ]
    scales = {"s1": np.float32(0.03), "s2": np.float32(0.02), "zero": np.array(0, np.int8)}
    path, out = tmp_path / "q.onnx", tmp_path / "out"
    onnx.save(image_model(nodes, scales), path)
    record = trtq.import_checkpoint(
        trtq.ImportCheckpointSpec(model=str(path), ranges=str(path), data="random:4", out=str(out))
    )
    assert record.quantizers == 2
    assert record.unused == {}
    x = {"x": random_weight(2, 3, 8, 8)}
    (wanted,), (got,) = (
        open_session(onnx.load(p)).run(None, x) for p in (path, out / "model.qdq.onnx")
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def removed_activation(zero, largest, *, opset=17, float_activation=None):
    """Two convolutions; the codes between them are unsigned from 0, as a ReLU's may be."""
    kind = np.int8 if zero < 0 else np.uint8
    middle = [] if float_activation is None else [helper.make_node(float_activation, ["a"], ["b"])]
    source = "a" if float_activation is None else "b"
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", kernel_shape=[3, 3]),
        *middle,
        helper.make_node("QuantizeLinear", [source, "s", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["d"], name="d"),
        helper.make_node("Conv", ["d", "w2"], ["y"], name="second", kernel_shape=[3, 3]),
    ]
    weights = {
        "w1": random_weight(4, 3, 3, 3),
        "w2": random_weight(2, 4, 3, 3) / 8,
        "s": np.float32(largest / 255),
        "zero": np.array(zero, kind),
    }
    return image_model(nodes, weights, opset=opset)


@pytest.mark.parametrize(
    ("zero", "largest", "opset", "activation"),
    [(0, 40.0, 17, "Relu"), (-128, 40.0, 17, "Relu"), (0, 6.0, 17, "Clip"), (0, 6.0, 10, "Clip")],
)
def test_codes_from_0_are_the_activation_that_another_quantizer_removed(
    zero, largest, opset, activation
):
    model = removed_activation(zero, largest, opset=opset)
    module = read_onnx(model)
    assert [n.op_type for n in module.nodes] == ["Conv", activation, "Conv"]
    kind = "ReLU6" if largest == 6.0 else "ReLU"
    assert f"they are activations again, 1 {kind}; the first is q" in module.notes[0]
    x = random_weight(2, 3, 8, 8)
    (wanted,) = open_session(model).run(None, {"x": x})
    with torch.no_grad():
        got = module(torch.from_numpy(x))["y"].numpy()
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()  # codes round


def test_codes_from_0_behind_an_activation_add_none():
    module = read_onnx(removed_activation(0, 40.0, float_activation="Relu"))
    assert [n.op_type for n in module.nodes] == ["Conv", "Relu", "Conv"]
    assert module.notes == []
    module = read_onnx(removed_activation(3, 40.0))
    assert [n.op_type for n in module.nodes] == ["Conv", "Conv"]


def test_a_layer_without_its_pairs_reads_the_activation_that_they_were():
    model = removed_activation(0, 40.0)
    plain = strip_at(model, ["second"])
    x = {"x": random_weight(2, 3, 8, 8)}
    (wanted,), (got,) = (open_session(m).run(None, x) for m in (model, plain))
    assert "Relu" in [n.op_type for n in plain.graph.node]
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
