"""Input of lint rules: one graph of a model, and who will read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from trtq import ops
from trtq.errors import ExportError
from trtq.free_names import free_name
from trtq.onnx_node import integer, names_of
from trtq.onnx_walk import Pair, Scope, axis_of, element_types, read_by, rename_, scopes
from trtq.platform.releases import Runtime

Severity = Literal["error", "float", "slow", "note"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a rule found.

    Attributes:
        rule: its number.
        severity: ``error``: does not build, or computes other values than the file says; ``float``:
            builds and silently computes in float; ``slow``: builds and loses speed; ``note``:
            builds under a condition that is named.
        where: node or tensor.
        why: what it is, and what TensorRT does.
        mend: what to do.
        repairable: ``--fix`` does it.
        changes_values: its repair changes values: ``--fix`` does it with ``--allow-value-changes``
            alone.
    """

    rule: str
    severity: Severity
    where: str
    why: str
    mend: str
    repairable: bool = False
    changes_values: bool = False


COMPUTE = ops.onnx_types("conv", "linear", "matmul")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who will read the file.

    Attributes:
        runtime: that parses it.
        formats: what the hardware multiplies in beside FP32: INT8, FP8 and so on.
        name: for messages.
    """

    runtime: Runtime
    formats: tuple[str, ...]
    name: str


ANY = Reader(Runtime(), ("INT8",), "any")


class View:
    """One graph of a model, its own or the body of a branch, with what rules query.

    Args:
        model: the whole file.
        reader: who will read it.
        scope: the graph to look at; default: the model's own.
        types: element types by tensor name, of :func:`trtq.onnx_walk.element_types`; default: none
            known.

    Attributes:
        added: names of tensors that were added, by the name that was asked for.
        taken: names of the graph's tensors.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        reader: Reader = ANY,
        scope: Scope | None = None,
        types: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.reader = model, reader
        self.scope = scope if scope is not None else scopes(model)[0]
        self.graph = self.scope.graph
        self.constants, self.producer = self.scope.constants, self.scope.producer
        self.readers, self.types = self.scope.readers, types or {}
        self.added: dict[str, str] = {}
        self.taken = set(self.scope.local)

    @property
    def main(self) -> bool:
        """Whether this is the model's own graph."""
        return self.scope.outer is None

    def nodes(self, *kinds: str) -> list[onnx.NodeProto]:
        """Return the nodes of these kinds, or all nodes without kinds."""
        return [n for n in self.graph.node if not kinds or n.op_type in kinds]

    def constant(self, name: str) -> onnx.TensorProto | None:
        """Return a stored constant, None for anything else."""
        return self.scope.constant(name)

    def value(self, name: str) -> np.ndarray | None:
        """Return the value of what depends on constants alone, None for anything else."""
        return self.scope.value(name)

    def pair(self, name: str) -> Pair | None:
        """Return the pair that makes a tensor, None when it is not dequantized."""
        return self.scope.pair(name)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on constants alone."""
        return self.scope.is_constant(name)

    def is_weight(self, name: str) -> bool:
        """Whether a dequantized tensor is a constant."""
        return self.scope.is_weight(name)

    def zero_point(self, node: onnx.NodeProto) -> np.ndarray | None:
        """Return the zero point of a Q or DQ.

        None where the node has none, and also where it is computed.
        """
        return self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None


def views(model: onnx.ModelProto, reader: Reader) -> list[View]:
    """Return a view of the model's graph and of every branch."""
    pairs = zip(scopes(model), element_types(model), strict=True)
    return [View(model, reader, scope, types) for scope, types in pairs]


def named(node: onnx.NodeProto) -> str:
    """Return a node's name for messages."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def weight_axis(node: onnx.NodeProto, ndim: int) -> int:
    """Return the axis of a layer's weight that its output channels are along.

    It is 0 for a Conv [O, I, ...] and a Gemm with ``transB`` [N, K], and the last for a MatMul or a
    Gemm [K, N].

    Args:
        node: a Conv, Gemm or MatMul.
        ndim: rank of its weight.
    """
    transposed = bool(integer(node, "transB", 0))
    return 0 if node.op_type == "Conv" or transposed else ndim - 1


def add_named(view: View, name: str, value: np.ndarray) -> str:
    """Add a constant, once for each view, and return its name.

    Args:
        view: whose graph gets it.
        name: wanted; a second call with this name returns the first constant, regardless of its
            value.
        value: any shape; stored in its own dtype.

    Returns:
        ``name``, or a variant of it that no tensor of the graph has.
    """
    if name in view.added:
        return view.added[name]
    free = claimed(view, name)
    tensor = numpy_helper.from_array(np.array(value, order="C"), free)
    view.graph.initializer.append(tensor)
    view.constants[free] = tensor
    view.scope.local.add(free)
    return free


def claimed(view: View, name: str) -> str:
    """Return a name that no tensor of the graph has, and note it as the one of ``name``."""
    free = free_name(name, view.taken)
    view.taken.add(free)
    view.added[name] = free
    return free


def dequantized(view: View, node: onnx.NodeProto) -> np.ndarray:
    """Return the values of stored codes: (codes - zero point) * scale.

    Args:
        view: of the graph.
        node: a DequantizeLinear of constants; its axis is 1 where it names none.

    Returns:
        An array of the codes' shape, computed in float32, in the type of the scale.

    Raises:
        ExportError: they have a scale for each block, or one that is computed.
    """
    codes, scale = view.value(node.input[0]), view.value(node.input[1])
    assert codes is not None
    if scale is None or in_blocks(node):
        raise ExportError(
            f"Cannot read the codes of {named(node)}",
            "their scales are computed, or one for each block",
            "Export it again",
        )
    zero, axis = view.zero_point(node), axis_of(node)
    shape = [
        -1 if d == (1 if axis is None else axis) % max(codes.ndim, 1) else 1
        for d in range(codes.ndim)
    ]

    def along(value: np.ndarray) -> np.ndarray:
        floats = value.astype(np.float32)
        return floats.reshape(shape) if floats.size > 1 else floats.reshape([1] * codes.ndim)

    steps = codes.astype(np.float32) - (0.0 if zero is None else along(zero))
    result: np.ndarray = (steps * along(scale)).astype(scale.dtype)
    return result


def in_blocks(node: onnx.NodeProto) -> bool:
    """Whether a pair has a scale for each block of its values."""
    return bool(integer(node, "block_size", 0))


def replace_node_(view: View, node: onnx.NodeProto, value: np.ndarray) -> None:
    """Replace a node by a constant."""
    name = add_named(view, f"{node.output[0]}/float", value)
    view.graph.node.remove(node)
    rename_(view.graph, node.output[0], name)


def drop_unread_(model: onnx.ModelProto) -> None:
    """Remove nodes, constants and shape annotations that nothing reads any more.

    Tensors that branches read are kept. All shape annotations of all graphs are removed: types may
    have changed.
    """
    for scope in reversed(
        scopes(model)
    ):  # the innermost first: what they no longer read dies outside
        _drop_unread_(scope.graph)


def _drop_unread_(graph: onnx.GraphProto) -> None:
    outputs = names_of(graph.output)
    while True:
        read = {n for node in graph.node for n in read_by(node)} | outputs
        dead = [n for n in graph.node if not any(o in read for o in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # types may have changed, and parsers infer them again
