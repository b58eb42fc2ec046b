"""The ops of an ONNX file, with the widths its Q/DQ pairs give them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from msgspec import UNSET
from onnx import TensorProto

from trtq import ops as operators
from trtq.cost.contractions import einsum_macs, recurrent_macs
from trtq.cost.onnx_shapes import FIXED, dims_of, with_shapes
from trtq.cost.ops import COUNTED, WEIGHTED, Kernel, Op, fuse
from trtq.errors import ArtifactError
from trtq.onnx_node import FLOAT_CODES, integer, names_of
from trtq.onnx_walk import RANDOM, Scope, branches, scopes
from trtq.quant.formats import Kind

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT4E2M1: 4,
}


class _Reader:
    """Facts about each tensor of a graph while its nodes are read in order.

    A branch also sees the tensors of the graph around it.
    """

    def __init__(self, scope: Scope, outer: _Reader | None = None, *, own: bool = False) -> None:
        graph = scope.graph
        self.own: bool = outer.own if outer else own
        self.scope, self.outer = scope, outer
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes: dict[str, list[int]] = {
            **(outer.shapes if outer else {}),
            **{v.name: dims_of(v) for v in values},
        }
        self.types: dict[str, int] = {
            **(outer.types if outer else {}),
            **{v.name: v.type.tensor_type.elem_type for v in values},
        }
        self.constant: set[str] = set(outer.constant) if outer else set()
        self.stored: dict[str, int] = (
            dict(outer.stored) if outer else {}
        )  # bits of what a DequantizeLinear reads
        self.kinds: dict[str, Kind] = dict(outer.kinds) if outer else {}
        for name, tensor in scope.constants.items():
            self.hold(name, list(tensor.dims), tensor.data_type)

    def hold(self, name: str, dims: list[int], kind: int) -> None:
        self.shapes[name], self.types[name] = dims, kind
        self.constant.add(name)

    def inside(self, graph: onnx.GraphProto, owner: onnx.NodeProto) -> _Reader:
        """Return the reader of a branch."""
        return _Reader(Scope(graph, self.scope.opsets, self.scope, owner), self)

    def dequantize(self, node: onnx.NodeProto) -> None:
        """Note the width of what a DequantizeLinear reads."""
        kind = self.types.get(node.input[0], TensorProto.INT8)
        self.stored[node.output[0]] = BITS.get(kind, 8)
        if kind in FLOAT_CODES:
            self.kinds[node.output[0]] = FLOAT_CODES[kind]

    def values(self, name: str) -> int:
        return math.prod(self.shapes.get(name) or [0])

    def bits(self, name: str) -> int:
        return self.stored.get(name) or BITS.get(self.types.get(name, TensorProto.FLOAT), 32)


def list_onnx_ops(
    model: onnx.ModelProto, path: str, sizes: Mapping[str, Sequence[int]] | None = None
) -> list[Op]:
    """Return every call of an ONNX model for one image, in order, without those on constants alone.

    The branch of an If with the most multiply-accumulates counts. The body of a Loop
    or Scan counts once.

    Args:
        model: of any origin; not changed.
        path: for errors.
        sizes: of its inputs by name; without them only the batch may be open.

    Raises:
        ArtifactError: a size that the file leaves open, or a shape that cannot be inferred.
    """
    inferred = with_shapes(model, path, sizes or {})
    reader = _Reader(scopes(inferred)[0], own=is_own(model))
    return _list(reader, path, _batch(inferred))


def _list(reader: _Reader, path: str, batch: int) -> list[Op]:
    ops: list[Op] = []
    for node in reader.scope.graph.node:
        inner = branches(node)
        if node.op_type == "Constant":
            if node.output[0] not in reader.constant:  # text, or a sparse one
                reader.hold(node.output[0], [], TensorProto.FLOAT)
        elif not inner and _is_constant(reader, node):
            _fold(reader, node)
        else:
            if inner:
                ops += _dearest([_list(reader.inside(g, node), path, batch) for g in inner])
            elif node.op_type == "DequantizeLinear":
                reader.dequantize(node)
            else:
                _pass_on(reader, node)
            ops.append(_op(reader, node, path, batch))
    return ops


def _is_constant(reader: _Reader, node: onnx.NodeProto) -> bool:
    known = all(name in reader.constant for name in node.input if name)
    return known and node.op_type not in RANDOM


def _dearest(lists: list[list[Op]]) -> list[Op]:
    """Return the branch with the highest cost, since the branch taken is unknown before it runs."""
    return max(lists, key=lambda ops: (sum(o.macs for o in ops), len(ops)))


def _pass_on(reader: _Reader, node: onnx.NodeProto) -> None:
    """Copy the code width to the outputs of an op that only moves values.

    This covers the ops through which the walker follows a Q/DQ pair.
    """
    for name in node.output:
        pair = reader.scope.pair(name) if name else None
        if pair is not None and pair.path:
            reader.stored[name] = reader.stored.get(pair.dq.output[0], 8)
            if pair.dq.output[0] in reader.kinds:
                reader.kinds[name] = reader.kinds[pair.dq.output[0]]


def onnx_kernels(model: onnx.ModelProto, ops: Sequence[Op]) -> list[Kernel]:
    """Return the kernels of an ONNX model.

    Args:
        model: of any origin.
        ops: from :func:`list_onnx_ops`.
    """
    return fuse(ops, [o.name for o in model.graph.output])


def _batch(model: onnx.ModelProto) -> int:
    """Return the fixed batch size of a file, by which its counts are divided.

    It is the first axis of every input with two axes or more; inputs that differ in it, such as a
    table beside the samples, have no batch in common.
    """
    initializer_names = names_of(model.graph.initializer)
    inputs = [dims_of(i) for i in model.graph.input if i.name not in initializer_names]
    first = {dims[0] for dims in inputs if len(dims) > 1}
    return max(1, *first) if len(first) == 1 else 1


def _fold(reader: _Reader, node: onnx.NodeProto) -> None:
    """Record the outputs of a node on constants as constants.

    Such a node is computed when the engine is built. A weight behind a Q/DQ pair keeps its stored
    width.
    """
    bits = min((reader.bits(n) for n in node.input[:1]), default=32)
    for name in node.output:
        reader.hold(
            name,
            reader.shapes.get(name) or reader.shapes.get(node.input[0], []) if node.input else [],
            TensorProto.FLOAT,
        )
        if node.op_type == "QuantizeLinear":
            kind = (
                reader.types.get(node.input[2], TensorProto.INT8)
                if len(node.input) > 2
                else TensorProto.UINT8
            )
            reader.stored[name] = BITS.get(kind, 8)
        elif bits < BITS[TensorProto.FLOAT]:
            reader.stored[name] = bits


def _op(reader: _Reader, node: onnx.NodeProto, path: str, batch: int) -> Op:
    activations = [n for n in node.input if n and n not in reader.constant]
    kind, weight = _kind_and_weight(reader, node)
    if kind in COUNTED:
        _require_shapes(reader, node, (*activations, *node.output), path)
    # A transposed convolution multiplies every input value with a kernel.
    inverse = operators.kind(node) == "conv_transpose"
    produced = activations[0] if inverse else node.output[0]
    operand = weight or (node.input[1] if kind == "conv" else "")  # a kernel may be computed
    shape = reader.shapes.get(operand, [])
    kinds = {reader.kinds[n] for n in activations if n in reader.kinds}
    return Op(
        name=op_name(node, own=reader.own),
        kind=kind,
        macs=_macs(reader, node, kind, produced, shape) // batch,
        weights=_weights(reader, node, kind, weight),
        reads={n: reader.values(n) // batch for n in activations},
        writes={n: reader.values(n) // batch for n in node.output if n},
        depthwise=kind == "conv" and integer(node, "group", 1) > 1 and shape[1:2] == [1],
        weight_bits=reader.bits(weight) if weight else None,
        input_bits=min((reader.bits(n) for n in activations), default=None),
        fp8="fp8" in kinds,
        fp4="fp4" in kinds or UNSET,
    )


def _require_shapes(reader: _Reader, node: onnx.NodeProto, names: Sequence[str], path: str) -> None:
    """Refuse a node whose operands or results have no known shape."""
    unknown = next((n for n in names if not reader.values(n)), None)
    if unknown is not None:
        why = f"the shape of {unknown} at {node.name} is not known"
        raise ArtifactError(f"Cannot count {path}", why, FIXED)


def _kind_and_weight(reader: _Reader, node: onnx.NodeProto) -> tuple[str, str | None]:
    """Return what a node counts as, and the constant that it multiplies with."""
    kind = operators.of(node).cost or node.op_type
    if kind not in WEIGHTED:
        return kind, None
    weight = next((n for n in node.input[:2] if n in reader.constant), None)
    if kind in ("linear", "matmul"):
        kind = "matmul" if weight is None else "linear"
    return kind, weight


def _macs(
    reader: _Reader, node: onnx.NodeProto, kind: str, produced: str, weight: list[int]
) -> int:
    """Return the multiply-accumulates of a node for the whole batch.

    Args:
        reader: knows the shapes.
        node: to count.
        kind: what it counts as.
        produced: the tensor each value of which takes as many of them.
        weight: shape of its kernel.
    """
    if kind == "einsum":
        shapes = [reader.shapes.get(n, []) for n in node.input]
        equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
        return einsum_macs(equation, shapes)
    if kind == "recurrent":
        steps, batch, _ = reader.shapes[node.input[0]]
        matrices = [reader.shapes.get(n, []) for n in node.input[1:3]]
        return recurrent_macs(steps * batch, matrices)
    per_value = 0
    if kind == "conv":
        per_value = math.prod(weight[1:])
    elif kind in ("linear", "matmul"):
        # The axis both operands share: the left one's last, its first when Gemm turns it.
        per_value = reader.shapes[node.input[0]][0 if integer(node, "transA", 0) else -1]
    return reader.values(produced) * per_value


def _weights(reader: _Reader, node: onnx.NodeProto, kind: str, weight: str | None) -> int:
    """Return the values of a node's weight, of a recurrent layer those of both its matrices."""
    if kind == "recurrent":
        return sum(reader.values(n) for n in node.input[1:3] if n in reader.constant)
    return reader.values(weight) if weight else 0


def is_own(model: onnx.ModelProto) -> bool:
    """Whether trtq wrote a file."""
    return model.producer_name == "trtq"


def op_name(node: onnx.NodeProto, *, own: bool) -> str:
    """Return the name of a node in counts.

    It is the name of the node without the op type that trtq appends. Names of other tools' files,
    which trtq keeps, remain whole.

    Args:
        node: of a file.
        own: trtq wrote the file.
    """
    name: str = node.name or node.output[0]
    module = next((p.value for p in node.metadata_props if p.key == "module"), "")
    return name.removesuffix(f"/{node.op_type}") if own and name.startswith(module) else name
