"""Rule L24: forms of an op that the parser refuses or computes differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from trtq.export.lint_ops import BUILD_TIME, OWN, SIZES
from trtq.export.lint_view import Finding, View, named
from trtq.export.onnx_file import opset_of


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
            view,
            node,
            {
                k: v.decode(errors="replace") if isinstance(v, bytes) else v
                for k, v in values.items()
            },
        )
        if why:
            yield Finding(rule="L24", severity="error", where=named(node), why=why, mend=mend)


Form = tuple[
    str, str
]  # what is wrong with the form of a node, and what to do; "" twice where nothing is
FINE: Form = ("", "")


@dataclass(frozen=True, slots=True)
class _Place:
    """A node in its place.

    Attributes:
        view: the graph that it is in.
        node: of ONNX's own domain.
        a: its attributes as Python values, texts decoded, graphs left out.
    """

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
    runtime = at.view.reader.runtime
    # A plugin of TensorRT's own library adds up.
    plugin = runtime.parses("scatter that reduces") and not runtime.rtx
    if reduction == "none" or (plugin and at.node.op_type == "ScatterElements"):
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
    weight = at.view.value(at.node.input[1]) if len(at.node.input) > 1 else None
    if weight is not None and weight.ndim > 5:
        return (
            f"a convolution over {weight.ndim - 2} spatial axes; TensorRT has 1 to 3",
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
    runtime, linear = at.view.reader.runtime, at.a.get("mode", "linear") in ("linear", "bilinear")
    if runtime.parses("linear sampling as nearest") and linear and opset_of(at.view.model) >= 20:
        why = f"GridSample of opset 20: {runtime.title} samples linear as nearest"
        return why, "Export it with opset 16 to 19, where mode is called bilinear"
    return FINE


def _resize(at: _Place) -> Form:
    mode = at.a.get("coordinate_transformation_mode", "half_pixel")
    if at.a.get("antialias", 0):
        return (
            "an antialiased Resize, which no TensorRT reads",
            "Export it with antialias=False, or resize before the model",
        )
    if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"a Resize with {mode}, which no TensorRT reads", "Use half_pixel or align_corners"
    if at.a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "a Resize that keeps the aspect ratio, which no TensorRT reads", "Give both sizes"
    axes = _ints(at.a.get("axes"))
    if axes != list(range(len(axes))) and _has_scales(at):
        return (
            f"a Resize whose scales are for axes {axes} alone, which no TensorRT reads",
            "Give a scale for every axis",
        )
    return FINE


def _has_scales(at: _Place) -> bool:
    if len(at.node.input) < 3 or not at.node.input[2]:
        return False
    scales = at.view.value(at.node.input[2])
    return scales is not None and scales.size > 0


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
