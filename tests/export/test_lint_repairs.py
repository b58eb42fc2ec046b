"""``lint --fix``: no repair changes a value, on graphs as other tools write them.

The one repair that does must be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import run_cli
from trtq import BuildSpec, LintSpec, build, run_lint
from trtq.engine.lint_target import reader_of
from trtq.errors import UsageError
from trtq.export.lint import lint, repair
from trtq.export.ort import open_session, run_batch
from trtq.platform.target import Target

Node = onnx.NodeProto
SHAPE = (1, 8, 16, 16)


class Graph:
    """A random graph of one input, as a tool with bad habits writes it."""

    def __init__(self, seed: int, opset: int = 13) -> None:
        self.rng, self.opset = np.random.default_rng(seed), opset
        self.nodes: list[Node] = []
        self.held: list[onnx.TensorProto] = []

    def const(self, name: str, value: object) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **more) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=more.pop("name", output), **more)
        )
        return output

    def constant_node(self, name: str, value: object) -> str:
        return self.node("Constant", [], name, value=numpy_helper.from_array(np.asarray(value)))

    def pair(self, x: str, tag: str, scale: object, zero: object, axis: int | None = None) -> str:
        rest = [self.const(f"{tag}_s", np.asarray(scale, np.float32)), self.const(f"{tag}_z", zero)]
        more = {} if axis is None else {"axis": axis}
        return self.node(
            "DequantizeLinear",
            [self.node("QuantizeLinear", [x, *rest], f"{tag}_q", **more), *rest],
            f"{tag}_d",
            **more,
        )

    def weight(self, shape: tuple[int, ...]) -> np.ndarray:
        return (self.rng.standard_normal(shape) * 0.2).astype(np.float32)

    def model(self, output: str, *more: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", *more)]
        self.node("Identity", [output], "y")
        for value in values:  # ONNX wants a rank of outputs
            value.CopyFrom(
                helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["a", "b", "c", "d"])
            )
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
        graph = helper.make_graph(self.nodes, "g", inputs, values, self.held)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )


def symmetric_bytes(g: Graph) -> onnx.ModelProto:
    """UINT8 codes around 128 on activations and stored weights, moved between their halves."""
    codes = g.const("w", g.rng.integers(0, 256, (4, 8, 3, 3)).astype(np.uint8))
    rest = [g.const("ws", g.weight((4,)) ** 2 + 1e-3), g.const("wz", np.full(4, 128, np.uint8))]
    w = g.node("DequantizeLinear", [codes, *rest], "w_d", axis=0)
    return g.model(g.node("Conv", [g.pair("x", "x", 0.05, np.uint8(128)), w], "c"))


def bytes_with_other_readers(g: Graph) -> onnx.ModelProto:
    """Codes around 128 that something else than a pair reads: they must stay as they are."""
    d = g.pair("x", "x", 0.05, np.uint8(128))
    as_float = g.node("Cast", ["x_q"], "f", to=TensorProto.FLOAT)
    return g.model(g.node("Add", [d, as_float], "sum"))


def shared_bytes(g: Graph) -> onnx.ModelProto:
    """One set of stored codes has two zero points of one name, one of them in a Constant node."""
    codes, zero = (
        g.constant_node("w", g.rng.integers(0, 256, (4, 8, 1, 1)).astype(np.uint8)),
        g.constant_node("z", np.uint8(128)),
    )
    both = [
        g.node("DequantizeLinear", [codes, g.const(f"s{i}", np.float32(s)), zero], f"d{i}")
        for i, s in enumerate((0.01, 0.03))
    ]
    return g.model(
        g.node("Add", [g.node("Conv", ["x", w], f"c{i}") for i, w in enumerate(both)], "sum")
    )


def int32_biases(g: Graph) -> onnx.ModelProto:
    """ONNX Runtime's default: stored weights and an INT32 bias.

    Here both are read twice.
    """
    codes = g.const("w", g.rng.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8))
    w = g.node(
        "DequantizeLinear",
        [codes, g.const("ws", g.weight((4,)) ** 2 + 1e-3), g.const("wz", np.zeros(4, np.int8))],
        "wd",
        axis=0,
    )
    b = g.node(
        "DequantizeLinear",
        [
            g.const("b", g.rng.integers(-9999, 9999, 4).astype(np.int32)),
            g.const("bs", g.weight((4,)) ** 2),
        ],
        "bd",
        axis=0,
    )
    x = g.pair("x", "x", [0.05], np.zeros(1, np.int8), axis=1)
    return g.model(
        g.node("Add", [g.node("Conv", [x, w, b], "c1"), g.node("Conv", [x, w, b], "c2")], "sum")
    )


def half_codes(g: Graph) -> onnx.ModelProto:
    """Stored weights with FP16 scales, as FP16 files of opset 19 have them."""
    g.opset = 19
    codes = g.const("w", g.rng.integers(-127, 128, (4, 8, 3, 3)).astype(np.int8))
    w = g.node(
        "DequantizeLinear",
        [
            codes,
            g.const("ws", np.linspace(0.01, 0.03, 4).astype(np.float16)),
            g.const("wz", np.zeros(4, np.int8)),
        ],
        "wd",
        axis=0,
    )
    down = g.node("Cast", ["x"], "h", to=TensorProto.FLOAT16)
    return g.model(g.node("Cast", [g.node("Conv", [down, w], "c")], "up", to=TensorProto.FLOAT))


def shared_names(g: Graph) -> onnx.ModelProto:
    """Names that clash and names with quotes.

    Some tensors already have the names that a repair would give.
    """
    g.const("x_s/scalar", np.float32(99.0))
    a = g.pair("x", "x", [0.05], np.zeros(1, np.int8))
    b = g.node("Add", [a, "x_s/scalar"], "sum", name='a"b')
    return g.model(g.node("Relu", [b], "r", name='a"b'))


def in_a_branch(g: Graph) -> onnx.ModelProto:
    """A bias in INT32 and an activation scale of shape [1] inside a branch, constants outside."""
    inner = Graph(1)
    x = inner.pair("x", "p", [0.05], np.zeros(1, np.int8))
    bias = inner.node(
        "DequantizeLinear",
        [
            g.const("b", np.arange(4, dtype=np.int32) * 50),
            g.const("bs", np.full(4, 0.01, np.float32)),
        ],
        "bd",
        axis=0,
    )
    inner.node("Conv", [x, g.const("w", g.weight((4, 8, 1, 1))), bias], "o")
    values = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 4, 16, 16])]
    then = helper.make_graph(inner.nodes, "t", [], values, inner.held)
    other = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["o"], name="plain")], "e", [], values
    )
    g.node(
        "Greater",
        [g.node("ReduceMax", ["x"], "top", keepdims=0), g.const("zero", np.float32(0))],
        "yes",
    )
    return g.model(g.node("If", ["yes"], "choice", then_branch=then, else_branch=other))


def deconvolution(
    axis: int | None, *, groups: int = 1, stored: bool = False
) -> Callable[[Graph], onnx.ModelProto]:
    def make(g: Graph) -> onnx.ModelProto:
        w = g.weight((8, 6 // groups, 2, 2))
        scale = (
            np.abs(w).max(axis=tuple(d for d in range(4) if d != axis)) / 127
            if axis is not None
            else np.abs(w).max() / 127
        )
        zero, more = np.zeros(np.shape(scale), np.int8), {} if axis is None else {"axis": axis}
        if stored:
            shape = [-1 if d == axis else 1 for d in range(4)]
            codes = np.clip(np.round(w / np.reshape(scale, shape)), -128, 127).astype(np.int8)
            rest = [
                g.const("w", codes),
                g.const("ws", np.asarray(scale, np.float32)),
                g.const("wz", zero),
            ]
            weight = g.node("DequantizeLinear", rest, "wd", **more)
        else:
            weight = g.pair(g.const("w", w), "w", scale, zero, axis)
        x = g.pair("x", "x", 0.02, np.int8(0))
        return g.model(
            g.node(
                "ConvTranspose",
                [x, weight],
                "up",
                kernel_shape=[2, 2],
                strides=[2, 2],
                group=groups,
            )
        )

    return make


def bytes_with_a_type(g: Graph) -> onnx.ModelProto:
    """A QuantizeLinear of opset 21 that also says the type of its codes."""
    g.opset = 21
    x = g.pair("x", "in", np.float32(0.05), np.uint8(128))
    g.nodes[-2].attribute.append(helper.make_attribute("output_dtype", TensorProto.UINT8))
    assert g.nodes[-2].op_type == "QuantizeLinear"
    return g.model(g.node("Relu", [x], "relu"))


def stored_without_zero(g: Graph) -> onnx.ModelProto:
    """Codes of a weight without a zero point, which parsers from 8.6 on take as INT8."""
    codes = g.const("codes", g.rng.integers(-127, 127, (4, 8, 1, 1)).astype(np.int8))
    scale = g.const("scale", np.float32(0.01))
    weight = g.node("DequantizeLinear", [codes, scale], "weight")
    x = g.pair("x", "in", np.float32(0.05), np.int8(0))
    return g.model(g.node("Conv", [x, weight], "conv"))


GRAPHS = {
    "bytes with a type": bytes_with_a_type,
    "stored, no zero": stored_without_zero,
    "bytes": symmetric_bytes,
    "bytes read twice": bytes_with_other_readers,
    "shared bytes": shared_bytes,
    "biases": int32_biases,
    "half": half_codes,
    "names": shared_names,
    "branch": in_a_branch,
    "deconvolution 1": deconvolution(1),
    "deconvolution 0": deconvolution(0),
    "deconvolution, groups": deconvolution(1, groups=2),
    "deconvolution, stored": deconvolution(1, stored=True),
    "deconvolution, tensor": deconvolution(None),
}
TARGETS = ("rtx4090", "xavier@8.5", "t4@8.6", "sm86@8.0", "t4@10.3", "rtx4090@11.4")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", GRAPHS)
def test_no_repair_changes_a_value(kind, target):
    for seed in range(3):
        model, reader = GRAPHS[kind](Graph(seed)), reader_of(Target.parse(target))
        fixed, _ = repair(model, reader)
        left = [f for f in lint(fixed, reader) if f.repairable]
        assert not left, left
        x = (np.random.default_rng(seed).standard_normal(SHAPE) * 4).astype(
            np.float32
        )  # beyond the codes' range, too
        readable = model if kind != "names" else _renamed(model)
        got, wanted = (run_batch(open_session(m), x)[0] for m in (fixed, readable))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime refuses two nodes of one name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for i, node in enumerate(copy.graph.node):
        node.name = f"n{i}"
    return copy


def test_pairs_of_transposed_convolutions_go_only_when_asked(tmp_path: Path):
    model, reader = deconvolution(1)(Graph(0)), reader_of(Target.parse("rtx4090"))
    found = [f for f in lint(model, reader) if f.rule == "L13"]
    assert [(f.repairable, f.changes_values) for f in found] == [(False, True)]
    assert "L13" not in repair(model, reader)[1]
    fixed, done = repair(model, reader, change_values=True)
    assert done["L13"] == 2
    assert not [f for f in lint(fixed, reader) if f.rule == "L13"]
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    got, wanted = (run_batch(open_session(m), x)[0] for m in (fixed, model))
    assert 0.01 < np.abs(got - wanted).max() < 2
    onnx.save(model, tmp_path / "m.onnx")
    asked = ["lint", f"{tmp_path}/m.onnx", "--target", "rtx4090"]
    said = run_cli(*asked)
    assert "[--fix --allow-value-changes]" in said.stdout
    assert run_cli(*asked, "--fix", f"{tmp_path}/f.onnx", "--allow-value-changes").returncode == 0
    with pytest.raises(
        UsageError, match=r"--allow-value-changes does nothing without --fix\. Add --fix OUT\.onnx"
    ):
        run_lint(LintSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090", allow_value_changes=True))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_scale_of_shape_1_becomes_a_scalar_and_the_layer_int8(axis, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    g = Graph(30)
    w = g.weight((64, 8, 3, 3))
    scale = np.abs(w).max(axis=(1, 2, 3)) / 127
    weight = g.pair(g.const("w", w), "w", scale, np.zeros(64, np.int8), 0)
    one = g.pair("x", "x", [0.02], np.zeros(1, np.int8), axis)
    onnx.save(g.model(g.node("Conv", [one, weight], "conv", pads=[1] * 4)), tmp_path / "m.onnx")
    record = run_lint(LintSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090"))
    assert [(f.rule, f.severity, f.repairable) for f in record.findings] == [
        ("L25", "error", True)
    ] * 2
    with pytest.raises(
        Exception,
        match=r"L25, x_q: .*Repair it: trtq lint .*m\.onnx --target rtx4090 --fix FIXED\.onnx",
    ):
        build(BuildSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090", out=f"{tmp_path}/e.engine"))
    assert run_lint(
        LintSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090", fix=f"{tmp_path}/f.onnx")
    ).passed
    built = build(
        BuildSpec(onnx=f"{tmp_path}/f.onnx", target="rtx4090", out=f"{tmp_path}/e.engine")
    )
    assert built.coverage is not None
    assert (built.coverage.asked, built.coverage.got) == (1, 1)
    assert not run_lint(
        LintSpec(onnx=f"{tmp_path}/m.onnx", target="xavier@8.5")
    ).findings  # its parser takes it for one scale
