"""Find where an operand comes from: the graph walker of lint, counts, audit and import.

It follows ops that only move values, evaluates what depends on constants only, and enters
the branches of If, Loop and Scan.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtq import ops
from trtq.onnx_constants import LARGEST_FOLD, SMALL, array_of, constant_of, evaluate
from trtq.onnx_node import integer, names_of

REORDER = ops.onnx_types(trait="reorder")
# A layer behind them still computes in INT8 when its Q/DQ pair is in front of them: plans of
# TensorRT for RTX 1.7.1 were read for each.
MOVES = ops.onnx_types(trait="moves")
_WIDTHS = {
    4: "UINT4 INT4 FLOAT4E2M1",
    8: "UINT8 INT8 BOOL FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ FLOAT8E8M0",
    16: "UINT16 INT16 FLOAT16 BFLOAT16",
    32: "FLOAT INT32 UINT32",
    64: "DOUBLE INT64 UINT64 COMPLEX64",
    128: "COMPLEX128",
}
# Bits of a stored value, by type.
BITS: dict[int, int] = {
    TensorProto.DataType.Value(n): bits
    for bits, names in _WIDTHS.items()
    for n in names.split()
    if n in TensorProto.DataType.keys()  # noqa: SIM118
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
QDQ = ops.onnx_types("quantize")
# Never evaluated: their result is not a function of their operands.
RANDOM = ops.onnx_types(trait="random")


@dataclass(frozen=True, slots=True)
class Pair:
    """A Q/DQ pair that makes an operand.

    Attributes:
        q: None for stored codes, and for codes that are computed in another way.
        dq: the DequantizeLinear.
        path: ops that only move values between the pair and the operand, the nearest to the pair
            first.
    """

    q: onnx.NodeProto | None
    dq: onnx.NodeProto
    path: tuple[onnx.NodeProto, ...] = ()

    @property
    def source(self) -> str:
        """The tensor that the pair quantizes, or the stored codes."""
        return str(self.q.input[0] if self.q is not None else self.dq.input[0])


@dataclass(slots=True)
class Scope:
    """One graph of a model: its own, or the body of a branch, which sees the graphs around it.

    Attributes:
        graph: its nodes and constants.
        opsets: version by domain, of the model; ONNX's own domain is "".
        outer: the scope around a branch; None for the model's own graph.
        owner: the node whose branch it is.
        constants: stored tensors and Constant nodes of this graph, by name.
        producer: the node that makes a tensor of this graph, by the tensor's name.
        readers: nodes of this graph that read a tensor, also inside their branches, by name.
        local: names that this graph defines: inputs, constants and results of nodes.
        folded: values that were computed already, by name; None where there is none.
    """

    graph: onnx.GraphProto
    opsets: dict[str, int]
    outer: Scope | None = None
    owner: onnx.NodeProto | None = None
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    local: set[str] = field(default_factory=set)
    folded: dict[str, np.ndarray | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = {i.name: i for i in self.graph.initializer}
        for node in self.graph.node:
            constant = constant_of(node) if node.op_type == "Constant" else None
            if constant is not None:
                self.constants[node.output[0]] = constant
            for name in node.output:
                self.producer[name] = node
            for name in read_by(node):
                self.readers.setdefault(name, []).append(node)
        self.local = names_of(self.graph.input) | set(self.constants) | set(self.producer)

    def home(self, name: str) -> Scope | None:
        """Return the scope that defines a tensor, this one or one around it; None for none."""
        if name in self.local or self.outer is None:
            return self if name in self.local else None
        return self.outer.home(name)

    def constant(self, name: str) -> onnx.TensorProto | None:
        """Return a stored constant of this scope or an enclosing one."""
        home = self.home(name)
        return home.constants.get(name) if home is not None else None

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that produces a tensor, in this scope or an enclosing one."""
        home = self.home(name)
        return home.producer.get(name) if home is not None else None

    def value(self, name: str) -> np.ndarray | None:
        """Return the value of a tensor that depends on constants only; None for any other.

        Q/DQ pairs and random ops are not evaluated. Each value is computed once and must not be
        changed.

        Args:
            name: of a tensor of this scope or one around it.

        Returns:
            The array in the tensor's own dtype. None also where the operands have more than
            :data:`trtq.onnx_constants.LARGEST_FOLD` values, or where ONNX's evaluator lacks the op.
        """
        home = self.home(name)
        if home is None:
            return None
        if name not in home.folded:
            home.folded[name] = home._fold(name)
        return home.folded[name]

    def _fold(self, name: str) -> np.ndarray | None:
        tensor = self.constants.get(name)
        if tensor is not None:
            return array_of(tensor)
        node = self.producer.get(name)
        if node is None or not self.is_constant(name):
            return None
        given = {n: self.value(n) for n in node.input if n}
        sizes = [v.size for v in given.values() if v is not None]
        if len(sizes) < len(given) or sum(sizes) > LARGEST_FOLD:
            return None
        results = evaluate(node, {n: v for n, v in given.items() if v is not None}, self.opsets)
        return results.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on constants only.

        A result of a QuantizeLinear or DequantizeLinear is no constant, even of a stored weight.
        """
        return all(node is not None and _folds(node) for _, node in self.origins(name))

    def origins(
        self, name: str, ends: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, onnx.NodeProto | None]]:
        """Yield every tensor that a tensor is computed from, itself first, with its producer.

        The producer is the node that computes the tensor, None for an input.

        Args:
            name: of the tensor; stored constants are not yielded.
            ends: ops at which the search ends.
        """
        seen, left = set[str](), [name]
        while left:
            now = left.pop()
            if now in seen or self.constant(now) is not None:
                continue
            seen.add(now)
            node = self.maker(now)
            yield now, node
            if node is not None and node.op_type not in ends:
                left += [n for n in node.input if n]

    def moved(self, name: str, kinds: tuple[str, ...] = MOVES) -> tuple[str, list[onnx.NodeProto]]:
        """Return the tensor whose values an operand holds, and the ops that move them.

        Args:
            name: of the operand.
            kinds: op types that are followed, through their first input; a Cast between float types
                is always followed.

        Returns:
            The name of the tensor, ``name`` itself where no such op makes it, and the ops. The op
            nearest to the returned tensor comes first.
        """
        path: list[onnx.NodeProto] = []
        while (node := self.maker(name)) is not None and self._moves(node, kinds):
            path.insert(0, node)
            name = node.input[0]
        return name, path

    def _moves(self, node: onnx.NodeProto, kinds: tuple[str, ...]) -> bool:
        if node.op_type == "Cast":  # between float types a cast moves; to integers it computes
            constant = self.constant(node.input[0])
            before = self.maker(node.input[0])
            known = constant.data_type in FLOATS if constant is not None else before is not None
            return known and cast_type(node) in FLOATS
        return node.op_type in kinds and node.domain in ("", "ai.onnx")

    def pair(self, name: str) -> Pair | None:
        """Return the Q/DQ pair that produces an operand, None for a float operand.

        Ops that only move values may be between the pair and the operand. A Concat of pairs with
        one equal scale counts as the first of them.
        """
        source, path = self.moved(name)
        dq = self.maker(source)
        if dq is None:
            return None
        if dq.op_type == "Concat":
            return self._joined(dq, path)
        if dq.op_type != "DequantizeLinear":
            return None
        q = self.maker(self.moved(dq.input[0])[0])
        return Pair(q if q is not None and q.op_type == "QuantizeLinear" else None, dq, tuple(path))

    def _joined(self, concat: onnx.NodeProto, path: list[onnx.NodeProto]) -> Pair | None:
        """Return the pair of the first input of a Concat whose inputs all have the same scale.

        TensorRT concatenates their codes.
        """
        pairs = [self.pair(n) for n in concat.input]
        first = pairs[0]
        scales = {self._scale(p.dq) if p is not None else None for p in pairs}
        if first is None or len(scales) > 1 or None in scales:
            return None
        return Pair(first.q, first.dq, (*first.path, concat, *path))

    def _scale(self, dq: onnx.NodeProto) -> float | None:
        scale = self.value(dq.input[1])
        return float(scale.reshape(-1)[0]) if scale is not None and scale.size == 1 else None

    def is_weight(self, name: str) -> bool:
        """Whether a dequantized operand is a constant."""
        pair = self.pair(name)
        return pair is not None and self.is_constant(pair.source)

    def channels(self, pair: Pair) -> tuple[int, int] | None:
        """Return an operand's scale axis where it is read, and the operand's rank.

        A vector that numbers the channels is moved through the ops between the pair and the
        operand: the axis along which it then varies is the answer. A weight [N, K] with scales
        along axis 0 behind a Transpose gives (1, 2).

        Args:
            pair: a pair of a constant.

        Returns:
            (axis, rank), or None for a single scale, an unknown value, or an axis that a Reshape
            split.
        """
        scale, operand = self.value(pair.dq.input[1]), self.value(pair.source)
        if pair.q is not None and pair.q.output[0] != pair.dq.input[0]:
            return None  # the codes are moved between the two halves
        if scale is None or operand is None or scale.size <= 1 or scale.ndim != 1:
            return None
        axis = axis_of(pair.dq)
        axis = (1 if axis is None else axis) % max(operand.ndim, 1)
        numbers = np.arange(operand.shape[axis], dtype=np.float32)
        marks = np.broadcast_to(along(numbers, axis, operand.ndim), operand.shape)
        for node in pair.path:
            moved = marks if node.op_type == "Cast" else self._apply(node, marks)
            if moved is None:
                return None
            marks = moved
        vary = [d for d in range(marks.ndim) if (np.take(marks, [0], axis=d) != marks).any()]
        return (vary[0], marks.ndim) if len(vary) == 1 else None

    def _apply(self, node: onnx.NodeProto, first: np.ndarray) -> np.ndarray | None:
        """Evaluate a node on ``first`` and constants, None where that is not possible."""
        rest = {name: self.value(name) for name in node.input[1:] if name}
        known = {name: value for name, value in rest.items() if value is not None}
        if len(known) < len(rest):
            return None
        return evaluate(node, {node.input[0]: first, **known}, self.opsets).get(node.output[0])


def _folds(node: onnx.NodeProto) -> bool:
    """Whether a node's result is a constant when its operands are."""
    if node.op_type in (*QDQ, *RANDOM) or has_branches(node):
        return False
    return node.op_type == "Constant" or (node.domain in ("", "ai.onnx") and any(node.input))


def scopes(model: onnx.ModelProto) -> list[Scope]:
    """Return the scope of the model's graph and those of all branches, outer ones first."""
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    all_scopes = [Scope(model.graph, opsets)]
    for scope in all_scopes:  # grows while it is read
        for node in scope.graph.node:
            all_scopes += [Scope(branch, opsets, scope, node) for branch in branches(node)]
    return all_scopes


def element_types(model: onnx.ModelProto) -> list[dict[str, int]]:
    """Return the element types that ONNX's inference knows, by name, for each of :func:`scopes`.

    Returns:
        One dict for each scope, in the order of :func:`scopes`: numbers of ``TensorProto.DataType``
        by tensor name. Tensors of types that inference cannot tell are missing, or have 0.
    """
    copy = skeleton(model)
    with contextlib.suppress(
        onnx.shape_inference.InferenceError
    ):  # what is declared is known even then
        copy = onnx.shape_inference.infer_shapes(copy)
    return [_declared(s.graph) for s in scopes(copy)]


def _declared(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.input, *graph.output)
    known = {v.name: v.type.tensor_type.elem_type for v in values}
    return known | {i.name: i.data_type for i in graph.initializer}


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model for shape inference and checks.

    In the copy every domain is declared, and constants of more than
    :data:`trtq.onnx_constants.SMALL` values have a name, a type and a shape alone: it remains small
    for any model, and is not to be run.
    """
    copy = onnx.ModelProto()
    for name, value in model.ListFields():
        if name.name == "graph":
            _copy_graph(model.graph, copy.graph)
        elif name.name == "functions":
            copy.functions.extend(value)
        elif name.name == "opset_import":
            copy.opset_import.extend(value)
        elif name.name == "ir_version":
            copy.ir_version = value
    declare_domains_(copy)
    return copy


def declare_domains_(model: onnx.ModelProto) -> None:
    """Declare the domains that nodes use and the file does not declare.

    Tools leave out the domains of plugins.
    """
    known = {o.domain for o in model.opset_import}
    known |= {"", "ai.onnx"} if known & {"", "ai.onnx"} else set()
    for domain in sorted({n.domain for n in all_nodes(model)} - known):
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _copy_graph(graph: onnx.GraphProto, copy: onnx.GraphProto) -> None:
    copy.name = graph.name
    copy.node.extend(graph.node)
    copy.input.extend(graph.input)
    copy.output.extend(graph.output)
    copy.value_info.extend(graph.value_info)
    for initializer in graph.initializer:
        values = 1
        for d in initializer.dims:
            values *= d
        if values <= SMALL:
            copy.initializer.append(initializer)
        else:
            copy.initializer.append(
                onnx.TensorProto(
                    name=initializer.name, data_type=initializer.data_type, dims=initializer.dims
                )
            )


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node."""
    return [g for a in node.attribute for g in ((a.g,) if a.HasField("g") else tuple(a.graphs))]


def has_branches(node: onnx.NodeProto) -> bool:
    """Whether a node has graphs inside."""
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, including those in branches and local functions.

    A node comes before those of its branches, functions come last.
    """
    left = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while left:
        node = left.pop(0)
        yield node
        left[:0] = [n for g in branches(node) for n in g.node]


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: of graphs, branches, functions, and of attributes of any name."""
    functions = (n for f in model.functions for n in f.node)
    yield from _graph_tensors(model.graph)
    yield from _node_tensors(functions)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from _graph_tensors(graph)


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, including inside its branches."""
    yield from node.input
    for branch in branches(node):
        for inner in branch.node:
            yield from read_by(inner)
        yield from (o.name for o in branch.output)


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Return a stored tensor's size in bytes, two 4-bit codes a byte; 0 for types without one."""
    bits: int = math.prod(tensor.dims) * BITS.get(tensor.data_type, 0)
    return -(-bits // 8)


def is_fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether an axis has a fixed size; some tools write -1 or 0 for a dynamic one."""
    return dim.HasField("dim_value") and dim.dim_value > 0


def axis_name(dim: onnx.TensorShapeProto.Dimension) -> str:
    """Return the name of an open axis, "" where tools wrote ``?``, ``-1`` or ``None`` for it."""
    text: str = dim.dim_param
    named = any(c.isalpha() for c in text) and text.lower() != "none"
    return text if named else ""


def along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Return a vector shaped for one axis of a tensor of ``ndim`` axes.

    Args:
        values: [C].
        axis: 0 to ``ndim`` - 1; not negative.
        ndim: rank of the result.

    Returns:
        A view whose sizes are 1 but for C at ``axis``, which broadcasts against the tensor.
    """
    return values.reshape([-1 if d == axis else 1 for d in range(ndim)])


def axis_of(node: onnx.NodeProto) -> int | None:
    """Return the axis attribute, or None when it is absent."""
    return next((a.i for a in node.attribute if a.name == "axis"), None)


def cast_type(node: onnx.NodeProto) -> int:
    """Return the type that a Cast writes."""
    return integer(node, "to", TensorProto.UNDEFINED)


def rename_(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let every reader of ``old``, which no node makes any more, read ``new``, in branches too.

    A branch that defines ``old`` itself is left alone. If ``old`` is an output of the graph, an
    Identity node produces it from ``new``, so that the output keeps its name.
    """
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for branch in branches(node):
            if old not in _defined(branch):
                rename_(branch, old, new)
    if any(o.name == old for o in graph.output):
        graph.node.append(helper.make_node("Identity", [new], [old], name=f"{old}/Identity"))


def _defined(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a graph gives to tensors itself."""
    values = names_of((*graph.input, *graph.initializer))
    return values | {name for node in graph.node for name in node.output}
