"""Lowering of a captured graph to ONNX: one walk over its nodes, with a table of ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import fx

from trtq import ops
from trtq.errors import ExportError
from trtq.export.borrowed import Borrower, is_deferred, region_of
from trtq.export.write_base import writer_of
from trtq.export.writer import UnsupportedOpError, Writer
from trtq.graph.dtypes import ONNX_TYPES
from trtq.graph.naming import module_name, node_name
from trtq.graph.nodes import get_constant, operands
from trtq.graph.post_norm import restores_nothing
from trtq.graph.signature import TensorSpec, placeholders, results, signature_of
from trtq.onnx_walk import branches, read_by
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

    Inputs and outputs have the names of its signature. Weights are float in front of their Q/DQ
    pairs.

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
    signature = signature_of(graph)
    given, wanted = ([t.name for t in side] for side in (signature.inputs, signature.outputs))
    writer = Writer(opset, int4=int4, taken=(*given, *wanted))
    writer.values.update(zip(placeholders(graph), given, strict=True))
    tensor_names = _Lowering(writer, graph, borrower, refused=refused).run_all()
    inputs = [_value_info(t) for t in signature.inputs]
    outputs = [_value_info(t) for t in signature.outputs]
    _rename_outputs(writer, tensor_names, wanted, given)
    nodes = _used(writer.nodes, wanted)
    read = {name for node in nodes for name in read_by(node)}
    body = helper.make_graph(
        nodes, "trtq", inputs, outputs, [t for n, t in writer.initializers.items() if n in read]
    )
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid(d, v) for d, v in {"": opset, **writer.domains}.items()],
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
    """One walk over a graph. A node is written after its operands, in any order of the graph.

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

    def run_all(self) -> list[str]:
        """Write the graph and return the names of all its outputs."""
        for node in self.graph.graph.nodes:
            self.write(node)
        return [self.writer.value(n) for n in results(self.graph)]

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
        if restores_nothing(self.graph, node):
            return writer.value(operands(node)[0])
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


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    """Return an input or output as ONNX says it: a size that is a formula has no name there."""
    shape = [d if isinstance(d, int) or d.isidentifier() else None for d in tensor.shape]
    kind = ONNX_TYPES.get(getattr(torch, tensor.dtype))
    if kind is None:
        raise ExportError(
            f"Cannot write {tensor.name} as ONNX",
            f"it is {tensor.dtype}, expected one of {', '.join(map(_dtype_name, ONNX_TYPES))}",
            "Cast it in the model",
        )
    return helper.make_tensor_value_info(tensor.name, kind, shape)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _used(nodes: list[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that lead to the outputs, without pads that a convolution absorbed."""
    read, kept = set(outputs), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(read_by(node))
    return kept[::-1]


def _rename_outputs(
    writer: Writer, tensor_names: Sequence[str], wanted: Sequence[str], inputs: Sequence[str]
) -> None:
    """Call the model's answers what they are called, wherever they are also read.

    An input, a constant and what is an output already get a copy.
    """
    renamed: dict[str, str] = {}
    for result, name in zip(tensor_names, wanted, strict=True):
        if result in inputs or result in writer.initializers or result in renamed:
            writer.op("Identity", result)
            renamed[writer.nodes[-1].output[0]] = name
        else:
            renamed[result] = name
    for node in writer.nodes:
        node.output[:] = [renamed.get(name, name) for name in node.output]
        _rename_reads_(node, renamed)


def _rename_reads_(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Let a node, and the nodes of its branches, read tensors by their new names."""
    node.input[:] = [renamed.get(name, name) for name in node.input]
    for branch in branches(node):
        for inner in branch.node:
            _rename_reads_(inner, renamed)
