"""Rules for what a release's parser reads: ops, domains, tensor types, attributes, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from trtq.export.lint_ops import (
    BUILD_TIME,
    BYTES,
    CUSTOM,
    FIRST_RELEASE,
    LOCAL_FUNCTIONS,
    NOT_IN_RTX,
    ONLY_IN_RTX,
    OWN,
    PLUGINS,
    QUANTIZED,
    TYPES,
    is_plugin,
)
from trtq.export.lint_view import Finding, Version, View, named
from trtq.export.onnx_file import opset_of
from trtq.onnx_walk import cast_type, is_fixed

# Ops that only quantized networks of other runtimes have.
OPERATORS = (
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "QLinearAdd",
)
SIZES = ("Shape", "Size")  # ops that read no values
FAULTY_SAMPLING = (
    (10, 13),
    (10, 13),
)  # the span of releases that were seen to take linear for nearest


def opset(view: View) -> Iterator[Finding]:
    """L01: the file's opset against the newest that the parser reads."""
    if not view.main:
        return
    found = opset_of(view.model)
    if found > view.reader.opset:
        why = f"opset {found}; {view.reader.name} reads up to {view.reader.opset}"
        mend = f"Export it with opset {view.reader.opset}"
        yield Finding(rule="L01", severity="error", where="the file", why=why, mend=mend)


def ops(view: View) -> Iterator[Finding]:
    """L02: ops and domains that the release does not read."""
    functions = {(f.domain, f.name) for f in view.model.functions}
    for node in view.nodes():
        if (node.domain, node.op_type) in functions or is_plugin(node.op_type, node.domain):
            continue
        why, mend = _refused(node, view)
        if why:
            yield Finding(rule="L02", severity="error", where=named(node), why=why, mend=mend)


def _refused(node: onnx.NodeProto, view: View) -> tuple[str, str]:
    """Return why the parser refuses a node and what to do, "" where it reads it."""
    op, reader = node.op_type, view.reader
    if op in OPERATORS or op.startswith(("QLinear", "QGemm", "QAttention")):
        return f"no TensorRT reads {op}", "Export in Q/DQ format, not with quantized operators"
    if node.domain not in OWN and op not in CUSTOM and op not in FIRST_RELEASE:
        mend = "Export it decomposed into ONNX's own ops"
        return f"no TensorRT reads {op} of the domain {node.domain}", mend
    first = CUSTOM.get(op) or FIRST_RELEASE.get(op)
    if reader.rtx and (op in NOT_IN_RTX or (first is None and op not in ONLY_IN_RTX)):
        return f"TensorRT for RTX does not read {op}", "Export that op decomposed"
    if first is None and not reader.rtx:
        return (
            f"no TensorRT reads {op}",
            "Export that op decomposed, or leave that part out of the engine",
        )
    if first is not None and reader.before(first):
        why = f"{op} exists from TensorRT {_text(first)} on, this is for {reader.name}"
        return why, "Export that op decomposed"
    return "", ""


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def plugins(view: View) -> Iterator[Finding]:
    """L27: nodes that TensorRT computes with a plugin."""
    functions = {(f.domain, f.name) for f in view.model.functions}
    for node in view.nodes():
        if (node.domain, node.op_type) in functions or not is_plugin(node.op_type, node.domain):
            continue
        if view.reader.rtx:
            why = (
                f"{node.op_type} is a TensorRT plugin, and TensorRT for RTX has no library of "
                "plugins"
            )
            mend = (
                "Build with full TensorRT (a target with @, --backend tensorrt or trtexec), or "
                "end the model before it"
            )
            yield Finding(rule="L27", severity="error", where=named(node), why=why, mend=mend)
            continue
        own = node.op_type in PLUGINS
        why = f"{node.op_type} is a plugin" + (
            " of TensorRT's own library" if own else " of a library that is not TensorRT's"
        )
        mend = (
            "Have libnvinfer_plugin beside the engine"
            if own
            else "Load its library wherever the engine is built or run"
        )
        yield Finding(rule="L27", severity="note", where=named(node), why=why, mend=mend)


def functions(view: View) -> Iterator[Finding]:
    """L28: local functions, which parsers before 9.0 do not read."""
    if view.main and view.model.functions and view.reader.before(LOCAL_FUNCTIONS):
        names = ", ".join(sorted({f.name for f in view.model.functions})[:3])
        why = f"local functions ({names}), which TensorRT reads from {_text(LOCAL_FUNCTIONS)} on"
        mend = "trtq build and --fix write their bodies into the graph"
        yield Finding(rule="L28", severity="note", where="the file", why=why, mend=mend)


def types(view: View) -> Iterator[Finding]:
    """L23: tensors of a type that the release does not have, or has only in some places."""
    if view.main:
        yield from _interface(view)
    for node in view.nodes():
        yield from _results(view, node)
    for name, held in view.constants.items():
        why = _no_type(held.data_type, view)
        if held.data_type in (TensorProto.DOUBLE, TensorProto.UINT8):
            continue  # converted when it is read; what computes with it is found at that node
        if why:
            yield _type_finding(
                name, f"a constant of type {_name(held.data_type)}, {why}", held.data_type
            )


def _interface(view: View) -> Iterator[Finding]:
    graph = view.graph
    for value, what in [
        *((i, "input") for i in graph.input),
        *((o, "output") for o in graph.output),
    ]:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            why = (
                f"an {what} that is a {str(kind).removesuffix('_type').replace('_', ' ')}, not "
                "a tensor: no TensorRT has that"
            )
            yield Finding(
                rule="L23",
                severity="error",
                where=value.name,
                why=why,
                mend="Export a model of tensors alone",
            )
            continue
        code = value.type.tensor_type.elem_type
        why = _no_type(code, view)
        if code == TensorProto.DOUBLE:
            why = "which TensorRT turns into FLOAT: the engine's interface would be another"
        elif code in QUANTIZED:
            why = "which TensorRT has between QuantizeLinear and DequantizeLinear alone"
        if code and why:
            yield _type_finding(value.name, f"an {what} of type {_name(code)}, {why}", code)
        if what == "input" and code == TensorProto.UINT8:
            yield from _bytes(view, value.name)


def _bytes(view: View, name: str) -> Iterator[Finding]:
    """A UINT8 input may be cast, and nothing else."""
    for node in view.readers.get(name, []):
        if node.op_type not in BYTES:
            why = f"{node.op_type} reads the UINT8 input {name}, which may only be cast"
            yield Finding(
                rule="L23",
                severity="error",
                where=named(node),
                why=why,
                mend="Cast the input to FLOAT first",
            )


def _results(view: View, node: onnx.NodeProto) -> Iterator[Finding]:
    outputs = {o.name for o in view.graph.output} if view.main else set()
    for name in node.output:
        code = view.types.get(name, TensorProto.UNDEFINED)
        if node.op_type == "Cast":
            code = cast_type(node)
        if name in outputs or not code or view.is_constant(name):
            continue
        why = _no_type(code, view)
        if code == TensorProto.DOUBLE and not _of_shapes(view, name):
            why = "in which TensorRT does not compute: it would take FLOAT instead"
        elif code == TensorProto.UINT8 and node.op_type != "QuantizeLinear":
            why = "which TensorRT has as input and output alone"
        elif code in QUANTIZED and node.op_type == "Cast":
            why = "which TensorRT has between QuantizeLinear and DequantizeLinear alone"
        if why:
            yield _type_finding(name, f"{named(node)} makes {_name(code)}, {why}", code)


def _of_shapes(view: View, name: str) -> bool:
    """Whether a tensor is computed from shapes and constants alone.

    The builder computes such a tensor, not the GPU.
    """
    return all(node is not None for _, node in view.scope.origins(name, SIZES))


def _no_type(code: int, view: View) -> str:
    first = TYPES.get(code)
    if code in (TensorProto.UNDEFINED, TensorProto.DOUBLE):
        return ""
    if first is None:
        return "which no TensorRT has"
    return f"which TensorRT has from {_text(first)} on" if view.reader.before(first) else ""


def _name(code: int) -> str:
    return str(TensorProto.DataType.Name(code))


def _type_finding(where: str, why: str, code: int) -> Finding:
    hints: dict[int, str] = {
        TensorProto.DOUBLE: "Export it in float32: model.float(), and no NumPy float64 in "
        "forward()",
        TensorProto.STRING: "Leave texts out of the model: look the class names up afterwards",
        TensorProto.UINT8: "Cast to FLOAT at the input, and to UINT8 at the output alone",
    }
    mend = hints.get(code, "Export it in FLOAT, FLOAT16, INT32, INT64 or BOOL")
    return Finding(rule="L23", severity="error", where=where, why=why, mend=mend)


def attributes(view: View) -> Iterator[Finding]:
    """L24: forms of an op that the parser refuses or computes differently."""
    for node in view.nodes():
        if node.domain not in OWN:
            continue
        values = {
            a.name: helper.get_attribute_value(a)
            for a in node.attribute
            if not a.HasField("g") and not a.graphs
        }
        why, mend = _form(
            view, node, {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
        )
        if why:
            yield Finding(rule="L24", severity="error", where=named(node), why=why, mend=mend)


Form = tuple[
    str, str
]  # what is wrong with the form of a node, and what to do; "" twice where nothing is
FINE: Form = ("", "")


@dataclass(frozen=True, slots=True)
class _Place:
    """A node, the view it is in, and its attributes."""

    view: View
    node: onnx.NodeProto
    a: dict[str, object]


def _form(view: View, node: onnx.NodeProto, a: dict[str, object]) -> Form:
    for position in BUILD_TIME.get(node.op_type, ()):
        if position < len(node.input) and _of_input_values(view, node.input[position]):
            why = (
                f"its operand {node.input[position]} depends on values of an input, and must be "
                "known when the engine is built"
            )
            return why, "Export it with that operand as a constant"
    if node.op_type in SINGLE and sum(map(bool, node.output)) > 1:
        return (
            f"more than one output of {node.op_type}, which no TensorRT reads",
            "Use its first output alone",
        )
    check = FORMS.get(node.op_type)
    return check(_Place(view, node, a)) if check is not None else FINE


def _of_input_values(view: View, name: str) -> bool:
    """Whether a tensor depends on the values of an input of the model, not on its shape alone."""
    if not name:
        return False
    inputs = (now for now, node in view.scope.origins(name, SIZES) if node is None)
    homes = (view.scope.home(now) for now in inputs)
    return any(home is not None and home.outer is None for home in homes)


def _pool(at: _Place) -> Form:
    if any(d != 1 for d in _ints(at.a.get("dilations"))):
        return "a dilated pool, which no TensorRT reads", "Export it decomposed into slices and Max"
    if at.node.op_type == "LpPool" and at.a.get("p", 2) not in (1, 2):
        return f"a pool of the L{at.a['p']} norm; TensorRT has L1 and L2", "Export it decomposed"
    return FINE


def _scatter(at: _Place) -> Form:
    reduction = at.a.get("reduction", "none")
    plugin = (
        at.node.op_type == "ScatterElements"
        and not at.view.reader.rtx
        and not at.view.reader.before((10, 0))
    )
    if reduction == "none" or plugin:  # from 10.0 on a plugin of TensorRT's own library adds up
        return FINE
    return (
        f"{at.node.op_type} with reduction {reduction}, which {at.view.reader.name} does not read",
        "Gather, add, then scatter",
    )


def _constant(at: _Place) -> Form:
    if {"sparse_value", "value_string", "value_strings"} & set(at.a):
        return (
            "a constant of text or a sparse one, which no TensorRT reads",
            "Write it as a dense tensor of numbers",
        )
    return FINE


def _convolution(at: _Place) -> Form:
    held = at.view.value(at.node.input[1]) if len(at.node.input) > 1 else None
    if held is not None and held.ndim > 5:
        return (
            f"a convolution over {held.ndim - 2} spatial axes; TensorRT has 1 to 3",
            "Fold the others into the batch",
        )
    return FINE


def _batch_norm(at: _Place) -> Form:
    if at.a.get("training_mode", 0):
        return (
            "a BatchNormalization in training mode, which no TensorRT reads",
            "Export the model in eval mode: model.eval()",
        )
    return FINE


def _attention(at: _Place) -> Form:
    set_ = [n for n in ("softcap", "softmax_precision", "qk_matmul_output_mode") if at.a.get(n)]
    past = [n for n in at.node.input[4:] if n]
    if set_ or past:
        what = ", ".join(set_) if set_ else "past keys and values"
        return (
            f"an Attention with {what}, which no TensorRT reads",
            "Export it decomposed into MatMul and Softmax",
        )
    return FINE


def _tensor_scatter(at: _Place) -> Form:
    if at.a.get("mode", "linear") != "linear":
        return (
            f"a TensorScatter in {at.a['mode']} mode; TensorRT has linear",
            "Export it decomposed",
        )
    return FINE


def _sampling(at: _Place) -> Form:
    first, last = FAULTY_SAMPLING
    version = at.view.reader.version
    faulty = version is not None and first <= version <= last and not at.view.reader.rtx
    if (
        faulty
        and opset_of(at.view.model) >= 20
        and at.a.get("mode", "linear") in ("linear", "bilinear")
    ):
        why = (
            f"GridSample of opset 20: TensorRT {_text(version)} samples linear as nearest"
            if version
            else ""
        )
        return why, "Export it with opset 16 to 19, where mode is called bilinear"
    return FINE


def _resize(at: _Place) -> Form:
    if at.a.get("antialias", 0):
        return (
            "an antialiased Resize, which no TensorRT reads",
            "Export it with antialias=False, or resize before the model",
        )
    mode = at.a.get("coordinate_transformation_mode", "half_pixel")
    if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"a Resize with {mode}, which no TensorRT reads", "Use half_pixel or align_corners"
    if at.a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "a Resize that keeps the aspect ratio, which no TensorRT reads", "Give both sizes"
    axes, scales = (
        _ints(at.a.get("axes")),
        at.view.value(at.node.input[2]) if len(at.node.input) > 2 and at.node.input[2] else None,
    )
    if scales is not None and scales.size and axes and axes != list(range(len(axes))):
        return (
            f"a Resize whose scales are for axes {axes} alone, which no TensorRT reads",
            "Give a scale for every axis",
        )
    return FINE


Check = Callable[[_Place], Form]
SINGLE = ("MaxPool", "LayerNormalization", "BatchNormalization", "Attention", "RMSNormalization")
FORMS: dict[str, Check] = {
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "Constant": _constant,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "BatchNormalization": _batch_norm,
    "Attention": _attention,
    "TensorScatter": _tensor_scatter,
    "GridSample": _sampling,
}


def _ints(value: object) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else []


def shapes(view: View) -> Iterator[Finding]:
    """L17: axes without a size other than the batch, and inputs without a shape."""
    if not view.main:
        return
    held = {i.name for i in view.graph.initializer}
    for value in view.graph.input:
        kind = value.type.tensor_type
        if value.name in held or value.type.WhichOneof("value") != "tensor_type":
            continue
        if not kind.HasField("shape"):
            mend = "Export it with a fixed size; only the batch may be open"
            yield Finding(
                rule="L17", severity="error", where=value.name, why="it has no shape", mend=mend
            )
        for i, dim in enumerate(kind.shape.dim):
            if i and not is_fixed(dim):
                why = f"axis {i} has no size: a build needs a profile for it"
                mend = "Export it with a fixed size; only the batch may be open"
                yield Finding(rule="L17", severity="error", where=value.name, why=why, mend=mend)
