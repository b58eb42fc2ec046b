"""Conversion of a float32 graph to a strongly typed FP16 graph.

Nodes that are safe in FP16 become FP16. The rest, inputs, outputs and Q/DQ remain in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq import ops
from trtq.errors import ExportError
from trtq.export.onnx_file import opset_of
from trtq.onnx_constants import constant_of
from trtq.onnx_node import names_of
from trtq.onnx_walk import MOVES, QDQ, element_types, has_branches

HALF_MAX = 65504.0
HALF = "tensor(float16)"
PRODUCTS = ops.onnx_types("linear", "matmul")


def convert_to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return ``model`` with FP16 weights and computation.

    Inputs and outputs remain float32. Scales keep their calibrated values to the last bit: a Q/DQ
    pair is FP16 where FP16 has its scale (``Encodings.round_scales_to_fp16_`` ensures that), so
    that INT8 kernels output FP16, and float32 between two casts elsewhere. The codes of weights
    are always those of float32. A file that has FP16 types is returned as it is.

    Args:
        model: float32, with or without Q/DQ pairs; not changed.
        keep: names of the nodes that compute in float32 (``fp16_ranges.find_float_nodes``).

    Raises:
        ExportError: a weight of another node does not fit FP16 (it is named), or the graph has
            branches.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not has_half(model):
        _Retyping(result, keep).run()
    return result


def has_half(model: onnx.ModelProto) -> bool:
    """Whether a file has FP16 types and thus already states what computes in which type.

    Stored tensors of the model's own graph are looked at, not Constant nodes or branches.
    """
    return any(i.data_type == TensorProto.FLOAT16 for i in model.graph.initializer)


def has_in_half(scale: np.ndarray) -> bool:
    """Whether FP16 has each of these scales exactly, and 128 times the scale in its range.

    The largest code, 128, then stands for a number that FP16 has: 0.5 passes, 0.1 (rounded in FP16)
    and 1024 (times 128 above 65504) do not.

    Args:
        scale: float32, any shape.
    """
    return bool(
        scale.max(initial=0.0) * 128 <= HALF_MAX
        and (scale.astype(np.float16).astype(np.float32) == scale).all()
    )


def operand_types(node: onnx.NodeProto, opset: int) -> tuple[list[bool], list[bool]]:
    """Return, for each operand and each result of a node, whether ONNX allows FP16 for it.

    Args:
        node: of any domain.
        opset: of its domain.

    Returns:
        One bool for each of ``node.input`` and one for each of ``node.output``. An unknown op
        allows FP16 for none.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return [False] * len(node.input), [False] * len(node.output)
    return _allowed(schema.inputs, len(node.input)), _allowed(schema.outputs, len(node.output))


def _allowed(formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[bool]:
    return [
        HALF in formal[min(i, len(formal) - 1)].types for i in range(count)
    ]  # the last may stand for any number


class _Retyping:
    """Rewrites a model so that each node reads the type it computes in."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str]) -> None:
        self.model, self.graph, self.keep, self.opset = (
            model,
            model.graph,
            set(keep),
            opset_of(model),
        )
        for node in self.graph.node:
            if has_branches(node):
                raise ExportError(
                    f"Cannot write FP16 types into {node.name or node.op_type}",
                    "it has branches of its own",
                    "Build with --precision fp32",
                )
        _inline_constants(self.graph)
        self.weights = {i.name: i for i in self.graph.initializer}
        self.types = elem_types(model)  # as they were: float32 where a choice is to be made
        self.half = set[str]()  # computed tensors that are FP16 now
        self.renamed = dict[str, str]()  # outputs of the graph: their FP16 tensors
        self.cast = dict[tuple[str, int], str]()
        self.nodes = list[onnx.NodeProto]()
        self.taken = {n for node in self.graph.node for n in (*node.input, *node.output)} | set(
            self.weights
        )
        self.kept_reads = {
            n for node in self.graph.node if node.name in self.keep for n in node.input
        }
        self.float_tensors = _float_products(self.graph, self.weights)

    def run(self) -> None:
        """Rewrite the nodes, then the inputs and outputs."""
        outputs = names_of(self.graph.output)
        for node in self.graph.node:
            in_float = (
                node.name in self.keep
                or node.output[0] in self.float_tensors
                or self._is_opaque(node)
                or self._is_float_pair(node)
            )
            reads, gives = operand_types(node, self.opset)
            self._retype_inputs(node, [half and not in_float for half in reads])
            if not in_float:
                _attributes_to_half(node)
                self._retype_outputs(node, gives, outputs)
            self.nodes.append(node)
        for name, half in self.renamed.items():
            cast = helper.make_node(
                "Cast", [half], [name], name=f"{name}/Cast", to=TensorProto.FLOAT
            )
            self.nodes.append(cast)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        read = {n for node in self.nodes for n in node.input} | outputs
        kept = [t for t in self.weights.values() if t.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]

    def _retype_inputs(self, node: onnx.NodeProto, halves: Sequence[bool]) -> None:
        """Let a node read its float operands in FP16 or in float32."""
        for i, (given, half) in enumerate(zip(node.input, halves, strict=True)):
            name = self.renamed.get(given, given)
            if self.types.get(name) == TensorProto.FLOAT:
                kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                node.input[i] = self.provide(name, kind)

    def _retype_outputs(
        self, node: onnx.NodeProto, halves: Sequence[bool], outputs: Set[str]
    ) -> None:
        """Note which of a node's results are FP16; the graph's output keeps its name and type."""
        for i, (name, half) in enumerate(zip(node.output, halves, strict=True)):
            if not half or self.types.get(name) != TensorProto.FLOAT:
                continue
            if name in outputs:
                self.renamed[name] = node.output[i] = self.unique(f"{name}_fp16")
                self.types[node.output[i]] = TensorProto.FLOAT
            self.half.add(node.output[i])

    def _is_float_pair(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a Q/DQ node that works in float32.

        It does where its scale, its data or its reader does.
        """
        if node.op_type not in QDQ:
            return False
        scale = self.weights.get(node.input[1])
        if scale is None or not has_in_half(numpy_helper.to_array(scale)):
            return True
        if node.op_type == "QuantizeLinear":
            return self.renamed.get(node.input[0], node.input[0]) not in self.half
        return node.output[0] in self.kept_reads

    def _is_opaque(self, node: onnx.NodeProto) -> bool:
        """Whether a node's types cannot be chosen.

        The node has a type written into it, or reads a tensor that type inference does not know.
        """
        return any(a.name == "dtype" for a in node.attribute) or any(
            n and n not in self.types for n in node.input
        )

    def unique(self, name: str) -> str:
        """Return a name that no tensor has yet."""
        while name in self.taken:
            name = f"{name}_"
        self.taken.add(name)
        return name

    def provide(self, name: str, kind: int) -> str:
        """Return the name of ``name`` in this type.

        This is the tensor itself, a second copy of a weight, or a cast, made once for all readers.

        Args:
            name: of a float tensor.
            kind: ``TensorProto.FLOAT16`` or ``TensorProto.FLOAT``.

        Raises:
            ExportError: a weight that does not fit FP16.
        """
        if (TensorProto.FLOAT16 if name in self.half else TensorProto.FLOAT) == kind:
            return name
        if (name, kind) not in self.cast:
            suffix = "fp16" if kind == TensorProto.FLOAT16 else "fp32"
            new = self.cast[name, kind] = self.unique(f"{name}_{suffix}")
            if name in self.weights:
                self.weights[new] = _to_half(self.weights[name], new)
            else:
                self.nodes.append(
                    helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=kind)
                )
        return self.cast[name, kind]


def _float_products(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto]) -> set[str]:
    """Return results of matrix products, and of what is between them and their DQ nodes, to keep.

    TensorRT's matrix products need scales of one type. Where FP16 lacks a scale of one operand, as
    of a weight with a channel of nearly zero, both pairs and the product remain in float32, and so
    do products that share a pair with it.
    """
    producer = {o: n for n in graph.node for o in n.output}
    chains = [
        (node, [_to_dq(name, producer) for name in node.input[:2]])
        for node in graph.node
        if node.op_type in PRODUCTS
    ]
    in_float = set[str]()
    for _ in chains:  # each turn finds a product more, or none
        before = len(in_float)
        for node, (first, second) in chains:
            both = [*first, *second]
            needs = any(n.output[0] in in_float or _lacks_half(n, weights) for n in both)
            if first and second and needs:
                in_float |= {o for n in (node, *both) for o in n.output}
        if len(in_float) == before:
            break
    return in_float


def _to_dq(name: str, producer: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes from a tensor back to the DQ node that makes it; none without one."""
    nodes = []
    while name in producer:
        node = producer[name]
        nodes.append(node)
        if node.op_type == "DequantizeLinear":
            return nodes
        if node.op_type not in MOVES:
            break
        name = node.input[0]
    return []


def _lacks_half(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node is a DQ node with a constant scale that FP16 does not have."""
    if node.op_type != "DequantizeLinear" or node.input[1] not in weights:
        return False
    scale = weights[node.input[1]]
    floats = scale.data_type == TensorProto.FLOAT
    return floats and not has_in_half(numpy_helper.to_array(scale))


def elem_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of the model's own graph that ONNX's inference knows.

    They are numbers of ``TensorProto.DataType`` by tensor name.
    """
    return element_types(model)[0]


def _inline_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, so that every constant is in one place.

    A ConstantOfShape without a value gets a float zero as its value.
    """
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        value = constant_of(node)
        if value is not None:
            graph.initializer.append(value)
            graph.node.remove(node)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(
                helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32)))
            )


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 model that rounds every FP16 result of ``model``, as hardware does.

    ONNX Runtime's CPU computes chains of FP16 ops in float32 and rounds only after them: it shows
    neither their overflow nor their loss.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    types, nodes = elem_types(model), list[onnx.NodeProto]()
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_to_float(tensor))
    for node in result.graph.node:
        _attributes_to_float(node)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                exact, half = f"{name}/exact", f"{name}/half"
                node.output[i] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    del result.graph.value_info[:]
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def _to_float(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _attributes_to_float(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_to_float(attribute.t))


def _to_half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > HALF_MAX:
        raise ExportError(
            f"The weight {tensor.name} does not fit FP16",
            f"its largest value is {largest:.4g}, FP16 ends at {HALF_MAX:g}",
            "Build with --precision fp32",
        )
    return numpy_helper.from_array(array.astype(np.float16), name)


def _attributes_to_half(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_to_half(attribute.t, attribute.t.name))
