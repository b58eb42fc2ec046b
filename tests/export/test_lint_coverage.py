"""What the parser of a release reads: an allow-list of ops, types and forms.

The list is checked against the real parser.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq import BuildSpec, EvaluateSpec, LintSpec, build, evaluate, run_lint
from trtq.cost.onnx_file import list_onnx_ops
from trtq.engine.lint_target import reader_of
from trtq.errors import EngineError, ExportError
from trtq.export.codes import count_qdq
from trtq.export.fp16 import convert_to_half
from trtq.export.insert_qdq import insert_qdq
from trtq.export.lint import lint, repair
from trtq.export.lint_view import Finding
from trtq.export.onnx_file import load_onnx, save_onnx
from trtq.export.strip import strip_qdq
from trtq.platform.releases import releases
from trtq.platform.target import Target

RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((8, 3, 3, 3)) * 0.1).astype(np.float32)
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
Node = onnx.NodeProto


def out(kind: int = TensorProto.FLOAT, name: str = "y") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def node(kind: str, inputs: list[str], outputs: list[str], **more) -> Node:
    return helper.make_node(
        kind, inputs, outputs, name=more.pop("name", outputs[0] or kind), **more
    )


CONV = node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4)


Y = out()


def model(nodes, inputs=(X,), outputs=(Y,), held=(), opset=17, domains=()) -> onnx.ModelProto:
    tensors = [
        h if isinstance(h, onnx.TensorProto) else numpy_helper.from_array(np.asarray(h[1]), h[0])
        for h in (("w", WEIGHT), *held)
    ]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(d, 1) for d in domains]]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def errors(made: onnx.ModelProto, target: str) -> list[Finding]:
    return [f for f in lint(made, reader_of(Target.parse(target))) if f.severity == "error"]


def typed(kind: int) -> onnx.ModelProto:
    """A convolution whose result is cast to a type and back, with a sum between."""
    return model(
        [
            CONV,
            node("Cast", ["c"], ["a"], to=kind),
            node("Add", ["a", "a"], ["b"]),
            node("Cast", ["b"], ["y"], to=1),
        ],
        opset=21,
    )


def branch(kind: int) -> onnx.ModelProto:
    """The same inside a branch of an If."""
    then = helper.make_graph(
        [
            node("Cast", ["c"], ["a"], to=kind),
            node("Relu", ["a"], ["b"]),
            node("Cast", ["b"], ["t"], to=1),
        ],
        "t",
        [],
        [out(name="t")],
    )
    other = helper.make_graph([node("Neg", ["c"], ["e"])], "e", [], [out(name="e")])
    nodes = [
        CONV,
        node("ReduceMax", ["c"], ["top"], keepdims=0),
        node("Greater", ["top", "zero"], ["yes"]),
    ]
    nodes.append(node("If", ["yes"], ["y"], then_branch=then, else_branch=other))
    return model(nodes, held=[("zero", np.float32(0))])


def quantized(kind: int, zero: int | None) -> onnx.ModelProto:
    more = [] if zero is None else [helper.make_tensor("z", kind, [], [zero])]
    rest = ["s", "z"][: 1 + len(more)]
    nodes = [
        node("QuantizeLinear", ["x", *rest], ["q"]),
        node("DequantizeLinear", ["q", *rest], ["d"]),
        node("Conv", ["d", "w"], ["y"]),
    ]
    return model(nodes, held=[("s", np.float32(0.02)), *more], opset=21)


def resized(**more) -> onnx.ModelProto:
    return model(
        [CONV, node("Resize", ["c", "", "s"], ["y"], **more)],
        held=[("s", np.array([1, 1, 0.5, 0.5], np.float32))],
        opset=18,
    )


def taking(kind: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("xi", kind, [1, 3, 16, 16])
    return model(
        [node("Cast", ["xi"], ["x"], to=1), node("Conv", ["x", "w"], ["y"])],
        inputs=[value],
        opset=21,
    )


def giving(kind: int) -> onnx.ModelProto:
    return model([CONV, node("Cast", ["c"], ["y"], to=kind)], outputs=[out(kind)], opset=21)


LABELS = [node("Relu", ["c"], ["y"])]
T = TensorProto
# (graph, the tensor or node that is named, or None where it builds); the parser of TensorRT for RTX
# is asked for each.
GRAPHS = {
    "double input": (taking(T.DOUBLE), "xi"),
    "double output": (giving(T.DOUBLE), "y"),
    "double inside": (typed(T.DOUBLE), "a"),
    "double in a branch": (branch(T.DOUBLE), "a"),
    "float16 in a branch": (branch(T.FLOAT16), None),
    "text constant": (
        model([CONV, *LABELS], held=[helper.make_tensor("names", T.STRING, [2], [b"a", b"b"])]),
        "names",
    ),
    "text attribute": (
        model([CONV, node("Constant", [], ["t"], value_string="abc"), *LABELS]),
        "t",
    ),
    "int16 inside": (typed(T.INT16), "a"),
    "uint8 inside": (typed(T.UINT8), "a"),
    "uint32 input": (taking(T.UINT32), "xi"),
    "uint8 input": (taking(T.UINT8), None),
    "uint8 output": (giving(T.UINT8), None),
    "int64 output": (giving(T.INT64), None),
    "complex inside": (typed(T.COMPLEX64), "a"),
    "bfloat16 inside": (typed(T.BFLOAT16), None),
    "int4 output": (giving(T.INT4), "y"),
    "uint8 moved": (
        model(
            [
                node("Transpose", ["xu"], ["t"], perm=[0, 3, 1, 2]),
                node("Cast", ["t"], ["x"], to=1),
                node("Conv", ["x", "w"], ["y"]),
            ],
            inputs=[helper.make_tensor_value_info("xu", T.UINT8, [1, 16, 16, 3])],
        ),
        "t",
    ),
    "double weight": (
        model(
            [node("Cast", ["wd"], ["wf"], to=1), node("Conv", ["x", "wf"], ["y"])],
            held=[("wd", WEIGHT.astype(np.float64))],
        ),
        None,
    ),
    "int8 off zero": (quantized(T.INT8, 3), "q"),
    "uint8 128": (quantized(T.UINT8, 128), "q"),
    "int16": (quantized(T.INT16, 0), "q"),
    "uint16": (quantized(T.UINT16, 32768), "q"),
    "uint4": (quantized(T.UINT4, 0), "q"),
    "antialias": (resized(antialias=1, mode="linear"), "y"),
    "crop": (resized(coordinate_transformation_mode="tf_crop_and_resize"), "y"),
    "aspect": (resized(keep_aspect_ratio_policy="not_larger"), "y"),
    "cubic": (resized(mode="cubic"), None),
    "dilated": (model([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])]), "y"),
    "indices": (
        model(
            [node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])],
            outputs=[out(), out(T.INT64, "i")],
        ),
        "y",
    ),
    "scatter": (
        model(
            [node("ScatterND", ["x", "i", "u"], ["y"], reduction="add")],
            held=[("i", np.zeros((1, 1), np.int64)), ("u", np.ones((1, 3, 16, 16), np.float32))],
        ),
        "y",
    ),
    "size as input": (
        model(
            [node("Reshape", ["x", "shape"], ["y"])],
            inputs=[X, helper.make_tensor_value_info("shape", T.INT64, [2])],
        ),
        "y",
    ),
    "size of values": (
        model(
            [
                node("ReduceMax", ["x"], ["m"], keepdims=0),
                node("Cast", ["m"], ["i"], to=7),
                node("Reshape", ["i", "one"], ["n"]),
                node("TopK", ["x", "n"], ["y", "at"]),
            ],
            held=[("one", np.array([1]))],
        ),
        "y",
    ),
    "size of a shape": (
        model(
            [
                node("Shape", ["x"], ["s"]),
                node("Cast", ["s"], ["d"], to=T.DOUBLE),
                node("Mul", ["d", "two"], ["t"]),
                node("Cast", ["t"], ["i"], to=7),
                node("Resize", ["x", "", "", "i"], ["y"]),
            ],
            held=[("two", np.array([1, 1, 2, 2.0]))],
        ),
        None,
    ),
    "sequence": (
        model(
            [
                node("SplitToSequence", ["x"], ["s"], axis=1),
                node("ConcatFromSequence", ["s"], ["y"], axis=1),
            ]
        ),
        "s",
    ),
    "unknown op": (model([node("FooBar", ["x"], ["y"])]), "y"),
    "unknown domain": (
        model([node("Foo", ["x"], ["y"], domain="my.ops")], domains=["my.ops"]),
        "y",
    ),
    "contrib": (
        model(
            [node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation="Relu")],
            domains=["com.microsoft"],
        ),
        "y",
    ),
    "contrib op that is read": (
        model([node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=["com.microsoft"]),
        None,
    ),
    "bits": (
        model(
            [
                node("Cast", ["x"], ["i"], to=6),
                node("BitwiseAnd", ["i", "i"], ["b"]),
                node("Cast", ["b"], ["y"], to=1),
            ],
            opset=18,
        ),
        "b",
    ),
    "nonzero": (model([node("NonZero", ["x"], ["y"])], outputs=[out(T.INT64)]), "y"),
    "in a branch": (branch(T.INT16), "a"),
    "open batch": (
        model(
            [CONV, *LABELS], inputs=[helper.make_tensor_value_info("x", T.FLOAT, [-1, 3, 16, 16])]
        ),
        None,
    ),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_lint_and_build_agree(kind, tmp_path: Path):
    """Build refuses what lint calls an error, in lint's words; the real builder builds the rest."""
    pytest.importorskip("tensorrt_rtx")
    made, where = GRAPHS[kind]
    onnx.save(made, tmp_path / "m.onnx")
    found = [
        f
        for f in run_lint(LintSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090")).findings
        if f.severity == "error"
    ]
    asked = BuildSpec(onnx=f"{tmp_path}/m.onnx", target="rtx4090", out=f"{tmp_path}/e.engine")
    if where is None:
        assert not found, found
        build(asked)
        return
    assert where in {f.where for f in found}, found
    with pytest.raises(EngineError) as caught:
        build(asked)
    assert any(f.why in str(caught.value) for f in found)


def test_lint_agrees_with_the_parser_on_every_op():
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    reader = reader_of(Target.parse("rtx4090"))
    no_kernel = {
        "NonZero",
        "RoiAlign",
        "NonMaxSuppression",
    }  # the parser names them, and then finds no plugin or kernel
    for name in {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""} - no_kernel:
        made = model([onnx.NodeProto(op_type=name, name="n", input=["x", "w", "w"], output=["y"])])
        refused = any(f.rule == "L02" for f in lint(made, reader))
        assert refused != parser.supports_operator(name), name


@pytest.mark.parametrize(
    ("op", "last", "first"),
    [
        ("LayerNormalization", "sm86@8.5", "sm86@8.6"),
        ("GridSample", "sm86@8.4", "sm86@8.5"),
        ("Attention", "sm86@10.13", "sm86@10.14"),
        ("Gelu", "sm86@9.3", "sm86@10.0"),
        ("Einsum", "sm86@8.0", "sm86@8.2"),
        ("Hardmax", "sm86@9.1", "sm86@9.2"),
        ("STFT", "sm86@10.4", "sm86@10.5"),
        ("RMSNormalization", "sm86@10.14", "sm86@10.15"),
        ("Swish", "sm86@10.16", "sm86@11.0"),
    ],
)
def test_ops_by_release(op, last, first):
    made = model([onnx.NodeProto(op_type=op, name="n", input=["x", "w", "w"], output=["y"])])
    assert any(f"{op} exists from TensorRT" in f.why for f in errors(made, last) if f.rule == "L02")
    assert not [f for f in errors(made, first) if f.rule == "L02"]


def test_types_by_release():
    assert any(
        "UINT8" in f.why and "from 8.5 on" in f.why for f in errors(taking(T.UINT8), "sm86@8.4")
    )
    assert not [f for f in errors(taking(T.UINT8), "sm86@8.5") if f.rule == "L23"]
    assert any("from 9.0 on" in f.why for f in errors(typed(T.BFLOAT16), "sm86@8.6"))
    assert len(releases().ops) > 150


def test_grid_samples_of_opset_20():
    nodes = [node("GridSample", ["x", "grid"], ["y"], mode="linear")]
    inputs = [X, helper.make_tensor_value_info("grid", T.FLOAT, [1, 8, 8, 2])]
    made = model(nodes, inputs=inputs, opset=20)
    assert any("samples linear as nearest" in f.why for f in errors(made, "thor@10.13"))
    assert not errors(made, "orin@10.3")
    assert not errors(made, "rtx4090")


def test_constants_that_are_not_finite():
    broken = WEIGHT.copy()
    broken[0, 0, 0, 0] = np.nan
    nodes = [node("Conv", ["x", "broken"], ["y"])]
    assert [
        (f.rule, f.where) for f in errors(model(nodes, held=[("broken", broken)]), "rtx4090")
    ] == [("L26", "broken")]
    broken[0, 0, 0, 0] = np.inf
    assert [
        (f.rule, f.where) for f in errors(model(nodes, held=[("broken", broken)]), "rtx4090")
    ] == [("L26", "broken")]
    unread = model([CONV, *LABELS], held=[("buffer", np.full(3, np.nan, np.float32))])
    assert not errors(unread, "rtx4090")
    mask = model(
        [CONV, node("Add", ["c", "mask"], ["y"])],
        held=[("mask", np.array([0, -np.inf] * 8, np.float32))],
    )
    assert not errors(mask, "rtx4090")


def with_nms(domain: str, *, declared: bool, pairs: bool = False) -> onnx.ModelProto:
    """A convolution whose maps become boxes and scores, and NVIDIA's NMS behind them."""
    head = [
        node("Reshape", ["c", "shape"], ["flat"]),
        node("Slice", ["flat", "a", "b", "axis"], ["boxes"]),
        node("Slice", ["flat", "b", "e", "axis"], ["scores"]),
        node(
            "EfficientNMS_TRT",
            ["boxes", "scores"],
            ["n", "bx", "sc", "cl"],
            name="nms",
            domain=domain,
            plugin_version="1",
            max_output_boxes=10,
            score_threshold=0.25,
            iou_threshold=0.5,
            background_class=-1,
            box_coding=0,
            score_activation=0,
        ),
    ]
    shapes = {
        "n": (T.INT32, [1, 1]),
        "bx": (T.FLOAT, [1, 10, 4]),
        "sc": (T.FLOAT, [1, 10]),
        "cl": (T.INT32, [1, 10]),
    }
    held = [
        ("shape", np.array([1, -1, 8])),
        ("a", np.array([0])),
        ("b", np.array([4])),
        ("e", np.array([8])),
        ("axis", np.array([2])),
    ]
    first = [CONV]
    if pairs:
        rest = ["s", "z"]
        held += [("s", np.float32(0.02)), ("z", np.int8(0))]
        first = [
            node("QuantizeLinear", ["x", *rest], ["q"]),
            node("DequantizeLinear", ["q", *rest], ["d"]),
            node("Conv", ["d", "w"], ["c"], pads=[1] * 4),
        ]
    outputs = [helper.make_tensor_value_info(n, k, s) for n, (k, s) in shapes.items()]
    return model(
        [*first, *head], outputs=outputs, held=held, domains=[domain] if declared and domain else []
    )


@pytest.mark.parametrize(
    ("domain", "declared"), [("", False), ("TRT", False), ("TRT", True), ("trt.plugins", False)]
)
def test_plugins_pass_untouched(domain, declared, tmp_path: Path, images: Path):
    made = with_nms(domain, declared=declared)
    path = save_onnx(made, tmp_path / "m.onnx")
    kept = made.graph.node[-1].SerializeToString()
    assert load_onnx(path).graph.node[-1].SerializeToString() == kept
    done = insert_qdq(made, {"x": 0.02})
    paired = with_nms(domain, declared=declared, pairs=True)
    fixed, _ = repair(paired, reader_of(Target.parse("orin@10.3")))
    for result in (done.model, fixed, convert_to_half(made), strip_qdq(paired)):
        save_onnx(result, tmp_path / "r.onnx")
        assert (
            next(n for n in result.graph.node if n.op_type == "EfficientNMS_TRT").attribute
            == made.graph.node[-1].attribute
        )
    assert count_qdq(done.model) == 2
    assert any(o.kind == "EfficientNMS_TRT" for o in list_onnx_ops(made, "m"))
    full = run_lint(LintSpec(onnx=str(path), target="orin@10.3"))
    assert [(f.rule, f.severity) for f in full.findings] == [("L27", "note")]
    assert full.passed
    rtx = run_lint(LintSpec(onnx=str(path), target="rtx4090", fix=str(tmp_path / "f.onnx")))
    assert [(f.rule, f.severity) for f in rtx.findings] == [("L27", "error")]
    with pytest.raises(
        EngineError,
        match="EfficientNMS_TRT is a TensorRT plugin, and TensorRT for RTX has no library of "
        "plugins",
    ):
        build(BuildSpec(onnx=str(path), target="rtx4090", out=f"{tmp_path}/e.engine"))
    with pytest.raises(
        ExportError,
        match="EfficientNMS_TRT at nms is a plugin of TensorRT, which only an engine runs",
    ):
        evaluate(
            EvaluateSpec(
                onnx=str(path), data=str(images), input_size=(3, 16, 16), mean=(0.0,), std=(1.0,)
            )
        )
