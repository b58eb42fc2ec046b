"""Small graphs, one wrong and one right for every lint rule."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


class Build:
    """A graph, node by node."""

    def __init__(self, opset: int = 13, size: int | None = 8) -> None:
        self.opset, self.size, self.nodes, self.constants = opset, size, [], []

    def const(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def node(
        self, kind: str, inputs: list[str], output: str, name: str | None = None, **attributes
    ) -> str:
        self.nodes.append(
            helper.make_node(
                kind, inputs, [output], name=output if name is None else name, **attributes
            )
        )
        return output

    def pair(
        self, x: str, tag: str, scale=0.05, zero=None, axis: int | None = None, zeros: bool = True
    ) -> str:
        scale = np.asarray(scale, dtype=np.float32)
        rest = [self.const(f"{tag}_s", scale)]
        if zeros:
            rest.append(
                self.const(f"{tag}_z", np.full(scale.shape, np.int8(0) if zero is None else zero))
            )
        more = {} if axis is None else {"axis": axis}
        return self.node(
            "DequantizeLinear",
            [self.node("QuantizeLinear", [x, *rest], f"{tag}_q", **more), *rest],
            f"{tag}_dq",
            **more,
        )

    def conv(
        self,
        x: str,
        tag: str,
        *,
        axis: int | None = 0,
        channels: int = 3,
        scale=None,
        quantized: bool = True,
    ) -> str:
        weight = self.const(f"{tag}_w", RNG.standard_normal((4, channels, 3, 3)).astype(np.float32))
        count = channels if axis == 1 else 4
        given = (
            self.pair(
                weight,
                f"{tag}_w",
                scale=np.full(count, 0.03) if scale is None else scale,
                axis=axis,
            )
            if quantized
            else weight
        )
        return self.node("Conv", [x, given], tag, pads=[1, 1, 1, 1])

    def model(self, output: str) -> onnx.ModelProto:
        self.node("Identity", [output], "y")
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, self.size, self.size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )


def plain(axis: int | None = 0, **more) -> onnx.ModelProto:
    b = Build(**more)
    return b.model(b.conv(b.pair("x", "in"), "c", axis=axis))


def with_op(kind: str, **attributes) -> onnx.ModelProto:
    b = Build(opset=20)
    return b.model(b.node(kind, ["x"], "o", **attributes))


def zero_point(value) -> onnx.ModelProto:
    b = Build()
    return b.model(b.conv(b.pair("x", "in", zero=value), "c"))


def activation(scale, axis=None) -> onnx.ModelProto:
    b = Build()
    return b.model(b.conv(b.pair("x", "in", scale=scale, axis=axis), "c"))


def no_zero(zeros: bool) -> onnx.ModelProto:
    b = Build()
    return b.model(b.conv(b.pair("x", "in", zeros=zeros), "c"))


def scalar_axis(axis) -> onnx.ModelProto:
    b = Build()
    return b.model(b.conv(b.pair("x", "in", axis=axis), "c"))


def bias(kind: str) -> onnx.ModelProto:
    b = Build()
    x, weight = (
        b.pair("x", "in"),
        b.pair(
            b.const("w", RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)),
            "w",
            scale=np.full(4, 0.03),
            axis=0,
        ),
    )
    if kind == "int32":
        codes = b.const("b", np.arange(4, dtype=np.int32) * 100)
        given = b.node(
            "DequantizeLinear",
            [codes, b.const("bs", np.full(4, 0.0015, dtype=np.float32))],
            "b_dq",
            axis=0,
        )
    else:
        given = b.const("b", np.arange(4, dtype=np.float32))
    return b.model(b.node("Conv", [x, weight, given], "c", pads=[1, 1, 1, 1]))


def stored(form: str) -> onnx.ModelProto:
    b = Build()
    x = b.pair("x", "in")
    if form.startswith("codes"):
        codes = b.const("w", RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8))
        rest = [
            b.const("ws", np.linspace(0.01, 0.04, 4).astype(np.float32)),
            b.const("wz", np.zeros(4, dtype=np.int8)),
        ]
        rest = rest[:1] if "no zero" in form else rest
        return b.model(
            b.node(
                "Conv",
                [x, b.node("DequantizeLinear", [codes, *rest], "w_dq", axis=0)],
                "c",
                pads=[1, 1, 1, 1],
            )
        )
    return b.model(b.conv(x, "c"))


def concat(second: float, behind: bool = False) -> onnx.ModelProto:
    b = Build()
    joined = b.node(
        "Concat", [b.pair("x", "a", scale=0.05), b.pair("x", "b", scale=second)], "j", axis=1
    )
    return b.model(b.conv(b.pair(joined, "p") if behind else joined, "c", channels=6))


def pooled(pair_behind: bool) -> onnx.ModelProto:
    b = Build()
    pool = b.node("AveragePool", [b.pair("x", "in")], "p", kernel_shape=[2, 2])
    return b.model(b.conv(b.pair(pool, "q") if pair_behind else pool, "c"))


def transposed(quantized: bool) -> onnx.ModelProto:
    b = Build()
    weight = b.const("w", RNG.standard_normal((3, 4, 2, 2)).astype(np.float32))
    x, given = (
        (b.pair("x", "in"), b.pair(weight, "w", scale=np.full(4, 0.03), axis=1))
        if quantized
        else ("x", weight)
    )
    return b.model(b.node("ConvTranspose", [x, given], "t"))


def residual(pair: bool) -> onnx.ModelProto:
    b = Build()
    stem = b.node("Relu", [b.conv(b.pair("x", "in"), "stem")], "r")
    branch = b.conv(b.pair(stem, "mid"), "c", channels=4)
    return b.model(b.node("Add", [branch, b.pair(stem, "short") if pair else stem], "sum"))


def fused(inside: bool) -> onnx.ModelProto:
    b = Build()
    c = b.conv(b.pair("x", "in"), "c")
    return b.model(
        b.node("Relu", [b.pair(c, "mid")], "r")
        if inside
        else b.pair(b.node("Relu", [c], "r"), "out")
    )


def softmax(pair: bool) -> onnx.ModelProto:
    b = Build()
    return b.model(b.node("Softmax", [b.pair("x", "in") if pair else "x"], "s", axis=1))


def half(which: str) -> onnx.ModelProto:
    b = Build()
    return b.model(
        b.conv("x" if which == "weight" else b.pair("x", "in"), "c", quantized=which != "input")
    )


def names(second: str) -> onnx.ModelProto:
    b = Build()
    return b.model(b.node("Relu", [b.node("Relu", ["x"], "a", name="first")], "b", name=second))


def scale_of(value) -> onnx.ModelProto:
    b = Build()
    return b.model(b.conv(b.pair("x", "in", scale=value), "c"))


def computed_scale() -> onnx.ModelProto:
    b = Build()
    s = b.node("ReduceMax", ["x"], "s", keepdims=0)
    z = b.const("z", np.int8(0))
    return b.model(
        b.node("DequantizeLinear", [b.node("QuantizeLinear", ["x", s, z], "q"), s, z], "dq")
    )


def constant(value: float) -> onnx.ModelProto:
    b = Build()
    return b.model(b.node("Mul", ["x", b.const("k", np.float32(value))], "m"))


def cast_through(kind: int) -> onnx.ModelProto:
    b = Build()
    return b.model(
        b.node(
            "Cast",
            [b.node("Abs", [b.node("Cast", ["x"], "up", to=kind)], "m")],
            "down",
            to=TensorProto.FLOAT,
        )
    )


def bare_axis() -> onnx.ModelProto:
    """Scales for each channel without an axis: ONNX means axis 1."""
    b = Build()
    return b.model(b.conv(b.pair("x", "in"), "c", axis=None, scale=np.full(3, 0.03)))
