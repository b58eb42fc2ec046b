"""A plugin of TensorRT: what is in front of it is calibrated, it and the rest pass through."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import trtq
from tests.reader.test_files import image_model
from tests.support.onnx_files import random_weight
from trtq.errors import ExportError, ModelError
from trtq.export.onnx_file import save_onnx
from trtq.export.tail import TAIL, pack_tail
from trtq.reader import read_onnx


def with_plugin(opset=17):
    """Two convolutions, a plugin, and a Relu behind it; a second output in front of it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["a", "v"], ["b"], name="second", kernel_shape=[1, 1]),
        helper.make_node("EfficientNMS_TRT", ["b", "w"], ["n"], name="nms"),
        helper.make_node("Relu", ["n"], ["y"], name="behind"),
        helper.make_node("Sigmoid", ["a"], ["scores"], name="scores"),
    ]
    weights = {"w": random_weight(4, 3, 1, 1), "v": random_weight(2, 4, 1, 1)}
    model = image_model(nodes, weights, outputs=("y", "scores"), opset=opset)
    for value, channels in zip(model.graph.output, (2, 4), strict=True):
        shape = ["batch", channels, 8, 8]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    return model


def test_the_model_is_read_up_to_the_plugin():
    module = read_onnx(with_plugin())
    assert [o.name for o in module.outputs] == ["scores", "b"]
    (note,) = module.notes
    assert note.startswith("nothing here can run nms (EfficientNMS_TRT): the 2 nodes from there on")


def test_it_is_quantized_and_the_plugin_is_written_behind_it(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(with_plugin(), path)
    samples = [torch.randn(3, 8, 8) for _ in range(4)]
    quantized = trtq.quantize(str(path), samples, min_agreement=0.0, parity_images=2, opset=17)
    quantized.save(tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.qdq.onnx")
    assert [o.name for o in model.graph.output] == ["y", "scores"]
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("QuantizeLinear") == 4
    assert kinds[-2:] == ["EfficientNMS_TRT", "Relu"]
    (nms,) = (n for n in model.graph.node if n.op_type == "EfficientNMS_TRT")
    assert nms.name == "nms"
    assert nms.input[0] == "b"
    assert not any(p.key == "trtq.tail" for p in model.metadata_props)


def test_a_plugin_with_nothing_in_front_of_it_is_refused():
    model = image_model([helper.make_node("EfficientNMS_TRT", ["x"], ["y"], name="nms")], {})
    with pytest.raises(ModelError, match="no layer is in front of it") as caught:
        read_onnx(model)
    assert "ort_library=" in caught.value.hint


def test_ops_of_onnx_runtime_itself_are_no_tail():
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["y"], name="act", domain="com.microsoft", alpha=1.702)
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    module = read_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    x = torch.randn(2, 3)
    torch.testing.assert_close(module(x)["y"], x * torch.sigmoid(1.702 * x), rtol=1e-4, atol=1e-5)
    assert list(module.opaque_nodes()) == ["act"]


def test_a_tail_in_another_opset_says_which_to_give(tmp_path):
    model, tail = with_plugin(), with_plugin(opset=13)
    model.metadata_props.add(key=TAIL, value=pack_tail(tail))
    next(o for o in model.opset_import).version = 18
    with pytest.raises(ExportError, match=r"Cannot write behind \(Relu\) in opset 18") as caught:
        save_onnx(model, tmp_path / "m.onnx")
    assert caught.value.hint == "Give --opset 13"
