"""Lowering of a captured graph to ONNX: one walk over its nodes, with a table of ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from trtq import ops
from trtq.export.borrowed import Borrower, is_deferred, region_of
from trtq.export.write_base import writer_of
from trtq.export.writer import ONNX_TYPES, UnsupportedOpError, Writer
from trtq.graph.naming import module_name, node_name
from trtq.graph.nodes import get_constant, operands
from trtq.platform.releases import releases
from trtq.quant.fake_quantize import FakeQuantizeCall


def lower(
    graph: fx.GraphModule,
    *,
    opset: int,
    int4: bool = False,
    borrower: Borrower | None = None,
    refused: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return ``graph`` as an ONNX model.

    Its input is called ``input`` and its output ``output``. Weights are float in front of their
    Q/DQ pairs.

    Args:
        graph: captured, with or without fake-quantize calls; every node carries ``meta["val"]``.
        opset: 13 to 21.
        int4: store weights of 4 bits as ONNX INT4, two codes a byte; needs opset 21.
        borrower: writes ops that the table does not have; without one they are refused.
        refused: names of calls that the table is not to write, and why.

    Raises:
        UnsupportedOpError: an op or a form of it that the table does not write, and there is no
            ``borrower``.
        ExportError: a format that has no Q/DQ form, or an op that the borrower cannot write.
    """
    source = next(n for n in graph.graph.nodes if n.op == "placeholder")
    writer = Writer(opset, int4=int4)
    writer.values[source] = "input"
    answer, result = _Lowering(writer, graph, borrower, refused=refused).run()
    inputs = [_value_info("input", source)]
    outputs = [_value_info("output", answer)]
    _rename_output(writer, result)
    nodes = _used(writer.nodes)
    read = {name for node in nodes for name in node.input}
    body = helper.make_graph(
        nodes, "trtq", inputs, outputs, [t for n, t in writer.initializers.items() if n in read]
    )
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=releases().ir[opset],
        producer_name="trtq",
    )


def lower_into(writer: Writer, graph: fx.GraphModule, inputs: Mapping[fx.Node, Any]) -> list[str]:
    """Write a decomposed region into ``writer`` and return the names of its outputs.

    The nodes are written under the writer's present scope.

    Args:
        writer: receives the nodes.
        graph: whose output is a tuple of tensors.
        inputs: the value of each placeholder.

    Raises:
        UnsupportedOpError: an op that the table does not write.
    """
    writer.values.update(inputs)
    try:
        return _Lowering(writer, graph, None, scope=(writer.scope, writer.module)).run_all()
    finally:  # an equal region may be written from the same graph, with other inputs
        for node in graph.graph.nodes:
            writer.values.pop(node, None)


class _Lowering:
    """One walk over a graph. A node is written after its operands, whatever the order of the graph.

    Args:
        writer: receives the nodes.
        graph: to write.
        borrower: for what the table does not have.
        scope: layer and module of every node, where the graph does not name its own.
        refused: names of calls that the table is not to write, and why.
    """

    def __init__(
        self,
        writer: Writer,
        graph: fx.GraphModule,
        borrower: Borrower | None,
        *,
        scope: tuple[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self.writer, self.graph, self.borrower, self.scope = writer, graph, borrower, scope
        self.refused = refused or {}
        writer.transposed |= _transposed_weights(graph)

    def run(self) -> tuple[fx.Node, str]:
        """Write the graph and return the answer's node and the name of its tensor."""
        self.run_all()
        answer = self._outputs()[0]
        return answer, self.writer.value(answer)

    def run_all(self) -> list[str]:
        """Write the graph and return the names of all its outputs."""
        for node in self.graph.graph.nodes:
            self.write(node)
        return [self.writer.value(n) for n in self._outputs()]

    def _outputs(self) -> list[fx.Node]:
        output = next(n for n in self.graph.graph.nodes if n.op == "output")
        given = operands(output)[0]
        return list(given) if isinstance(given, (list, tuple)) else [given]

    def write(self, node: fx.Node) -> None:
        """Write a node and what it needs, unless it is written already."""
        if node in self.writer.values or node.op in ("placeholder", "output"):
            return
        if node.op == "get_attr":
            self._write_constant(node)
            return
        for operand in node.all_input_nodes:
            self.write(operand)
        if node not in self.writer.values:
            self._write_call(node)

    def _write_call(self, node: fx.Node) -> None:
        self.writer.scope, self.writer.module = self.scope or (node_name(node), module_name(node))
        try:
            self.writer.values[node] = self._written(node)
        except UnsupportedOpError as exc:
            if self.borrower is None:
                raise
            if is_deferred(node):
                return
            region = region_of(node)
            for operand in region.inputs:
                self.write(operand)
            self.writer.scope, self.writer.module = node_name(node), module_name(node)
            self.borrower.write_(
                self.writer, region, str(exc), by_table=node_name(node) not in self.refused
            )

    def _written(self, node: fx.Node) -> Any:
        writer = self.writer
        write = writer_of(node)
        if write is None:
            raise UnsupportedOpError(f"{node.target} at {node_name(node)}")
        if node_name(node) in self.refused:
            raise UnsupportedOpError(
                f"{node.target} at {node_name(node)}: {self.refused[node_name(node)]}"
            )
        mark = writer.mark()
        try:
            return write(writer, node, *node.args, **node.kwargs)
        except (TypeError, KeyError, IndexError, ArithmeticError, UnsupportedOpError) as exc:
            # An argument that this form of the op does not take.
            writer.rewind(mark)
            raise UnsupportedOpError(f"{node.target} at {node_name(node)}: {exc}") from exc

    def _write_constant(self, node: fx.Node) -> None:
        value = get_constant(self.graph, node)
        if value is None or value.dtype not in ONNX_TYPES:
            return  # read by regions alone, which hold it themselves; any other reader is refused
        array = value.numpy().T if node in self.writer.transposed else value.numpy()
        self.writer.values[node] = self.writer.constant(
            array, str(node.target) if self.scope is None else None
        )


def _transposed_weights(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the constants that are linear weights and nothing else: stored as [K, N].

    Their fake-quantize calls are included.

    TensorRT documents per-channel axis 1 of [K, N] for a MatMul, and nothing is then between the
    pair and the MatMul.
    """
    turned: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        call = FakeQuantizeCall.of(node)
        if node.op == "get_attr" or (call is not None and call.of_constant):
            value = node.meta.get("val")
            is_matrix = isinstance(value, torch.Tensor) and value.ndim == 2
            if is_matrix and _read_by_linears_alone(node, turned):
                turned.add(node)
    # A call whose constant is read otherwise, too, keeps the constant's own layout.
    return {n for n in turned if n.op == "get_attr" or operands(n)[0] in turned}


def _read_by_linears_alone(node: fx.Node, turned: set[fx.Node]) -> bool:
    """Whether every reader takes a constant as the weight of a linear, or quantizes it for one."""
    uses = [(u, i) for u in node.users for i, a in enumerate(u.args) if a is node]
    if not uses or {u for u, _ in uses} != set(node.users):
        return False  # a use inside a list of operands is none of these
    return all(
        (ops.kind(user) == "linear" and i == 1) or (user in turned and i == 0) for user, i in uses
    )


def _value_info(name: str, node: fx.Node) -> onnx.ValueInfoProto:
    value = node.meta["val"]
    dims = ["batch" if i == 0 else None for i in range(value.ndim)]
    shape = [
        d if isinstance(s, torch.SymInt) else int(s) for d, s in zip(dims, value.shape, strict=True)
    ]
    return helper.make_tensor_value_info(
        name, ONNX_TYPES.get(value.dtype, TensorProto.FLOAT), shape
    )


def _used(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes that lead to the output, without pads that a convolution absorbed."""
    read, kept = {"output"}, list[onnx.NodeProto]()
    for node in reversed(nodes):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1]


def _rename_output(writer: Writer, result: str) -> None:
    """Call the model's answer ``output``, wherever it is also read."""
    if result == "input" or result in writer.initializers:
        writer.op("Identity", result)
        result = writer.nodes[-1].output[0]
    for node in writer.nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == result:
                    names[i] = "output"
