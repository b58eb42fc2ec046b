"""From a simulated graph to two ONNX files: with Q/DQ, and the same without."""

from __future__ import annotations

import ast
import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import fx

from trtq.artifact import write_atomic
from trtq.errors import ExportError
from trtq.graph.capture import export_program, quiet
from trtq.quant.fake_quantize import FAKE_QUANTIZE

OPSET = 20  # what torch's exporter writes natively; ONNX Runtime and TensorRT 10, 11 and RTX read it
METADATA_PREFIX = "trtq."
SCOPES = "pkg.torch.onnx.name_scopes"


def _translate_fake_quantize(x: Any, scale: Any, zero_point: Any, axis: int | None, qmin: int, qmax: int, name: str) -> Any:
    """Write the op as QuantizeLinear and DequantizeLinear: explicit INT8 zero point, ``axis`` only per channel."""
    from onnxscript import opset20

    op: Any = opset20  # its annotations are for scripts, not for calls while tracing
    if zero_point is not None or (qmin, qmax) != (-128, 127):
        raise ExportError(
            "Cannot write this format as Q/DQ", f"codes {qmin}..{qmax}, zero point {zero_point}", "Only symmetric INT8 has a kernel"
        )
    zeros = op.Constant(value=ir.tensor(np.zeros([int(d) for d in scale.shape], dtype=np.int8)))
    attributes = {} if axis is None else {"axis": axis}
    codes = op.QuantizeLinear(x, scale, zeros, **attributes)
    values = op.DequantizeLinear(codes, scale, zeros, **attributes)
    for value in (codes, values):
        value.producer().metadata_props["quantizer"] = name
    return values


def export_qdq(simulated: fx.GraphModule, example: torch.Tensor, *, dynamic_batch: bool) -> ir.Model:
    """Return the ONNX model of a graph with fake-quantize calls.

    Weights stay float in front of their Q/DQ pair, per-channel pairs say their axis, biases are float, inputs and outputs are
    called ``input`` and ``output``, node names start with the module they come from.

    Raises:
        ExportError: torch cannot write an op of the model as ONNX; names the op and the module.
    """
    translation: dict[Any, Any] = {FAKE_QUANTIZE: _translate_fake_quantize}
    try:
        program = export_program(simulated, example, dynamic=dynamic_batch, functional=True)
        # The exporter prints progress and warnings that a user of trtq can do nothing about.
        with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            result = torch.onnx.export(
                program, dynamo=True, custom_translation_table=translation, input_names=["input"], output_names=["output"],
                opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as exc:
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
    return model


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


QDQ = ("QuantizeLinear", "DequantizeLinear")


def strip_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with every Q/DQ pair removed: float weights and tensors stay what they were before quantization.

    Raises:
        ExportError: a QuantizeLinear is not followed by its DequantizeLinear.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    source = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            if node.input[0] not in source:
                raise ExportError(f"Cannot remove the quantization at {node.name}", "its input is not a QuantizeLinear")
            renamed[node.output[0]] = source[node.input[0]]
    kept = [n for n in graph.node if n.op_type not in QDQ]
    outputs = {o.name for o in graph.output}
    for node in kept:
        for i, name in enumerate(node.input):
            original = name
            while original in renamed:
                original = renamed[original]
            node.input[i] = original
    if outputs & set(renamed):
        raise ExportError("Cannot remove the quantization", "an output of the model is dequantized directly")
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for n in kept for name in n.input}
    initializers = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    infos = [v for v in graph.value_info if v.name in used]
    del graph.value_info[:]
    graph.value_info.extend(infos)
    return result


def set_metadata_(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Store JSON values under ``trtq.KEY`` in the model's metadata."""
    for key, value in values.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_PREFIX + key, msgspec.json.encode(value).decode()


def get_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what :func:`set_metadata_` stored, an empty dict for a file of other origin."""
    return {
        p.key.removeprefix(METADATA_PREFIX): msgspec.json.decode(p.value) for p in model.metadata_props if p.key.startswith(METADATA_PREFIX)
    }


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Check ``model`` and write it atomically.

    Raises:
        ExportError: the ONNX checker refuses it.
        ArtifactError: the file cannot be written.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"The ONNX for {path.name} is not valid", str(exc).splitlines()[0]) from exc
    return write_atomic(path, lambda tmp: onnx.save(model, tmp))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in ``path``.

    Raises:
        ExportError: missing or not an ONNX file.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as exc:
        raise ExportError(f"Cannot read {path}", "there is no such file") from exc
    except Exception as exc:  # protobuf's DecodeError is not public; whatever it is, the file is not ONNX
        raise ExportError(f"Cannot read {path}", f"it is not an ONNX file ({type(exc).__name__})") from exc
    if not model.graph.node:
        raise ExportError(f"Cannot use {path}", "it is not an ONNX model, or one without nodes")
    return model


def count_qdq(model: onnx.ModelProto) -> int:
    """Return the number of QuantizeLinear nodes."""
    return sum(n.op_type == "QuantizeLinear" for n in model.graph.node)
