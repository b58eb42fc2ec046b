"""The ranges of a Q/DQ file as a calibration cache of its float file holds them."""

from __future__ import annotations

import msgspec
import onnx

from trtq.errors import ExportError
from trtq.export.lint_view import View
from trtq.onnx_node import names_of

PLACES = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Relu",
    "Clip",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
)


class CacheRanges(msgspec.Struct, frozen=True, kw_only=True):
    """Scales for a calibration cache.

    Attributes:
        scales: by tensor of the float file.
        missing: float tensors without a scale, and why.
        unused: tensors with a scale that the float file does not have.
        notes: what a user must know.
    """

    scales: dict[str, float]
    missing: dict[str, str]
    unused: list[str]
    notes: list[str]


def ranges_for(quantized: onnx.ModelProto, plain: onnx.ModelProto, name: str) -> CacheRanges:
    """Return the scales of a Q/DQ file by the tensors of its float file.

    Args:
        quantized: with pairs.
        plain: the float file.
        name: of the Q/DQ file, for errors.

    Raises:
        ExportError: there are no pairs, or a scale is not one that a cache can hold.
    """
    view = View(quantized)
    known = names_of(plain.graph.input)
    known |= {n for node in plain.graph.node for n in node.output}
    scales: dict[str, float] = {}
    unused, notes = list[str](), list[str]()
    for node in quantized.graph.node:
        if node.op_type != "QuantizeLinear" or view.is_constant(node.input[0]):
            continue
        tensor, scale = node.input[0], _scale(view, node)
        if tensor not in known:
            unused.append(tensor)
            continue
        if scales.get(tensor, scale) != scale:
            notes.append(
                f"{tensor} has two scales, {scales[tensor]:.6g} and {scale:.6g}; a cache holds "
                "one: the larger"
            )
        scales[tensor] = max(scale, scales.get(tensor, 0.0))
    if not scales:
        raise ExportError(
            f"There are no ranges in {name}",
            "no tensor of the float file has a pair",
            "Give the Q/DQ file of trtq quantize",
        )
    missing = {
        node.output[0]: f"the output of {node.name or node.op_type}: no pair reads it"
        for node in plain.graph.node
        if node.op_type in PLACES and node.output[0] not in scales
    }
    return CacheRanges(scales=scales, missing=missing, unused=unused, notes=notes)


def _scale(view: View, node: onnx.NodeProto) -> float:
    """Return the scale of a QuantizeLinear node.

    Raises:
        ExportError: it is one that a cache cannot hold.
    """
    scale = view.value(node.input[1])
    zero = view.value(node.input[2]) if len(node.input) > 2 else None
    single = scale is not None and scale.size == 1
    if not single or zero is None or str(zero.dtype) != "int8" or zero.any() or scale is None:
        raise ExportError(
            f"Cannot write the range of {node.input[0]} into a cache",
            "a cache holds ranges of INT8 codes around 0, one for a tensor",
            "Give a file of symmetric INT8: trtq lint names what is not",
        )
    return float(scale.reshape(-1)[0])
