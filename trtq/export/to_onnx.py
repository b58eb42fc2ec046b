"""From a captured graph, simulated or float, to ONNX."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import onnx
from torch import fx

from trtq.errors import ExportError
from trtq.export.borrowed import Borrower
from trtq.export.lowering import lower, lower_into
from trtq.export.sound import require_one_file
from trtq.graph.device import CPU, on_device
from trtq.graph.naming import node_name
from trtq.graph.onnx_origin import onnx_node_of, origin_of
from trtq.onnx_node import names_of
from trtq.onnx_walk import skeleton
from trtq.specs import OPSET

logger = logging.getLogger(__name__)


def export_onnx(
    simulated: fx.GraphModule,
    *,
    opset: int = OPSET,
    int4: bool = False,
    note: Callable[[str], None] = logger.info,
) -> onnx.ModelProto:
    """Return the ONNX model of a captured graph, with Q/DQ pairs where it has fake-quantize calls.

    Weights remain float in front of their Q/DQ pair, per-channel pairs say their axis, biases are
    float, inputs and outputs have the names of the graph's signature, node names start with the
    layer they come from. Single ops that trtq does not write itself are written by torch's
    exporter.

    Args:
        simulated: on any device; not changed.
        opset: 13 to 21.
        int4: store weights of 4 bits as INT4; needs opset 21.
        note: receives one line that names what torch's exporter wrote.

    Raises:
        ExportError: torch cannot write an op of the model as ONNX either, or this opset cannot (it
            names the op and the cause); or the model is larger than an ONNX file can be.
    """
    simulated = on_device(simulated, CPU)
    refused: dict[str, str] = {}
    while True:
        borrower = Borrower(simulated, lower_into)
        model = lower(simulated, opset=opset, int4=int4, borrower=borrower, refused=refused)
        require_one_file(model, "the model as ONNX")
        fault = _type_fault(model)
        if fault is None:
            break
        name = next((n for n in _names(simulated) if fault[0].startswith(f"{n}/")), None)
        if name is None or name in refused:
            raise ExportError(
                "Cannot write the model as ONNX",
                f"{fault[0]}: {fault[1]}",
                "Write that part with other ops",
            )
        refused[name] = fault[1]
    _restore_(model, simulated)
    if borrower.borrowed:
        note(
            "written by torch.onnx, since trtq does not write them: "
            f"{'; '.join(dict.fromkeys(borrower.borrowed))}"
        )
    return model


def _restore_(model: onnx.ModelProto, graph: fx.GraphModule) -> None:
    """Give nodes the names that they have in the file that a graph was read from.

    The last node of the file's type has the name where a call is written as several. Metadata that
    other tools wrote into that file is kept, too.
    """
    for key, value in origin_of(graph).metadata.items():
        model.metadata_props.add(key=key, value=value)
    names: dict[str, str] = {}
    for call in graph.graph.nodes:
        origin = onnx_node_of(call)
        if origin is not None:
            names[f"{node_name(call)}/{origin[1]}"] = origin[0]
    taken = names_of(model.graph.node)
    for node in reversed(model.graph.node):
        name = names.get(re.sub(r"_\d+$", "", node.name), names.get(node.name))
        if name is not None and name not in taken:
            taken.add(name)
            node.name = name


def _names(graph: fx.GraphModule) -> list[str]:
    """Return the names of all calls, the longest first: one may begin like another."""
    return sorted(
        (node_name(n) for n in graph.graph.nodes if n.op == "call_function"), key=len, reverse=True
    )


def _type_fault(model: onnx.ModelProto) -> tuple[str, str] | None:
    """Return the first node with an operand of a type that its op does not take, and the type.

    Returns None where there is none.
    """
    types: dict[str, int] = {}
    inferred = onnx.shape_inference.infer_shapes(skeleton(model))
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    types |= {i.name: i.data_type for i in model.graph.initializer}
    version = model.opset_import[0].version
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        for i, name in enumerate(node.input):
            given, parameter = types.get(name, 0), schema.inputs[min(i, len(schema.inputs) - 1)]
            words = f"tensor({onnx.TensorProto.DataType.Name(given).lower()})" if given else ""
            if words and not words.startswith("tensor(float8") and words not in parameter.types:
                return node.name, f"{node.op_type} of opset {version} does not take {words}"
    return None
