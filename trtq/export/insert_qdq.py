"""Insertion of Q/DQ pairs into an ONNX file of any origin, from given ranges.

The pairs are placed where TensorRT's implicit quantization would have used the ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtq.errors import ExportError
from trtq.export.lint_view import COMPUTE, drop_unread_, weight_axis
from trtq.export.onnx_file import opset_of
from trtq.onnx_node import label_of, names_of
from trtq.onnx_walk import QDQ, REORDER, Scope, all_nodes, branches, scopes

OLDEST_PER_CHANNEL = 13  # the opset from which a pair may have a scale for each channel
PARTS = ("scale", "zero", "codes", "values")  # tensors of a pair, behind the name of its tensor


@dataclass(slots=True)
class Inserted:
    """The result.

    Attributes:
        model: with Q/DQ pairs.
        activations: scale by tensor name, of the tensors that got a pair.
        weights: amax of each output channel, by weight name; of a weight that is read along two
            axes the second as NAME@AXIS.
        axes: the axis of those channels, by weight name.
        missing: layers left in float, and why.
        unused: ranges that nothing reads.
        notes: what else was done.
    """

    model: onnx.ModelProto
    activations: dict[str, float] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def insert_qdq(model: onnx.ModelProto, scales: Mapping[str, float]) -> Inserted:
    """Return a copy of ``model`` with Q/DQ pairs where the ranges allow it.

    The input and the weight of every Conv, Gemm and MatMul whose input has a range get a pair, and
    so does the shortcut of every Add after a quantized Conv. A weight may be computed from
    constants (a Cast, a Transpose): it is evaluated. A tensor without a range takes that of the
    tensor whose values it holds in another order. The range of a weight is the largest magnitude of
    each output channel, as in TensorRT itself; codes are -128 to 127, the zero point is 0.

    Args:
        model: float; not changed.
        scales: by tensor name; 0 stands for a tensor that was never active.

    Raises:
        ExportError: it has Q/DQ pairs already, or its opset has no scale per channel.
    """
    if any(n.op_type in QDQ for n in all_nodes(model)):
        raise ExportError(
            "Cannot quantize this ONNX file",
            "it has Q/DQ pairs already",
            "Give the float file that was calibrated",
        )
    opset = opset_of(model)
    if opset < OLDEST_PER_CHANNEL:
        raise ExportError(
            "Cannot quantize this ONNX file",
            f"its opset is {opset}, and scales per channel exist from {OLDEST_PER_CHANNEL} on",
            "Convert it: onnx.version_converter.convert_version(model, 13)",
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    work = _Work(Inserted(model=result), scales, scopes(result)[0])
    for node in result.graph.node:
        if node.op_type in COMPUTE:
            work.layer(node)
        for branch in branches(node):
            work.branch(branch, node.name)
    for node in result.graph.node:
        if node.op_type == "Add":
            work.shortcut(node)
    work.finish()
    return work.done


class _Work:
    """One insertion.

    Attributes:
        made: names of dequantized tensors: by tensor for activations, by ``NAME@AXIS`` for weights.
        pairs: Q and DQ nodes by the tensor that they quantize, to be placed behind its maker.
        quantized: outputs of quantized convolutions.
        evaluated: values of weights that nodes made, by the name that they are stored under.
        borrowed: how many tensors took the range of another.
        used: tensors whose ranges were read.
        taken: names of all tensors.
    """

    def __init__(self, done: Inserted, scales: Mapping[str, float], scope: Scope) -> None:
        self.done, self.scales, self.graph, self.scope = done, scales, done.model.graph, scope
        self.made: dict[str, str] = {}  # the dequantized name of a tensor or a weight
        self.pairs: dict[str, list[onnx.NodeProto]] = {}
        self.quantized: set[str] = set()  # outputs of quantized convolutions
        self.evaluated: dict[str, np.ndarray] = {}  # weights that nodes made
        self.taken = set(scope.local)
        self.borrowed = 0
        self.used: set[str] = set()

    def layer(self, node: onnx.NodeProto) -> None:
        """Quantize input and weight of one layer, or say why not."""
        name, data, weight = label_of(node), node.input[0], node.input[1]
        if self.scope.is_constant(data):
            self.done.missing[name] = "its input is a constant"
            return
        values = self.scope.value(weight)
        if values is None:
            why = "both operands are activations: TensorRT's implicit INT8 does not quantize them"
            self.done.missing[name] = (
                "its weight cannot be evaluated" if self.scope.is_constant(weight) else why
            )
            return
        if self.scale(data) <= 0.0:
            why = "was never active in calibration" if data in self.scales else "has no range"
            self.done.missing[name] = f"its input {data} {why}"
            return
        if values.dtype != np.float32:
            self.done.missing[name] = (
                f"its weight is of type {values.dtype}; pairs of TensorRT's implicit INT8 are FP32"
            )
            return
        if not np.isfinite(values).all():
            self.done.missing[name] = "its weight has values that are NaN or infinite"
            return
        weight = self.stored(weight, values)
        node.input[0], node.input[1] = (
            self.activation(data),
            self.weight(weight, values, weight_axis(node, values.ndim)),
        )
        if node.op_type == "Conv":
            self.quantized.add(node.output[0])

    def stored(self, weight: str, values: np.ndarray) -> str:
        """Return the name under which a weight is a stored constant.

        A weight that a node makes becomes one in :meth:`store`.
        """
        maker = self.scope.producer.get(weight)
        if maker is None:
            return weight
        name = weight if len(maker.output) == 1 else f"{weight}/value"
        self.evaluated[name] = values
        return name

    def branch(self, graph: onnx.GraphProto, owner: str) -> None:
        """List the layers inside a branch: they remain in float."""
        for node in graph.node:
            if node.op_type in COMPUTE:
                self.done.missing[label_of(node)] = (
                    f"it is inside a branch of {owner}, where nothing is quantized"
                )
            for inner in branches(node):
                self.branch(inner, node.name)

    def scale(self, name: str) -> float:
        """Return the scale of a tensor, 0 without one.

        A tensor that holds another one's values in a different order has that one's scale.
        """
        return self.scales.get(self.ranged(name), 0.0)

    def ranged(self, name: str) -> str:
        """Return the nearest tensor with these values, in any order, that has a range.

        Where none has a range, this is the tensor itself. The search follows operands through ops
        that
        reorder: Reshape, Transpose and the like.
        """
        now = name
        while now not in self.scales:
            node = self.scope.maker(now)
            if node is None or node.op_type not in REORDER:
                return name
            now = node.input[0]
        return now

    def shortcut(self, node: onnx.NodeProto) -> None:
        """Quantize the other operand of an Add after a quantized convolution.

        The sum then fuses into the convolution.
        """
        behind = [i for i, n in enumerate(node.input) if n in self.quantized]
        if len(behind) != 1:
            return
        other = 1 - behind[0]
        name = node.input[other]
        if not self.scope.is_constant(name) and self.scale(name) > 0.0:
            node.input[other] = self.activation(name)

    def activation(self, name: str) -> str:
        """Return the dequantized name of a tensor; every reader shares one pair."""
        if name not in self.made:
            ranged = self.ranged(name)
            self.borrowed += ranged != name
            self.used.add(ranged)
            scale = np.float32(self.scales[ranged])
            self.made[name] = self._pair(name, scale, np.zeros((), dtype=np.int8), None)
            self.done.activations[name] = float(scale)
        return self.made[name]

    def weight(self, name: str, values: np.ndarray, axis: int) -> str:
        """Return the dequantized name of a weight; all readers along one axis share a pair.

        Args:
            name: of the weight.
            values: float32.
            axis: of its output channels: each has a scale of its own, amax / 127. A channel of
                zeros has 1 / 127.
        """
        key = f"{name}@{axis}"
        if key not in self.made:
            amax = (
                np.abs(values)
                .max(axis=tuple(d for d in range(values.ndim) if d != axis))
                .astype(np.float32)
            )
            amax = np.where(
                amax > 0, amax, np.float32(1.0)
            )  # a channel of zeros: any scale holds it
            scale = (amax / np.float32(127.0)).astype(np.float32)
            self.made[key] = self._pair(
                name,
                scale,
                np.zeros(scale.shape, dtype=np.int8),
                axis,
                tag="" if axis == 0 else f".{axis}",
            )
            label = f"{name}@{axis}" if name in self.done.weights else name
            self.done.weights[label], self.done.axes[label] = amax, axis
        return self.made[key]

    def _pair(
        self, name: str, scale: np.ndarray, zero: np.ndarray, axis: int | None, *, tag: str = ""
    ) -> str:
        base = self._free(f"{name}{tag}")
        self.graph.initializer.extend(
            [
                numpy_helper.from_array(np.asarray(scale), f"{base}/scale"),
                numpy_helper.from_array(zero, f"{base}/zero"),
            ]
        )
        rest = [f"{base}/scale", f"{base}/zero"]
        pair = [
            helper.make_node(
                "QuantizeLinear", [name, *rest], [f"{base}/codes"], name=f"{base}/QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear",
                [f"{base}/codes", *rest],
                [f"{base}/values"],
                name=f"{base}/DequantizeLinear",
            ),
        ]
        for node in pair if axis is not None else ():
            node.attribute.append(helper.make_attribute("axis", axis))
        self.pairs.setdefault(name, []).extend(pair)
        return f"{base}/values"

    def _free(self, base: str) -> str:
        """Return a start of names that no tensor of the file has."""
        while self.taken & {f"{base}/{part}" for part in PARTS}:
            base += "_"
        self.taken |= {f"{base}/{part}" for part in PARTS}
        return base

    def finish(self) -> None:
        """Place every pair after what it reads, in an order that every parser accepts."""
        self.store()
        copies = []
        for node in self._ordered():
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(copies)
        if self.evaluated:
            drop_unread_(self.done.model)  # what fed them
        self.done.unused = [name for name in self.scales if name not in self.used]
        if self.borrowed:
            self.done.notes.append(
                f"{self.borrowed} tensors take the range of the tensor whose values they hold "
                "in another order"
            )

    def _ordered(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes, each pair behind the node that makes what it reads."""
        given = names_of((*self.graph.input, *self.graph.initializer))
        for name, pair in self.pairs.items():
            if name in given:
                yield from pair
        for node in self.graph.node:
            yield node
            for name in node.output:
                if name not in given:
                    yield from self.pairs.get(name, [])

    def store(self) -> None:
        """Store the weights that nodes made from constants as constants.

        Parsers before 10 quantize no other weights.
        """
        for name, values in self.evaluated.items():
            self.graph.initializer.append(
                numpy_helper.from_array(np.array(values, order="C"), name)
            )
            if name in self.scope.producer:
                self.graph.node.remove(self.scope.producer[name])
        if self.evaluated:
            self.done.notes.append(
                f"{len(self.evaluated)} weights that Constant, Cast and the like made are "
                "stored as constants"
            )
