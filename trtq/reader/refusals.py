"""ONNX files that cannot be read, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import TensorProto

from trtq.errors import ModelError
from trtq.export.onnx_file import opset_of
from trtq.onnx_node import label_of
from trtq.onnx_walk import all_nodes
from trtq.reader.values import TORCH_TYPES

OLDEST = 7
INTEGER_OPS = (
    "QLinearConv QLinearMatMul ConvInteger MatMulInteger QLinearAdd QLinearMul QLinearConcat "
    "QLinearSigmoid QLinearLeakyRelu QLinearAveragePool QLinearGlobalAveragePool QLinearSoftmax "
    "QGemm QAttention DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulIntegerToFloat"
)
OWN = ("", "ai.onnx")
REVERSED = "ReverseSequence"  # of one tensor


def require_readable(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model that has no float form here.

    Args:
        model: sound.
        name: of the file, for messages.

    Raises:
        ModelError: it is of an unknown opset, quantized to integer operators, or has inputs,
            outputs or nodes that nothing can be made of.
    """
    why = next(_refusals(model), None)
    if why is not None:
        raise ModelError(f"Cannot read the ONNX file {name}", *why)


def _refusals(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if opset > newest:
        yield (
            f"it is of opset {opset}, and the onnx package here knows up to {newest}",
            "Upgrade onnx, or export the model with an older opset",
        )
    if opset < OLDEST:
        yield (
            f"it is of opset {opset}, expected {OLDEST} or later",
            "Convert it: onnx.version_converter.convert_version(model, 13)",
        )
    for node in all_nodes(model):
        yield from _node_refusals(node, opset)
    for node in model.graph.node:
        if node.domain in OWN and "Sequence" in node.op_type and node.op_type != REVERSED:
            yield (
                f"{label_of(node)} ({node.op_type}) works on a sequence of tensors",
                "Simplify the file first (onnxslim), or export it with the exporter of torch 2.5 "
                "or later (dynamo=True)",
            )
    yield from _value_refusals(model.graph)


def _node_refusals(node: onnx.NodeProto, opset: int) -> Iterator[tuple[str, str]]:
    where = f"{label_of(node)} ({node.op_type})"
    if node.op_type == "DynamicQuantizeLinear" or node.op_type.startswith("DynamicQuantize"):
        yield (
            f"it is dynamically quantized: {where} chooses its range in each run",
            "Give the float file that it was made from",
        )
    if node.op_type in INTEGER_OPS.split():
        yield (
            f"it is quantized to integer operators (QOperator format): {where}",
            "Give the float file, or quantize with pairs (QuantFormat.QDQ)",
        )
    if node.domain in OWN and not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        first = _first_opset(node.op_type)
        if first:
            yield (
                f"{where} needs opset {first}, and the file is of opset {opset}",
                f"Export it with opset {first}",
            )


def _first_opset(op_type: str) -> int:
    """Return the first opset that has an operator, 0 for none."""
    versions = [
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op_type and s.domain in OWN
    ]
    return min(versions, default=0)


def _value_refusals(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    for what, values in (("input", graph.input), ("output", graph.output)):
        counts = Counter(v.name for v in values)
        twice = next((n for n, k in counts.items() if k > 1), None)
        if twice is not None:
            yield f"it has two {what}s of the name {twice!r}", "Export it again"
        for value in values:
            if not value.type.HasField("tensor_type"):
                kind = value.type.WhichOneof("value") or "nothing"
                yield (
                    f"its {what} {value.name!r} is of {kind}, not a tensor",
                    "Export it with tensors",
                )
            elif value.type.tensor_type.elem_type not in TORCH_TYPES:
                code = value.type.tensor_type.elem_type
                kind = TensorProto.DataType.Name(code)
                known = ", ".join(TensorProto.DataType.Name(t).lower() for t in TORCH_TYPES)
                yield f"its {what} {value.name!r} is of the type {kind}", f"Export it as {known}"
