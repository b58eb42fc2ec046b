"""One call of an ONNX node: its operands and attributes, as reading functions take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper

from trtq import ops
from trtq.onnx_node import names_of
from trtq.onnx_walk import branches
from trtq.reader.values import UnreadError, Value

Read = Callable[["Call"], Any]
OWN = ("", "ai.onnx")

Attributes = dict[str, Any]  # of an ONNX node, by name


@dataclass(frozen=True, slots=True)
class Call:
    """A node with the values of its operands.

    Attributes:
        node: as in the file.
        opset: of ONNX's own domain.
        given: in the node's order, None for an operand that is left out; tensors that its branches
            read follow.
        attributes: by name, as :func:`attributes_of` gives them.
    """

    node: onnx.NodeProto
    opset: int
    given: Sequence[Value | None]
    attributes: Attributes

    def __len__(self) -> int:
        return len(self.given)

    def has(self, position: int) -> bool:
        """Whether the node has an operand at a position."""
        return position < len(self.given) and self.given[position] is not None

    def value(self, position: int) -> Value:
        """Return an operand.

        Raises:
            UnreadError: the node has none there.
        """
        operand = self.given[position] if position < len(self.given) else None
        if operand is None:
            raise UnreadError(f"operand {position} is missing")
        return operand

    def x(self, position: int = 0) -> torch.Tensor:
        """Return an operand as a tensor; numbers become one on the device of the other operands.

        Args:
            position: of the operand.

        Raises:
            UnreadError: the node has none there.
        """
        return self.value(position).as_tensor(self._any())

    def optional(self, position: int) -> torch.Tensor | None:
        """Return an operand as a tensor, None where it is left out."""
        return self.x(position) if self.has(position) else None

    def tensors(self) -> list[torch.Tensor]:
        """Return all operands as tensors."""
        return [self.x(i) for i in range(len(self.given))]

    def ints(self, position: int) -> list[Any] | None:
        """Return an operand as a flat list of integers, None where it is left out.

        Args:
            position: of the operand.

        Returns:
            Plain integers, and :class:`torch.SymInt` for sizes that follow from an open axis.

        Raises:
            UnreadError: it is computed from data.
        """
        return self.value(position).ints() if self.has(position) else None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, ``default`` where the node does not have it."""
        return self.attributes.get(name, default)

    def axes(self, position: int = 1, name: str = "axes") -> list[int] | None:
        """Return axes: an attribute in old opsets, an operand in new ones; None for neither.

        Args:
            position: of the operand.
            name: of the attribute.

        Returns:
            As in the file; negative ones count from the end.

        Raises:
            UnreadError: they are computed from data.
        """
        given = self.get(name)
        axis_values = list(given) if given is not None else self.ints(position)
        return None if axis_values is None else [int(v) for v in axis_values]

    def _any(self) -> torch.Tensor | None:
        tensors = (v.tensor for v in self.given if v is not None and v.tensor is not None)
        return next(tensors, None)


def attributes_of(node: onnx.NodeProto) -> Attributes:
    """Return the attributes of a node by name, as Python values.

    Texts are decoded; lists of texts are lists of bytes; tensors and graphs are ONNX's own.
    """
    attributes: Attributes = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        attributes[attribute.name] = (
            value.decode(errors="replace") if isinstance(value, bytes) else value
        )
    return attributes


def reader_of(node: onnx.NodeProto) -> Read | None:
    """Return the function that reads a node, None where the table of operators names none.

    It is one of the modules ``trtq.reader.read_*``, by the row's column ``read``.
    """
    if node.domain not in OWN:
        return None
    name = ops.of(node).read
    return ops.row_function(name, "trtq.reader.read_") if name else None


def operands_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of a node's operands, then of the tensors that its branches read.

    An operand that is left out is "".
    """
    outer = dict.fromkeys(r for r in reads_of(node) if r and r not in node.input)
    return (*node.input, *outer)


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads of its graph, also inside its branches; a name may come twice."""
    yield from node.input
    for branch in branches(node):
        own = {o for n in branch.node for o in n.output} | names_of(branch.input)
        own |= names_of(branch.initializer)
        for inner in branch.node:
            yield from (r for r in reads_of(inner) if r not in own)
        yield from (o.name for o in branch.output if o.name not in own)
