"""Lowering of a captured graph to ONNX: one walk over its nodes, with a table of ops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from trtq.errors import ExportError
from trtq.export.borrowed import Borrower, is_deferred, region_of
from trtq.export.ops import OPS
from trtq.export.writer import ONNX_TYPES, UnsupportedOpError, Writer
from trtq.graph.naming import module_name, node_name
from trtq.graph.normalize import get_constant, operands
from trtq.platform.releases import releases
from trtq.quant.fake_quantize import FAKE_QUANTIZE, LOG_EPSILON, along_axis

FP8_OPSET = 19
LINEAR = torch.ops.aten.linear.default


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
    return _Lowering(writer, graph, None, scope=(writer.scope, writer.module)).run_all()


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
        self.transposed = _transposed_weights(graph)

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
        if node.target is FAKE_QUANTIZE:
            _write_qdq(writer, self.graph, node, self.transposed)
            return writer.values[node]
        if node.target is LINEAR:
            x, weight, bias = (*operands(node), None)[:3]
            if weight not in self.transposed:
                weight = writer.op("Transpose", weight, perm=[1, 0])
            product = writer.op("MatMul", x, weight)
            return product if bias is None else writer.op("Add", product, bias)
        write = OPS.get(node.target)
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
        array = value.numpy().T if node in self.transposed else value.numpy()
        self.writer.values[node] = self.writer.constant(
            array, str(node.target) if self.scope is None else None
        )


def _write_qdq(
    writer: Writer, graph: fx.GraphModule, node: fx.Node, transposed: set[fx.Node]
) -> None:
    """Write the op as QuantizeLinear and DequantizeLinear.

    The zero point is an explicit INT8 one; ``axis`` is only set per channel.

    Codes of fewer than 8 bits use an INT8 container: an activation is first clipped to the range of
    its codes, a weight is already on its codes. A format without a kernel is written in float: a
    weight as the values of its codes, a log2 activation as the ops that compute it.
    """
    x, scale, zero_point, axis, qmin, qmax, name, kind = operands(node)
    value = get_constant(graph, scale)
    assert value is not None
    writer.scope = writer.quantizer = str(name)
    if kind in ("asymmetric", "log2") and x.op == "get_attr":
        writer.values[node], writer.quantizer = writer.value(x), ""
        return
    if kind == "log2":
        zero = get_constant(graph, zero_point)
        assert zero is not None
        writer.values[node], writer.quantizer = (
            _write_log2(writer, x, value, zero, (qmin, qmax)),
            "",
        )
        return
    if kind == "fp8":
        writer.values[node], writer.quantizer = (
            _write_fp8(writer, node, tuple(value.shape), transposed),
            "",
        )
        return
    if kind != "uniform" or qmin < -128 or qmax > 127:
        raise ExportError(
            f"Cannot write the format of {name} as Q/DQ",
            f"{kind}, codes {qmin}..{qmax}",
            "Only codes within INT8 around a zero point of 0 have a kernel",
        )
    if writer.int4 and x.op == "get_attr" and (qmin, qmax) == (-8, 7):
        writer.values[node], writer.quantizer = _write_int4(writer, graph, node, transposed), ""
        return
    if (qmin, qmax) != (-128, 127) and x.op != "get_attr":
        low, high = (np.asarray(code * value.numpy(), dtype=np.float32) for code in (qmin, qmax))
        x = writer.op("Clip", x, writer.constant(low), writer.constant(high))
    zeros = writer.constant(np.zeros(tuple(value.shape), dtype=np.int8))
    if axis is not None and node in transposed:
        axis = 1 - axis % 2
    # TensorRT 8.0 refuses an axis beside a scalar scale.
    codes = writer.op("QuantizeLinear", x, scale, zeros, axis=axis)
    writer.values[node] = writer.op("DequantizeLinear", codes, scale, zeros, axis=axis)
    writer.quantizer = ""


def _write_fp8(
    writer: Writer, node: fx.Node, shape: tuple[int, ...], transposed: set[fx.Node]
) -> str:
    """Write the pair with an E4M3 zero point, which ONNX has from opset 19 on."""
    x, scale, _, axis, _, _, name, _ = operands(node)
    if writer.opset < FP8_OPSET:
        raise ExportError(
            f"Cannot write {name} in FP8",
            f"ONNX has it from opset {FP8_OPSET} on, asked for {writer.opset}",
            "Give --opset 20",
        )
    if axis is not None and node in transposed:
        axis = 1 - axis % 2
    zeros = writer.fp8_zeros(shape)
    return str(
        writer.op(
            "DequantizeLinear",
            writer.op("QuantizeLinear", x, scale, zeros, axis=axis),
            scale,
            zeros,
            axis=axis,
        )
    )


def _write_log2(
    writer: Writer, x: fx.Node, step: torch.Tensor, zero: torch.Tensor, codes: tuple[int, int]
) -> str:
    """Write S3's log2 quantization in float ops, in the order the simulation computes."""

    def scalar(value: torch.Tensor | float) -> str:
        return writer.constant(np.asarray(value, dtype=np.float32))

    log = writer.op("Log", writer.op("Add", x, scalar(LOG_EPSILON)))
    line = writer.op(
        "Add", writer.op("Mul", log, scalar(1.0 / (math.log(2.0) * step))), scalar(zero)
    )
    code = writer.op("Clip", writer.op("Round", line), scalar(codes[0]), scalar(codes[1]))
    exponent = writer.op("Mul", writer.op("Sub", code, scalar(zero)), scalar(step))
    return str(writer.op("Pow", scalar(2.0), exponent))


def _write_int4(
    writer: Writer, graph: fx.GraphModule, node: fx.Node, transposed: set[fx.Node]
) -> str:
    """Write a weight's codes as INT4 with a DequantizeLinear only: half the bytes of INT8."""
    x, scale, _, axis, *_ = operands(node)
    value, step = get_constant(graph, x), get_constant(graph, scale)
    assert value is not None and step is not None
    codes = (value / along_axis(step, value.ndim, axis)).round()
    if node in transposed:
        codes, axis = codes.T, 1 - axis % 2
    name = writer.int4_constant(codes.numpy(), f"{x.target}_int4")
    return str(writer.op("DequantizeLinear", name, scale, axis=axis))


def _transposed_weights(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the constants that are linear weights and nothing else: stored as [K, N].

    Their fake-quantize calls are included.

    TensorRT documents per-channel axis 1 of [K, N] for a MatMul, and nothing is then between the
    pair and the MatMul.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        quantized = node.target is FAKE_QUANTIZE and operands(node)[0].op == "get_attr"
        if node.op != "get_attr" and not quantized:
            continue
        uses = [(u, i) for u in node.users for i, a in enumerate(u.args) if a is node]
        covered = {u for u, _ in uses} == set(
            node.users
        )  # a use inside a list of operands is none of these
        if (
            uses
            and covered
            and all((u.target is LINEAR and i == 1) or (u in found and i == 0) for u, i in uses)
        ):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.ndim == 2:
                found.add(node)
    # A call whose constant is read otherwise, too, keeps the constant's own layout.
    return {n for n in found if n.op == "get_attr" or operands(n)[0] in found}


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
