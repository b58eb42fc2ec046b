"""An ONNX graph with its connections, for finding formulas in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtq.onnx_node import names_of
from trtq.reader.call import OWN, attributes_of, reads_of
from trtq.reader.formula import ONE, Polynomial, Power
from trtq.reader.values import Array
from trtq.typed import present

DEEPEST = 8  # arithmetic nodes between a gate and what it belongs to
EXACT, HALF = 2e-6, 2e-3  # relative: of constants in float32 and in FP16
OPERANDS = {"min": 1, "max": 2}  # attributes that became operands


@dataclass(frozen=True, slots=True)
class Match:
    """A formula that was found.

    Attributes:
        op_type: of the node that replaces it.
        root: the tensor that it computes.
        inputs: of the new node.
        nodes: the first output of each of its nodes, ``root`` among them.
        attributes: of the new node.
        constants: that the new node reads and the graph does not have.
    """

    op_type: str
    root: str
    inputs: tuple[str, ...]
    nodes: Set[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)


class Links:
    """Makers and readers of the tensors of a graph.

    Args:
        graph: sorted.
        constants: by name.
        opset: of ONNX's own domain.
        kept: names of nodes that belong to no formula.

    Attributes:
        taken: first outputs of the nodes that belong to a formula already.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        constants: Mapping[str, Array],
        opset: int,
        kept: frozenset[str],
    ) -> None:
        self.graph, self.constants, self.opset, self.kept = graph, constants, opset, kept
        self.taken: set[str] = set()
        self.made: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.outputs = names_of(graph.output)
        for node in graph.node:
            self.made.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(reads_of(node)):
                self.readers.setdefault(name, []).append(node)
        halves = any(c.dtype == np.float16 for c in constants.values())
        self.tolerance = HALF if halves else EXACT
        self._ranks: dict[str, int] | None = None

    def maker(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor, None where it is of another type.

        Args:
            name: of the tensor.
            op_types: that are wanted, of ONNX's own domain.
        """
        node = self.made.get(name)
        return node if node is not None and _is(node, op_types) else None

    def only_reader(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """Return the only reader of a tensor, None where there are others or it is no such node.

        Args:
            name: of the tensor; an output of the graph has a reader more.
            op_types: that are wanted, of ONNX's own domain.
        """
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return None
        return readers[0] if _is(readers[0], op_types) else None

    def closed(self, match: Match) -> bool:
        """Whether nothing else reads what is inside a formula, and it may be replaced."""
        inside = match.nodes - {match.root}
        if match.nodes & self.taken or inside & self.outputs:
            return False
        if any(self.made[name].name in self.kept for name in match.nodes if self.kept):
            return False
        readers = (r for name in inside for r in self.readers[name])
        return all(r.output[0] in match.nodes for r in readers)

    def number(self, name: str, kinds: str = "fi") -> float | None:
        """Return a constant of one number.

        Args:
            name: of the tensor.
            kinds: of its type, as NumPy has them: float and integer.
        """
        value = self.constants.get(name)
        one = (
            value is not None and value.size == 1 and value.ndim <= 1 and value.dtype.kind in kinds
        )
        return float(value.reshape(())) if value is not None and one else None

    def has(self, node: onnx.NodeProto, wanted: Mapping[str, float]) -> bool:
        """Return whether attributes, or the constant operands that they became, have these values.

        Args:
            node: whose attributes are looked at.
            wanted: values by the name of the attribute, equal within the tolerance.
        """
        attributes = attributes_of(node)
        for name, value in wanted.items():
            place = OPERANDS.get(name, len(node.input))
            # A bound that is an integer is one of integers, whose quotients are cut off.
            operand = self.number(node.input[place], "f") if place < len(node.input) else None
            given = attributes.get(name, operand)
            if given is None or not math.isclose(given, value, rel_tol=self.tolerance):
                return False
        return True

    def last_axes(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """Return the axes of a reduction from the end.

        Args:
            node: a reduction.

        Returns:
            Such as (-2, -1); () unless they are kept, known, and the last ones.
        """
        attributes = attributes_of(node)
        given = attributes.get("axes")
        if given is None and len(node.input) > 1:
            value = self.constants.get(node.input[1])
            given = None if value is None else value.reshape(-1).tolist()
        if not given or not attributes.get("keepdims", 1):
            return ()
        if any(a >= 0 for a in given):
            rank = self._rank(node.input[0])
            given = [a - rank if a >= 0 else a for a in given] if rank else [0]
        axes = tuple(sorted(given))
        return axes if axes == tuple(range(-len(axes), 0)) else ()

    def sources(self, name: str) -> list[str]:
        """Return a tensor and what it is computed from by arithmetic with constants."""
        tensor_names = [name]
        for source in tensor_names:
            node = self.maker(source, *ARITHMETIC)
            if node is not None and len(tensor_names) < DEEPEST:
                tensor_names += [
                    i for i in node.input if i not in self.constants and i not in tensor_names
                ]
        return tensor_names

    def results(self, name: str) -> list[str]:
        """Return a tensor and what is computed from it alone, nearest first."""
        tensor_names = [name]
        while len(tensor_names) < DEEPEST:
            node = self.only_reader(tensor_names[-1], *ARITHMETIC)
            if node is None:
                break
            tensor_names.append(node.output[0])
        return tensor_names

    def polynomial(
        self, name: str, atoms: Mapping[str, Power], used: set[str], depth: int = DEEPEST
    ) -> Polynomial | None:
        """Return a tensor as a polynomial of other tensors, None where it is none.

        Args:
            name: of the tensor.
            atoms: the variables, each with its power.
            used: receives the nodes that compute it.
            depth: nodes that may be between.

        Returns:
            Coefficients by power: 0.5 x + 0.5 x g is {(1, 0): 0.5, (1, 1): 0.5}.
        """
        if name in atoms:
            return {atoms[name]: 1.0}
        number = self.number(name)
        if number is not None:
            return {ONE: number}
        node = self.maker(name, *ARITHMETIC)
        if node is None or not depth:
            return None
        operands = [self.polynomial(i, atoms, used, depth - 1) for i in node.input]
        known = present(operands)
        result = ARITHMETIC[node.op_type](*known) if len(known) == len(operands) else None
        if result is not None:
            used.add(name)
        return result

    def same(self, polynomial: Polynomial | None, wanted: Polynomial) -> bool:
        """Whether a polynomial has these coefficients."""
        return (
            polynomial is not None
            and polynomial.keys() == wanted.keys()
            and all(math.isclose(polynomial[p], wanted[p], rel_tol=self.tolerance) for p in wanted)
        )

    def _rank(self, name: str) -> int:
        """Return the rank of a tensor, 0 where it is unknown."""
        if self._ranks is None:
            self._ranks = _ranks(self.graph, self.constants, self.opset)
        return self._ranks.get(name, 0)


def _is(node: onnx.NodeProto, op_types: tuple[str, ...]) -> bool:
    return node.domain in OWN and node.op_type in op_types


def _ranks(graph: onnx.GraphProto, constants: Mapping[str, Array], opset: int) -> dict[str, int]:
    """Return the ranks that shape inference finds."""
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    del copy.initializer[:]
    known = [v for v in constants.items() if v[1].dtype.kind in "iufb"]
    for name, value in known:
        if value.dtype.kind == "i" and value.size <= 64:
            copy.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            copy.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    model = helper.make_model(copy, opset_imports=[helper.make_opsetid("", opset)])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    shaped = (v for v in values if v.type.tensor_type.HasField("shape"))
    return {v.name: len(v.type.tensor_type.shape.dim) for v in shaped}


def _added(a: Polynomial, b: Polynomial, sign: float = 1.0) -> Polynomial:
    total = dict(a)
    for power, value in b.items():
        total[power] = total.get(power, 0.0) + sign * value
    return {power: value for power, value in total.items() if value}


def _subtracted(a: Polynomial, b: Polynomial) -> Polynomial:
    return _added(a, b, -1.0)


def _multiplied(a: Polynomial, b: Polynomial) -> Polynomial:
    total: dict[Power, float] = {}
    for (i, j), left in a.items():
        for (k, m), right in b.items():
            power = (i + k, j + m)
            total[power] = total.get(power, 0.0) + left * right
    return total


def _divided(a: Polynomial, b: Polynomial) -> Polynomial | None:
    if set(b) != {ONE} or not b[ONE]:
        return None
    return {power: value / b[ONE] for power, value in a.items()}


def _raised(a: Polynomial, b: Polynomial) -> Polynomial | None:
    exponent = b.get(ONE, 0.0) if set(b) == {ONE} else 0.0
    if exponent not in (2.0, 3.0):
        return None
    square = _multiplied(a, a)
    return square if exponent == 2.0 else _multiplied(square, a)


def _negated(a: Polynomial) -> Polynomial:
    return {power: -value for power, value in a.items()}


ARITHMETIC: Mapping[str, Callable[..., Polynomial | None]] = {
    "Add": _added,
    "Sub": _subtracted,
    "Mul": _multiplied,
    "Div": _divided,
    "Pow": _raised,
    "Neg": _negated,
}
