"""Small ONNX files with several inputs, other dtypes and open axes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10


def model_of(
    nodes, inputs, outputs, weights=None, *, opset=18, domains=(), check=True
) -> onnx.ModelProto:
    """A model of nodes, with (name, type, shape) of its inputs and outputs."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    if check:
        onnx.checker.check_model(model)
    return model


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def two_images(batch: int | str = "batch", size: int = 8) -> onnx.ModelProto:
    """Two images in, a distance and the features of the first out."""
    nodes = [
        helper.make_node("Conv", ["left", "w"], ["a"], "conv", kernel_shape=[3, 3]),
        helper.make_node("Conv", ["right", "w"], ["b"], "conv_1", kernel_shape=[3, 3]),
        helper.make_node("Sub", ["a", "b"], ["d"], "sub"),
        helper.make_node("GlobalAveragePool", ["d"], ["distance"], "pool"),
        helper.make_node("Relu", ["a"], ["features"], "relu"),
    ]
    shape = [batch, 3, size, size]
    return model_of(
        nodes,
        [("left", TensorProto.FLOAT, shape), ("right", TensorProto.FLOAT, shape)],
        [
            ("distance", TensorProto.FLOAT, [batch, 4, 1, 1]),
            ("features", TensorProto.FLOAT, [batch, 4, size - 2, size - 2]),
        ],
        {"w": random_weight(4, 3, 3, 3)},
    )


def detector(size: int = 64) -> onnx.ModelProto:
    """One image in, six numbers for each place of a grid out, as exported detectors have them."""
    nodes = [
        helper.make_node(
            "Conv", ["images", "w"], ["y"], "conv", kernel_shape=[8, 8], strides=[8, 8]
        ),
        helper.make_node("Relu", ["y"], ["z"], "relu"),
        helper.make_node("Conv", ["z", "v"], ["grid"], "head", kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["grid", "flat"], ["output0"], "flatten"),
    ]
    weights = {
        "w": random_weight(16, 3, 8, 8),
        "v": random_weight(6, 16, 1, 1),
        "flat": np.array([1, 6, -1], np.int64),
    }
    return model_of(
        nodes,
        [("images", TensorProto.FLOAT, [1, 3, size, size])],
        [("output0", TensorProto.FLOAT, [1, 6, (size // 8) ** 2])],
        weights,
    )


def pyramid_detector(size: int = 64) -> onnx.ModelProto:
    """Two classes at three strides, boxes in pixels: the raw head of YOLOv8."""
    nodes, weights, maps = [], {"flat": np.array([1, 6, -1], np.int64)}, []
    below, channels = "images", 3
    for stride, side in ((8, 8), (16, 2), (32, 2)):
        name = f"p{stride}"
        weights[f"{name}.w"] = random_weight(16, channels, side, side)
        weights[f"{name}.v"] = random_weight(6, 16, 1, 1)
        nodes += [
            helper.make_node(
                "Conv",
                [below, f"{name}.w"],
                [f"{name}.y"],
                name,
                kernel_shape=[side, side],
                strides=[side, side],
            ),
            helper.make_node("Relu", [f"{name}.y"], [f"{name}.z"], f"{name}.relu"),
            helper.make_node(
                "Conv",
                [f"{name}.z", f"{name}.v"],
                [f"{name}.m"],
                f"{name}.head",
                kernel_shape=[1, 1],
            ),
            helper.make_node("Reshape", [f"{name}.m", "flat"], [f"{name}.f"], f"{name}.flatten"),
        ]
        below, channels = f"{name}.z", 16
        maps.append(f"{name}.f")
    weights["parts"] = np.array([4, 2], np.int64)
    nodes += [
        helper.make_node("Concat", maps, ["all"], "join", axis=2),
        helper.make_node("Split", ["all", "parts"], ["boxes", "logits"], "split", axis=1),
        helper.make_node("Sigmoid", ["logits"], ["scores"], "sigmoid"),
        helper.make_node("Concat", ["boxes", "scores"], ["output0"], "output", axis=1),
    ]
    places = sum((size // stride) ** 2 for stride in (8, 16, 32))
    return model_of(
        nodes,
        [("images", TensorProto.FLOAT, [1, 3, size, size])],
        [("output0", TensorProto.FLOAT, [1, 6, places])],
        weights,
    )


def text_encoder(vocabulary: int = 11, kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """Token ids and a mask in, their mean embedding out; batch and length are open."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("Cast", ["mask"], ["m"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"], "unsqueeze"),
        helper.make_node("Mul", ["e", "m3"], ["em"], "mul"),
        helper.make_node("ReduceMean", ["em", "axis"], ["pooled"], "mean", keepdims=0),
        helper.make_node("MatMul", ["pooled", "w"], ["embedding"], "head"),
    ]
    weights = {
        "table": random_weight(vocabulary, 8),
        "w": random_weight(8, 5),
        "last": np.array([2], np.int64),
        "axis": np.array([1], np.int64),
    }
    shape = ["batch", "length"]
    return model_of(
        nodes,
        [("ids", kind, shape), ("mask", kind, shape)],
        [("embedding", TensorProto.FLOAT, ["batch", 5])],
        weights,
    )


def bytes_image(size: int = 8) -> onnx.ModelProto:
    """A uint8 image in, channels last, a map of scores out; one image."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["x"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "w"], ["scores"], "conv", kernel_shape=[3, 3]),
    ]
    return model_of(
        nodes,
        [("image", TensorProto.UINT8, [1, size, size, 3])],
        [("scores", TensorProto.FLOAT, [1, 4, size - 2, size - 2])],
        {"w": random_weight(4, 3, 3, 3)},
    )


def open_sizes(batch: int | str = "batch") -> onnx.ModelProto:
    """An image of open height and width in, a map of half the size out."""
    nodes = [
        helper.make_node(
            "Conv",
            ["images", "w"],
            ["y"],
            "conv",
            kernel_shape=[3, 3],
            pads=[1] * 4,
            strides=[2] * 2,
        ),
        helper.make_node("Sigmoid", ["y"], ["map"], "sigmoid"),
    ]
    return model_of(
        nodes,
        [("images", TensorProto.FLOAT, [batch, 3, "height", "width"])],
        [("map", TensorProto.FLOAT, [batch, 1, None, None])],
        {"w": random_weight(1, 3, 3, 3)},
    )
