"""Rules for what a release's parser reads: ops, domains, tensor types, attributes, shapes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from trtq.export.lint_ops import BYTES, OWN, QUANTIZED, SIZES, is_plugin, span_of, span_of_type
from trtq.export.lint_view import Finding, View, named
from trtq.export.onnx_file import opset_of
from trtq.onnx_node import names_of
from trtq.onnx_walk import cast_type, is_fixed
from trtq.platform.releases import Span, releases, shown

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
CODES_ALONE = "which TensorRT has between QuantizeLinear and DequantizeLinear alone"


def opset(view: View) -> Iterator[Finding]:
    """L01: the file's opset against the newest that the parser reads."""
    if not view.main:
        return
    file_opset, newest = opset_of(view.model), view.reader.runtime.opset
    if file_opset > newest:
        why = f"opset {file_opset}; {view.reader.name} reads up to {newest}"
        mend = f"Export it with opset {newest}"
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
    op, span = node.op_type, span_of(node.op_type)
    if op in OPERATORS or op.startswith(("QLinear", "QGemm", "QAttention")):
        return f"no TensorRT reads {op}", "Export in Q/DQ format, not with quantized operators"
    if node.domain not in OWN and span is None:
        mend = "Export it decomposed into ONNX's own ops"
        return f"no TensorRT reads {op} of the domain {node.domain}", mend
    return _unread_by_rtx(op, span, view) if view.reader.runtime.rtx else _unread(op, span, view)


def _unread_by_rtx(op: str, span: Span | None, view: View) -> tuple[str, str]:
    known = releases()
    read = op in known.rtx_ops if span is None else view.reader.runtime.within(span)
    if op in known.rtx_missing or not read:
        return f"TensorRT for RTX does not read {op}", "Export that op decomposed"
    return "", ""


def _unread(op: str, span: Span | None, view: View) -> tuple[str, str]:
    if span is None:
        mend = "Export that op decomposed, or leave that part out of the engine"
        return f"no TensorRT reads {op}", mend
    if not view.reader.runtime.within(span):
        first = shown(span.first)
        why = f"{op} exists from TensorRT {first} on, this is for {view.reader.name}"
        return why, "Export that op decomposed"
    return "", ""


def plugins(view: View) -> Iterator[Finding]:
    """L27: nodes that TensorRT computes with a plugin."""
    functions = {(f.domain, f.name) for f in view.model.functions}
    for node in view.nodes():
        if (node.domain, node.op_type) in functions or not is_plugin(node.op_type, node.domain):
            continue
        if view.reader.runtime.rtx:
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
        own = node.op_type in releases().plugins
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
    form = "local functions"
    if view.main and view.model.functions and not view.reader.runtime.parses(form):
        names = ", ".join(sorted(names_of(view.model.functions))[:3])
        why = f"{form} ({names}), which TensorRT reads {releases().forms[form].words}"
        mend = "trtq build and --fix write their bodies into the graph"
        yield Finding(rule="L28", severity="note", where="the file", why=why, mend=mend)


def types(view: View) -> Iterator[Finding]:
    """L23: tensors of a type that the release does not have, or has only in some places."""
    if view.main:
        yield from _interface(view)
    for node in view.nodes():
        yield from _results(view, node)
    for name, tensor in view.constants.items():
        why = _no_type(tensor.data_type, view)
        if tensor.data_type in (TensorProto.DOUBLE, TensorProto.UINT8):
            continue  # converted when it is read; what computes with it is found at that node
        if why:
            yield _type_finding(
                name, f"a constant of type {_name(tensor.data_type)}, {why}", tensor.data_type
            )


def _interface(view: View) -> Iterator[Finding]:
    for what, values in (("input", view.graph.input), ("output", view.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                yield _no_tensor(value.name, what, str(kind))
                continue
            code = value.type.tensor_type.elem_type
            why = _no_interface_type(code, view)
            if why:
                yield _type_finding(value.name, f"an {what} of type {_name(code)}, {why}", code)
            if what == "input" and code == TensorProto.UINT8:
                yield from _bytes(view, value.name)


def _no_tensor(name: str, what: str, kind: str) -> Finding:
    kind = kind.removesuffix("_type").replace("_", " ")
    return Finding(
        rule="L23",
        severity="error",
        where=name,
        why=f"an {what} that is a {kind}, not a tensor: no TensorRT has that",
        mend="Export a model of tensors alone",
    )


def _no_interface_type(code: int, view: View) -> str:
    """Return why an input or output cannot have a type, "" where it can."""
    if code == TensorProto.DOUBLE:
        return "which TensorRT turns into FLOAT: the engine's interface would be another"
    return CODES_ALONE if code in QUANTIZED else _no_type(code, view)


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
    outputs = names_of(view.graph.output) if view.main else set()
    for name in node.output:
        cast = node.op_type == "Cast"
        code = cast_type(node) if cast else view.types.get(name, TensorProto.UNDEFINED)
        if name in outputs or not code or view.is_constant(name):
            continue
        why = _no_result_type(code, view, node, name)
        if why:
            yield _type_finding(name, f"{named(node)} makes {_name(code)}, {why}", code)


def _no_result_type(code: int, view: View, node: onnx.NodeProto, name: str) -> str:
    """Return why a node cannot make a tensor of a type, "" where it can."""
    if code == TensorProto.DOUBLE and not _of_shapes(view, name):
        return "in which TensorRT does not compute: it would take FLOAT instead"
    if code == TensorProto.UINT8 and node.op_type != "QuantizeLinear":
        return "which TensorRT has as input and output alone"
    if code in QUANTIZED and node.op_type == "Cast":
        return CODES_ALONE
    return _no_type(code, view)


def _of_shapes(view: View, name: str) -> bool:
    """Whether a tensor is computed from shapes and constants alone.

    The builder computes such a tensor, not the GPU.
    """
    return all(node is not None for _, node in view.scope.origins(name, SIZES))


def _no_type(code: int, view: View) -> str:
    if code in (TensorProto.UNDEFINED, TensorProto.DOUBLE):
        return ""
    span = span_of_type(code)
    if span is None:
        return "which no TensorRT has"
    return "" if view.reader.runtime.within(span) else f"which TensorRT has {span.words}"


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


def shapes(view: View) -> Iterator[Finding]:
    """L17: axes without a size other than the batch, and inputs without a shape.

    An open axis builds with a profile; an input without a shape does not.
    """
    if not view.main:
        return
    initializers = names_of(view.graph.initializer)
    for value in view.graph.input:
        kind = value.type.tensor_type
        if value.name in initializers or value.type.WhichOneof("value") != "tensor_type":
            continue
        if not kind.HasField("shape"):
            mend = "Export the model with the shape of its inputs; an axis may be open"
            yield Finding(
                rule="L17", severity="error", where=value.name, why="it has no shape", mend=mend
            )
        for i, dim in enumerate(kind.shape.dim):
            if i and not is_fixed(dim):
                why = f"axis {i} has no size: a build needs a profile for it"
                mend = f"Give its sizes: trtq build --shapes {value.name}=MIN:OPT:MAX"
                yield Finding(rule="L17", severity="note", where=value.name, why=why, mend=mend)
