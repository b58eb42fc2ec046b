"""torch's own ONNX exporter, for graphs with an op that :mod:`trtq.export.ops` does not have."""

from __future__ import annotations

import ast
import contextlib
import io
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import fx

from trtq.errors import ExportError
from trtq.export.onnx_file import QDQ
from trtq.graph.capture import quiet
from trtq.quant.fake_quantize import FAKE_QUANTIZE

SCOPES = "pkg.torch.onnx.name_scopes"


def _translate_fake_quantize(x: Any, scale: Any, zero_point: Any, axis: int | None, qmin: int, qmax: int, name: str, kind: str) -> Any:
    """Write the op as QuantizeLinear and DequantizeLinear: explicit INT8 zero point, ``axis`` only per channel."""
    from onnxscript import opset20

    op: Any = opset20  # its annotations are for scripts, not for calls while tracing
    if zero_point is not None or (qmin, qmax) != (-128, 127):
        raise ExportError(
            f"Cannot write the format of {name} as Q/DQ through torch's exporter",
            f"{kind}, codes {qmin}..{qmax}",
            "Use 8 bits and no other number format for this model",
        )
    zeros = op.Constant(value=ir.tensor(np.zeros([int(d) for d in scale.shape], dtype=np.int8)))
    attributes = {} if axis is None else {"axis": axis}
    codes = op.QuantizeLinear(x, scale, zeros, **attributes)
    values = op.DequantizeLinear(codes, scale, zeros, **attributes)
    for value in (codes, values):
        value.producer().metadata_props["quantizer"] = name
    return values


def export_with_torch(simulated: fx.GraphModule, example: torch.Tensor, *, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    """Return what :func:`trtq.export.to_onnx.export_onnx` promises, by way of ``torch.onnx.export``: slower, and more ops.

    Raises:
        ExportError: torch cannot write an op of the model as ONNX; names the op and the module.
    """
    translation: dict[Any, Any] = {FAKE_QUANTIZE: _translate_fake_quantize}
    try:
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic_batch else None
        # The exporter prints progress and warnings that a user of trtq can do nothing about.
        with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            program = torch.export.export(simulated, (example,), dynamic_shapes=shapes, strict=False)
            result = torch.onnx.export(
                program, dynamo=True, custom_translation_table=translation, input_names=["input"], output_names=["output"],
                opset_version=opset, verbose=False,
            )  # fmt: skip
    except Exception as exc:
        cause: BaseException | None = exc
        while cause is not None:  # our own words, from inside the exporter
            if isinstance(cause, ExportError):
                raise cause from exc
            cause = cause.__cause__
        lines = [ln for ln in str(exc).splitlines() if ln.strip()]
        raise ExportError(
            "Cannot write the model as ONNX",
            lines[0] if lines else type(exc).__name__,
            "Keep that part out of the model, or write it with other ops",
        ) from exc
    assert result is not None
    model = result.model
    _drop_default_attributes_(model)
    _transpose_weights_once_(model)
    _name_nodes_(model)
    if dynamic_batch:
        _name_batch_(model)
    return ir.to_proto(model)


def _name_batch_(model: ir.Model) -> None:
    """Call the dynamic axis ``batch`` wherever a shape names it."""
    old = next((d.value for d in model.graph.inputs[0].shape or () if isinstance(d, ir.SymbolicDim)), None)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if isinstance(d, ir.SymbolicDim) and d.value == old else d for d in value.shape])


def _drop_default_attributes_(model: ir.Model) -> None:
    """Leave ``axis`` on per-channel pairs only: TensorRT 8.0 refuses one beside a scalar scale."""
    for node in model.graph:
        if node.op_type in QDQ and node.inputs[1] is not None and node.inputs[1].shape is not None:
            per_channel = len(node.inputs[1].shape) == 1
            for name in list(node.attributes):
                if name != "axis" or not per_channel:
                    node.attributes.pop(name)


def _transpose_weights_once_(model: ir.Model) -> None:
    """Turn weight -> Q -> DQ -> Transpose -> MatMul into transposed weight -> Q -> DQ -> MatMul with the axis moved along.

    TensorRT then sees the form it documents: per-channel axis 1 of [K, N].
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        dq = node.inputs[0].producer() if node.inputs[0] is not None else None
        q = dq.inputs[0].producer() if dq is not None and dq.op_type == "DequantizeLinear" and dq.inputs[0] is not None else None
        weight = q.inputs[0] if q is not None else None
        if dq is None or q is None or weight is None or weight.const_value is None or len(weight.uses()) != 1:
            continue
        if len(dq.outputs[0].uses()) != 1:
            continue
        order = [int(v) for v in node.attributes["perm"].as_ints()]
        array = np.ascontiguousarray(weight.const_value.numpy().transpose(order))
        weight.const_value = ir.tensor(array, name=weight.name)
        weight.shape = ir.Shape(array.shape)
        for pair in (q, dq):
            if "axis" in pair.attributes:
                axis = pair.attributes["axis"].as_int() % len(order)
                pair.attributes["axis"] = ir.AttrInt64("axis", order.index(axis))
            pair.outputs[0].shape = ir.Shape(array.shape)
        ir.convenience.replace_all_uses_with(node.outputs[0], dq.outputs[0])
        graph.remove(node, safe=True)


def _name_nodes_(model: ir.Model) -> None:
    """Name each node after its module; Q/DQ pairs after their quantizer; drop what would leak paths of this machine."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        scopes: list[str] = []
        with contextlib.suppress(ValueError, SyntaxError):
            scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        quantizer = node.metadata_props.get("quantizer", "")
        base = quantizer or module
        name = f"{base}/{node.op_type}" if base else node.op_type
        k = taken[name]
        taken[name] += 1
        node.name = f"{name}_{k}" if k else name
        node.metadata_props.clear()
        if module:
            node.metadata_props["module"] = module
        if quantizer:
            node.metadata_props["quantizer"] = quantizer
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
