"""One walker finds where operands come from.

Lint, build, audit, counts and import agree on every form of a graph.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq import (
    AuditSpec,
    BuildSpec,
    ImportCalibSpec,
    LintSpec,
    audit,
    build,
    import_calib,
    run_lint,
)
from trtq.commands.inspect import inspect
from trtq.cost.onnx_file import list_onnx_ops
from trtq.engine.audit import requests
from trtq.engine.lint_target import reader_of
from trtq.errors import EngineError
from trtq.export.codes import count_qdq, quantized_nodes
from trtq.export.insert_qdq import insert_qdq
from trtq.export.lint import lint
from trtq.export.lint_view import View
from trtq.export.onnx_file import load_onnx
from trtq.export.ort import open_session, run_batch
from trtq.export.strip import strip_at, strip_qdq
from trtq.onnx_walk import bytes_of, scopes
from trtq.platform.target import Target

RNG = np.random.default_rng(3)
Node = onnx.NodeProto


def const(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def value(
    name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def pair(
    x: str, tag: str, scale: object, axis: int | None = None
) -> tuple[list[Node], list[onnx.TensorProto]]:
    scale = np.asarray(scale, np.float32)
    more = {} if axis is None else {"axis": axis}
    rest = [f"{tag}_s", f"{tag}_z"]
    nodes = [
        helper.make_node("QuantizeLinear", [x, *rest], [f"{tag}_q"], name=f"{tag}_Q", **more),
        helper.make_node(
            "DequantizeLinear", [f"{tag}_q", *rest], [f"{tag}_dq"], name=f"{tag}_DQ", **more
        ),
    ]
    return nodes, [const(f"{tag}_s", scale), const(f"{tag}_z", np.zeros(scale.shape, np.int8))]


def model(
    nodes: list[Node],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    held: list[onnx.TensorProto],
    **more,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    imports = [
        helper.make_opsetid("", more.pop("opset", 17)),
        *[helper.make_opsetid(d, 1) for d in more.pop("domains", ())],
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def amax(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(weight).max(axis=tuple(d for d in range(weight.ndim) if d != axis)) / 127


def linear() -> onnx.ModelProto:
    """Return Weight -> Q -> DQ -> Transpose -> MatMul, twice.

    This is what torch.nn.functional.linear with a fake-quantized weight becomes.
    """
    w, w2 = (RNG.normal(size=s).astype(np.float32) * 0.1 for s in ((256, 128), (128, 256)))
    parts = [
        pair("x", "x", 0.03),
        pair("w", "w", amax(w, 0), 0),
        pair("r", "h", 0.05),
        pair("w2", "w2", amax(w2, 0), 0),
    ]
    (x, ix), (wn, iw), (h, ih), (w2n, iw2) = parts
    nodes = [
        *x,
        *wn,
        helper.make_node("Transpose", ["w_dq"], ["wt"], name="wt", perm=[1, 0]),
        helper.make_node("MatMul", ["x_dq", "wt"], ["m"], name="fc1"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        *h,
        *w2n,
        helper.make_node("Transpose", ["w2_dq"], ["w2t"], name="w2t", perm=[1, 0]),
        helper.make_node("MatMul", ["h_dq", "w2t"], ["y"], name="fc2"),
    ]
    return model(
        nodes,
        [value("x", [64, 128])],
        [value("y", [64, 128])],
        [const("w", w), const("w2", w2), *ix, *iw, *ih, *iw2],
    )


def flatten() -> onnx.ModelProto:
    """A pair on the pooled map, then Flatten, then Gemm."""
    w, g = (
        RNG.normal(size=(32, 3, 3, 3)).astype(np.float32) * 0.2,
        RNG.normal(size=(64, 512)).astype(np.float32) * 0.1,
    )
    (x, ix), (wn, iw), (p, ip), (gn, ig) = (
        pair("x", "x", 0.02),
        pair("w", "w", amax(w, 0), 0),
        pair("p", "p", 0.03),
        pair("g", "g", amax(g, 0), 0),
    )
    nodes = [
        *x,
        *wn,
        helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        *p,
        helper.make_node("Flatten", ["p_dq"], ["f"], name="flat"),
        *gn,
        helper.make_node("Gemm", ["f", "g_dq"], ["y"], name="gemm", transB=1),
    ]
    return model(
        nodes,
        [value("x", [16, 3, 16, 16])],
        [value("y", [16, 64])],
        [const("w", w), const("g", g), *ix, *iw, *ip, *ig],
    )


def moved(nodes: list[Node], held: list[onnx.TensorProto], shape: list[int]) -> onnx.ModelProto:
    """Return a pair on the input, ops ``nodes``, then a quantized convolution of 32 channels.

    The ops move the values of the pair from x_dq to m.
    """
    w = RNG.normal(size=(32, 32, 3, 3)).astype(np.float32) * 0.1
    (x, ix), (wn, iw) = pair("x", "x", 0.02), pair("w", "w", amax(w, 0), 0)
    last = helper.make_node("Conv", ["m", "w_dq"], ["y"], name="conv", pads=[1] * 4)
    return model(
        [*x, *nodes, *wn, last],
        [value("x", shape)],
        [value("y", None)],
        [const("w", w), *ix, *iw, *held],
    )


def op(kind: str, inputs: list[str], **more) -> Node:
    return helper.make_node(kind, inputs, ["m"], name="move", **more)


INTS = np.int64
MOVED = {
    "Identity": ([op("Identity", ["x_dq"])], [], [1, 32, 16, 16]),
    "Transpose": ([op("Transpose", ["x_dq"], perm=[0, 1, 3, 2])], [], [1, 32, 16, 16]),
    "Reshape": (
        [op("Reshape", ["x_dq", "s"])],
        [const("s", np.array([1, 32, 16, 16], INTS))],
        [1, 16, 32, 16],
    ),
    "Slice": (
        [op("Slice", ["x_dq", "a", "b", "c"])],
        [const("a", np.array([0])), const("b", np.array([8])), const("c", np.array([2]))],
        [1, 32, 16, 16],
    ),
    "Split": (
        [helper.make_node("Split", ["x_dq"], ["m", "m2"], name="move", axis=1)],
        [],
        [1, 64, 16, 16],
    ),
    "MaxPool": ([op("MaxPool", ["x_dq"], kernel_shape=[2, 2])], [], [1, 32, 16, 16]),
    "Pad": (
        [op("Pad", ["x_dq", "p"])],
        [const("p", np.array([0, 0, 1, 1, 0, 0, 1, 1]))],
        [1, 32, 16, 16],
    ),
    "DepthToSpace": ([op("DepthToSpace", ["x_dq"], blocksize=2)], [], [1, 128, 8, 8]),
    "Concat": ([op("Concat", ["x_dq", "x_dq"], axis=1)], [], [1, 16, 16, 16]),
    "two": (
        [
            helper.make_node("Identity", ["x_dq"], ["i"], name="i"),
            op("Transpose", ["i"], perm=[0, 1, 3, 2]),
        ],
        [],
        [1, 32, 16, 16],
    ),
}
COMPUTED = {
    "Relu": ([op("Relu", ["x_dq"])], [], [1, 32, 16, 16]),
    "AveragePool": ([op("AveragePool", ["x_dq"], kernel_shape=[2, 2])], [], [1, 32, 16, 16]),
    "LeakyRelu": ([op("LeakyRelu", ["x_dq"])], [], [1, 32, 16, 16]),
}


def agree(file: onnx.ModelProto, folder: Path, layers: int) -> None:
    """Check that lint, build, audit and inspect agree on the number of layers in INT8.

    Lint passes and build writes an engine unless that number is 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, engine = folder / "m.onnx", folder / "e.engine"
    onnx.save(file, path)
    record = run_lint(LintSpec(onnx=str(path), target="rtx4090"))
    assert len(quantized_nodes(file, "Conv", "MatMul", "Gemm")) == layers
    assert inspect(path)["quantized_layers"].startswith(f"{layers} of ")
    assert record.passed == (layers > 0), record.findings
    if not layers:
        with pytest.raises(
            EngineError,
            match=r"has no layer in INT8: .*L\d\d: .*trtq lint .*m\.onnx --target rtx4090",
        ):
            build(BuildSpec(onnx=str(path), target="rtx4090", out=str(engine)))
        return
    built = build(BuildSpec(onnx=str(path), target="rtx4090", out=str(engine)))
    assert built.coverage is not None
    assert (built.coverage.asked, built.coverage.got) == (layers, layers)
    audited = audit(AuditSpec(file=str(engine), onnx=str(path)))
    assert [m.actual for m in audited.modules if m.requested != "float"] == ["int8"] * layers
    assert all(o.input_bits == 8 for o in list_onnx_ops(file, "m") if o.kind in ("conv", "linear"))


@pytest.mark.parametrize("make", [linear, flatten])
def test_pairs_behind_transpose_and_flatten_are_seen_by_all(make, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    agree(make(), tmp_path, 2)


@pytest.mark.parametrize("kind", MOVED)
def test_ops_that_move_values_keep_a_layer_in_int8(kind, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    agree(moved(*MOVED[kind]), tmp_path, 1)


@pytest.mark.parametrize("kind", COMPUTED)
def test_ops_that_compute_do_not(kind, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    agree(moved(*COMPUTED[kind]), tmp_path, 0)


@pytest.mark.parametrize(
    ("shape", "axis", "nodes", "wanted"),
    [
        ((256, 128), 0, [helper.make_node("Transpose", ["w_dq"], ["m"], perm=[1, 0])], 1),
        ((256, 128), 1, [helper.make_node("Transpose", ["w_dq"], ["m"], perm=[1, 0])], 0),
        ((128, 16, 16), 0, [helper.make_node("Reshape", ["w_dq", "s"], ["m"])], 0),
        ((1, 128, 256), 2, [helper.make_node("Squeeze", ["w_dq", "a"], ["m"])], 1),
        (
            (128, 256),
            1,
            [
                helper.make_node("Identity", ["w_dq"], ["i"]),
                helper.make_node("Cast", ["i"], ["m"], to=TensorProto.FLOAT),
            ],
            1,
        ),
    ],
)
def test_the_axis_of_scales_is_followed_through_moves(shape, axis, nodes, wanted):
    w = RNG.normal(size=shape).astype(np.float32)
    (x, ix), (wn, iw) = pair("x", "x", 0.02), pair("w", "w", amax(w, axis), axis)
    last = helper.make_node("MatMul", ["x_dq", "m"], ["y"], name="mm")
    held = [const("w", w), *ix, *iw, const("s", np.array([128, 256])), const("a", np.array([0]))]
    made = model([*x, *wn, *nodes, last], [value("x", [64, 128])], [value("y", None)], held)
    scope = scopes(made)[0]
    found = scope.pair("m")
    assert found is not None
    assert scope.channels(found) == (wanted, 2)
    rules = {f.rule for f in lint(made, reader_of(Target.parse("rtx4090")))}
    assert ("L05" in rules) == (wanted != 1)


KINDS = ("initializer", "constant", "cast", "identity", "transposed", "reshaped")
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "wf": (8, 4)}


def behind(kind: str) -> onnx.ModelProto:
    """A float network whose weights are not initializers."""
    rng, nodes, held = np.random.default_rng(2), list[Node](), list[onnx.TensorProto]()
    for name, shape in WEIGHTS.items():
        w = (rng.normal(size=shape) * 0.2).astype(np.float16).astype(np.float32)
        if kind == "constant":
            nodes.append(helper.make_node("Constant", [], [name], value=const(name, w)))
        elif kind == "cast":
            held.append(const(f"{name}_h", w.astype(np.float16)))
            nodes.append(helper.make_node("Cast", [f"{name}_h"], [name], to=TensorProto.FLOAT))
        elif kind == "identity":
            held.append(const(f"{name}_0", w))
            nodes.append(helper.make_node("Identity", [f"{name}_0"], [name]))
        elif kind == "transposed" and name == "wf":
            held.append(const("wf_t", w.T))
            nodes.append(helper.make_node("Transpose", ["wf_t"], [name], perm=[1, 0]))
        elif kind == "reshaped":
            held += [const(f"{name}_flat", w.reshape(-1)), const(f"{name}_shape", np.array(shape))]
            nodes.append(helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]))
        else:
            held.append(const(name, w))
    nodes += [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="gap"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "wf"], ["y"], name="fc"),
    ]
    return model(nodes, [value("x", ["b", 3, 16, 16])], [value("y", ["b", 4])], held)


RANGES = {"x": 1.0, "c1": 3.0, "r1": 2.0, "c2": 4.0, "r2": 3.0, "p": 1.0, "f": 1.0, "y": 5.0}


@pytest.mark.parametrize("kind", KINDS)
def test_import_quantizes_weights_wherever_they_are(kind, tmp_path: Path):
    onnx.save(behind(kind), tmp_path / "m.onnx")
    lines = [f"{n}: {struct.pack('>f', v / 127).hex().lstrip('0')}" for n, v in RANGES.items()]
    (tmp_path / "c.cache").write_text("\n".join(["TRT-8502-EntropyCalibration2", *lines, ""]))
    record = import_calib(
        ImportCalibSpec(cache=f"{tmp_path}/c.cache", onnx=f"{tmp_path}/m.onnx", out=f"{tmp_path}/o")
    )
    assert not record.missing
    assert bool(record.notes) == (kind != "initializer")
    made = load_onnx(tmp_path / "o/model.qdq.onnx")
    assert len(quantized_nodes(made, "Conv", "MatMul")) == 3
    wanted = insert_qdq(behind("initializer"), {n: v / 127 for n, v in RANGES.items()}).model
    x = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(*(run_batch(open_session(m), x)[0] for m in (made, wanted)))
    assert {
        f.rule for f in lint(made, reader_of(Target.parse("xavier@8.5")))
    } == set()  # 8.x quantizes initializers alone


def test_import_takes_the_range_of_the_tensor_with_the_same_values():
    ranges = {n: v / 127 for n, v in RANGES.items() if n != "f"}
    done = insert_qdq(behind("initializer"), ranges)
    assert not done.missing
    assert "f" in done.activations
    assert "p" not in done.unused
    assert done.notes == [
        "1 tensors take the range of the tensor whose values they hold in another order"
    ]
    assert (
        "fc"
        in insert_qdq(behind("initializer"), {n: v for n, v in ranges.items() if n != "p"}).missing
    )


def branched(*, name: str = "o") -> onnx.ModelProto:
    """Return an If with a quantized convolution in one branch and none in the other.

    Both branches call their result the same.
    """
    w = RNG.normal(size=(32, 32, 3, 3)).astype(np.float32) * 0.1
    (x, ix), (wn, iw) = pair("x", "x", 0.02), pair("w", "w", amax(w, 0), 0)
    then = helper.make_graph(
        [helper.make_node("Conv", ["x_dq", "w_dq"], [name], name="conv", pads=[1] * 4)],
        "t",
        [],
        [value(name, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name], name="same")], "e", [], [value(name, None)]
    )
    nodes = [
        *x,
        *wn,
        helper.make_node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["yes"], name="yes"),
        helper.make_node("If", ["yes"], ["y"], name="choice", then_branch=then, else_branch=other),
    ]
    return model(
        nodes,
        [value("x", [1, 32, 16, 16])],
        [value("y", None)],
        [const("w", w), const("zero", np.float32(0)), *ix, *iw],
    )


def test_branches_are_entered():
    made = branched()
    assert [n.name for n in quantized_nodes(made, "Conv")] == ["conv"]
    assert requests(made) == {"conv": "int8"}
    assert sum(o.macs for o in list_onnx_ops(made, "m")) == 32 * 32 * 9 * 256
    conv = next(n for scope in scopes(made) for n in scope.graph.node if n.op_type == "Conv")
    conv.input[0] = "x"  # half a pair: only seen by who enters the branch
    assert "L22" in {f.rule for f in lint(made, reader_of(Target.parse("rtx4090")))}
    plain = strip_qdq(branched())
    assert count_qdq(plain) == 0
    x = RNG.standard_normal((1, 32, 16, 16)).astype(np.float32)
    assert run_batch(open_session(plain), x)[0].shape == (1, 32, 16, 16)


def test_local_functions_are_read_as_part_of_the_graph(tmp_path: Path):
    body = [helper.make_node("Relu", ["a"], ["b"], name="inner")]
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]
    )
    w = const("w", RNG.normal(size=(8, 3, 3, 3)).astype(np.float32))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Twice", ["c"], ["y"], name="call", domain="local"),
    ]
    made = model(
        nodes,
        [value("x", [1, 3, 8, 8])],
        [value("y", [1, 8, 6, 6])],
        [w],
        domains=["local"],
        functions=[function],
    )
    onnx.save(made, tmp_path / "m.onnx")
    read = load_onnx(tmp_path / "m.onnx")
    assert [n.op_type for n in read.graph.node] == ["Conv", "Relu"]
    assert not read.functions
    findings = run_lint(LintSpec(onnx=f"{tmp_path}/m.onnx", target="xavier@8.5")).findings
    assert [(f.rule, f.severity) for f in findings] == [("L28", "note")]
    assert not run_lint(LintSpec(onnx=f"{tmp_path}/m.onnx", target="orin@10.3")).findings


def test_strip_moves_what_stands_between_pair_and_reader():
    for make in (linear, flatten):
        made = make()
        kind, names = ("MatMul", {"fc1", "fc2"}) if make is linear else ("Gemm", {"gemm"})
        rest = strip_at(made, names)
        onnx.checker.check_model(rest, full_check=True)
        assert not quantized_nodes(rest, kind)
        x = RNG.standard_normal(
            [d.dim_value for d in made.graph.input[0].type.tensor_type.shape.dim]
        ).astype(np.float32)
        plain = strip_qdq(made)
        got, wanted = (run_batch(open_session(m), x)[0] for m in (rest, plain))
        assert got.shape == wanted.shape
        if make is linear:
            np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_constants_are_evaluated():
    nodes = [helper.make_node("Mul", ["a", "b"], ["s"]), helper.make_node("Relu", ["x"], ["y"])]
    made = model(
        nodes,
        [value("x", [2])],
        [value("y", [2])],
        [const("a", np.float32(0.5)), const("b", np.float32(0.5))],
    )
    view = View(made)
    assert view.value("s") == np.float32(0.25)
    assert view.value("y") is None
    assert not view.is_constant("x")


def test_text_beside_an_input_makes_no_constant():
    nodes = [
        helper.make_node("Constant", [], ["t"], value_string="a"),
        helper.make_node("StringConcat", ["x", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", [1], TensorProto.STRING)], [value("y", [1], TensorProto.STRING)]
    )
    scope = scopes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))[0]
    assert not scope.is_constant("y")
    assert scope.is_constant("t")
    assert [name for name, _ in scope.origins("y")] == ["y", "t", "x"]


def test_huge_shapes_have_a_size():
    assert bytes_of(TensorProto(data_type=TensorProto.INT4, dims=[3])) == 2
    assert bytes_of(TensorProto(data_type=TensorProto.FLOAT, dims=[2**62] * 20)) == 4 * 2**1240
