"""What lint rules look at: a model with its constants, producers and readers, and who will read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from trtq.errors import ExportError

Severity = Literal["error", "float", "slow"]  # does not build | builds, but computes in float | builds, but loses speed
Version = tuple[int, int]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a rule found.

    Attributes:
        rule: its number.
        severity: ``error``: does not build; ``float``: builds and silently computes in float; ``slow``: builds and loses speed.
        where: node or tensor.
        why: what it is, and what TensorRT does.
        mend: what to do.
        repairable: ``--fix`` does it.
    """

    rule: str
    severity: Severity
    where: str
    why: str
    mend: str
    repairable: bool = False


COMPUTE = ("Conv", "Gemm", "MatMul")


@dataclass(slots=True)
class Reader:
    """Who will read the file.

    Attributes:
        version: of TensorRT; None: any from 10 on.
        opset: the newest it reads.
        formats: what the hardware multiplies in beside FP32: INT8, FP8 and so on.
        name: for messages.
    """

    version: Version | None
    opset: int
    formats: tuple[str, ...]
    name: str

    def before(self, version: Version) -> bool:
        """Whether it is older than ``version``."""
        return self.version is not None and self.version < version


@dataclass(slots=True)
class View:
    """A model with what rules ask for."""

    model: onnx.ModelProto
    reader: Reader = field(default_factory=lambda: Reader(version=None, opset=0, formats=("INT8",), name="any"))
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.constants = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = next((a.t for a in node.attribute if a.name == "value"), None)
                if value is not None:
                    self.constants[node.output[0]] = value
            for name in node.output:
                self.producer[name] = node
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def nodes(self, *kinds: str) -> list[onnx.NodeProto]:
        """Return the nodes of these kinds, all without."""
        return [n for n in self.model.graph.node if not kinds or n.op_type in kinds]

    def value(self, name: str) -> np.ndarray | None:
        """Return a constant, None for anything else."""
        found = self.constants.get(name)
        return numpy_helper.to_array(found) if found is not None else None

    def pair(self, name: str) -> tuple[onnx.NodeProto | None, onnx.NodeProto] | None:
        """Return (Q, DQ) that make a tensor, Q None for stored codes; None when it is not dequantized. A cast may stand behind the pair."""
        dq = self.producer.get(name)
        while dq is not None and dq.op_type == "Cast":
            dq = self.producer.get(dq.input[0])
        if dq is None or dq.op_type != "DequantizeLinear":
            return None
        q = self.producer.get(dq.input[0])
        return (q if q is not None and q.op_type == "QuantizeLinear" else None), dq

    def is_weight(self, name: str) -> bool:
        """Whether a dequantized tensor is a constant."""
        found = self.pair(name)
        return found is not None and (found[0].input[0] if found[0] is not None else found[1].input[0]) in self.constants


def named(node: onnx.NodeProto) -> str:
    """Return a node's name for messages."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def weight_axis(node: onnx.NodeProto, ndim: int) -> int:
    """Return the axis of a layer's weight that its output channels lie along."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else ndim - 1


def axis_of(node: onnx.NodeProto) -> int | None:
    """Return the axis attribute, None where it is not written."""
    return next((a.i for a in node.attribute if a.name == "axis"), None)


def add_named(view: View, name: str, value: np.ndarray) -> str:
    """Add a constant of this name, once, and return the name."""
    if name not in view.constants:
        made = numpy_helper.from_array(np.array(value, order="C"), name)
        view.model.graph.initializer.append(made)
        view.constants[name] = made
    return name


def dequantized(view: View, node: onnx.NodeProto) -> np.ndarray:
    """Return the values of stored codes, float32.

    Raises:
        ExportError: they have a scale for each block.
    """
    codes, scale = view.value(node.input[0]), view.value(node.input[1])
    assert codes is not None
    if scale is None or in_blocks(node):
        raise ExportError(f"Cannot read the codes of {named(node)}", "their scales are computed, or one for each block", "Export it again")
    zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    axis = axis_of(node)
    shape = [-1 if d == (1 if axis is None else axis) % codes.ndim else 1 for d in range(codes.ndim)]

    def along(value: np.ndarray) -> np.ndarray:
        held = value.astype(np.float32)
        return held.reshape(shape) if held.size > 1 else held.reshape([1] * codes.ndim)

    held = codes.astype(np.float32) - (0.0 if zero is None else along(zero))
    result: np.ndarray = (held * along(scale)).astype(np.float32)
    return result


def in_blocks(node: onnx.NodeProto) -> bool:
    """Whether a pair has a scale for each block of its values."""
    return any(a.name == "block_size" and a.i for a in node.attribute)


def replace_node_(view: View, node: onnx.NodeProto, value: np.ndarray) -> None:
    """Put a constant in the place of a node."""
    name = add_named(view, f"{node.output[0]}/float", value)
    for other in view.model.graph.node:
        for i, given in enumerate(other.input):
            if given == node.output[0]:
                other.input[i] = name
    view.model.graph.node.remove(node)


def drop_unread_(model: onnx.ModelProto) -> None:
    """Remove nodes, constants and notes of shapes that nothing reads any more; what branches read counts, too."""
    graph, outputs = model.graph, {o.name for o in model.graph.output}
    while True:
        read = {n for node in graph.node for n in _inputs(node)} | outputs
        dead = [n for n in graph.node if not any(o in read for o in n.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # types may have changed, and parsers infer them again


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, inside its branches, too."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from _inputs(inner)
            yield from (o.name for o in branch.output)
