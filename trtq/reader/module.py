"""An ONNX graph as an nn.Module: a module for each node, which holds the node's constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import nn

from trtq.export.tables import tables_of
from trtq.graph.inputs import ModelInputs
from trtq.graph.onnx_origin import OnnxOrigin
from trtq.graph.opaque import onnx_node, packed
from trtq.graph.signature import Axes
from trtq.onnx_constants import array_of, constant_of
from trtq.onnx_node import label_of
from trtq.quant.imported_ranges import Foreign
from trtq.reader.call import Call, attributes_of, operands_of, reader_of, reads_of
from trtq.reader.example import axes_of, inputs_of
from trtq.reader.fit import fitted
from trtq.reader.fuse import written_as
from trtq.reader.host import on_numbers
from trtq.reader.names import FIXED, module_names
from trtq.reader.opaque_model import known_sizes, opaque_model
from trtq.reader.port import Port, port_of
from trtq.reader.values import HALVES, LARGEST_HOST, Array, UnreadError, Value


class OnnxNode(nn.Module):
    """One node; its constants are parameters and buffers.

    Args:
        node: of the file.
        opset: of ONNX's own domain.
        constants: by the position of the operand.
        domains: opset by domain.
        matrices: the weights that nodes have so far, by array: nodes that read one share it.

    Attributes:
        opaque: why ONNX Runtime computes it; "" where torch does.
        results: type and rank of each result that ONNX Runtime computed, once it has; else ().
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        opset: int,
        constants: Mapping[int, Array],
        domains: Mapping[str, int],
        matrices: dict[int, nn.Parameter],
    ) -> None:
        super().__init__()
        self.node, self.opset, self.domains = node, opset, domains
        self.matrices = matrices
        self.attributes = attributes_of(node)
        self.read = reader_of(node)
        self.opaque = "" if self.read is not None else "no row of the table reads it"
        self.reads = operands_of(node)
        self.outer = self.reads[len(node.input) :]
        self.held: dict[int, str] = {}
        self.host: dict[int, Array] = {}
        self.arrays = dict(constants)
        self.results: Sequence[tuple[torch.dtype, int]] = ()
        for position, array in constants.items():
            self._hold(position, array)
        if node.op_type == "If":
            for attribute in node.attribute:
                inner = _constants_of(attribute.g)
                branch = Nodes(attribute.g, opset=opset, constants=inner, domains=domains)
                self.add_module(attribute.name, branch)

    @property
    def label(self) -> str:
        """Its name in messages: its name in the file, and its operator."""
        return f"{label_of(self.node)} ({self.node.op_type})"

    def _hold(self, position: int, array: Array) -> None:
        """Keep a constant: as a tensor, and as numbers where it is small."""
        key = id(array)  # of an array that lives as long as the node
        tensor = _tensor(array)
        array = tensor.numpy()
        name = _CONSTANTS.get(position, f"constant_{position}")
        if array.dtype == np.float32 and array.ndim > 1:
            self.register_parameter(name, self.matrices.setdefault(key, nn.Parameter(tensor)))
        elif array.dtype == np.float32 and array.ndim > 0:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)
        self.held[position] = name
        if array.size <= LARGEST_HOST:
            self.host[position] = array

    def values(self, given: Sequence[Value | None]) -> list[Value | None]:
        """Return the operands with the node's own constants.

        Args:
            given: in order; None in the places of constants.
        """
        full = list(given)
        for position, name in self.held.items():
            tensor = getattr(self, name)
            full[position] = Value(tensor, self.host.get(position), tensor.dtype)
        return full

    def forward(self, *given: Value | None) -> list[Value]:
        """Return the results of the node."""
        call = Call(self.node, self.opset, self.values(given), self.attributes)
        if self.node.op_type == "If" and call.value(0).host is not None:
            return self._chosen(call)
        if not self.opaque:
            try:
                return self._read(call)
            except UnreadError as exc:
                self.opaque = str(exc)
        return self._by_runtime(call)

    def _read(self, call: Call) -> list[Value]:
        assert self.read is not None
        try:
            result = on_numbers(call)
        except NotImplementedError:
            result = None
        if result is None:
            result = self.read(call)
        several = result if isinstance(result, (list, tuple)) else [result]
        return [r if isinstance(r, Value) else Value.of(r) for r in several]

    def _chosen(self, call: Call) -> list[Value]:
        """Run the branch of an If whose condition follows from sizes."""
        name = "then_branch" if bool(call.value(0).number()) else "else_branch"
        branch = self.get_submodule(name)
        assert isinstance(branch, Nodes)
        pairs = zip(self.reads, call.given, strict=True)
        return branch.run({name: value for name, value in pairs if value is not None})

    def _by_runtime(self, call: Call) -> list[Value]:
        """Let ONNX Runtime compute the node."""
        model, places = opaque_model(call, self.outer, self.domains, self.results)
        sizes = known_sizes(call)
        results = onnx_node([call.x(p) for p in places], packed(model), sizes)
        self.results = tuple((r.dtype, r.ndim) for r in results)
        results_left = iter(results)
        none = torch.zeros(0)
        return [Value.of(next(results_left) if name else none) for name in self.node.output]


_CONSTANTS = {1: "weight", 2: "bias"}
# Types for constants whose own type NumPy or torch lacks, or that are computed in float32.
STORED = {
    **dict.fromkeys(("float16", "bfloat16"), np.float32),
    **dict.fromkeys(("int4", "int2"), np.int8),
    **dict.fromkeys(("uint4", "uint2"), np.uint8),
}


def _tensor(array: Array) -> torch.Tensor:
    """Return a constant as a tensor of its own, in a type that torch computes with."""
    return torch.from_numpy(
        np.array(array, STORED.get(array.dtype.name, array.dtype.name), order="C")
    )


class Nodes(nn.Module):
    """The nodes of a graph, one module each.

    Args:
        graph: sorted; only its nodes and outputs are read.
        opset: of ONNX's own domain.
        constants: by name.
        domains: opset by domain.

    Attributes:
        nodes: in the order in which they run.
        paths: of their modules.
        results: names of the tensors that the graph gives.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        *,
        opset: int,
        constants: Mapping[str, Array],
        domains: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.nodes = [n for n in graph.node if not set(n.output) <= set(constants)]
        self.paths = module_names(self.nodes)
        self.results = [v.name for v in graph.output]
        self._last = _last_reads(self.nodes, set(self.results))
        matrices: dict[int, nn.Parameter] = {}
        for path, node in zip(self.paths, self.nodes, strict=True):
            own = {i: constants[n] for i, n in enumerate(operands_of(node)) if n in constants}
            self._add(path, OnnxNode(node, opset, own, domains, matrices))
        self.fixed: dict[str, str] = {}
        for i, name in enumerate(self.results):
            if name in constants:  # it depends on no input
                self.fixed[name] = FIXED.format(i)
                self.register_buffer(self.fixed[name], _tensor(constants[name]))

    def _add(self, path: str, module: nn.Module) -> None:
        *folders, leaf = path.split(".")
        owner: nn.Module = self
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.add_module(leaf, module)

    def run(self, values: dict[str, Value]) -> list[Value]:
        """Run the nodes and return the results.

        Args:
            values: of the tensors that the nodes read and do not make; it is used up.
        """
        for name, buffer in self.fixed.items():
            values[name] = Value.of(getattr(self, buffer))
        for i, (path, node) in enumerate(zip(self.paths, self.nodes, strict=True)):
            module = self.get_submodule(path)
            assert isinstance(module, OnnxNode)
            results = module(*(values.get(n) if n else None for n in module.reads))
            values.update(zip(node.output, results, strict=False))
            for name in self._last.get(i, ()):
                values.pop(name, None)
        return [values[name] for name in self.results]


class OnnxModule(Nodes):
    """A model that was read from ONNX.

    Args:
        graph: from :func:`trtq.reader.prepare.prepare`.
        opset: of ONNX's own domain.
        constants: by name.
        domains: opset by domain.
        metadata: what other tools wrote into the file.

    Attributes:
        inputs, outputs: of the file, in its order.
        rows: of the smallest table that an input indexes, by the input's name.
        origin: what the written file keeps of this one.
        notes: what a user must know about the file.
        ranges: of a quantized file, by layer; None for a float one.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        *,
        opset: int,
        constants: Mapping[str, Array],
        domains: Mapping[str, int],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(graph, opset=opset, constants=constants, domains=domains)
        self.inputs = tuple(port_of(v) for v in graph.input)
        self.outputs = tuple(port_of(v) for v in graph.output)
        self.rows = tables_of(graph, {name: array.shape for name, array in constants.items()})
        self.notes: list[str] = []
        self.ranges: Foreign | None = None
        pairs = zip(self.paths, self.nodes, strict=True)
        names = {path: (node.name, written_as(node)) for path, node in pairs if node.name}
        self.origin = OnnxOrigin(names, dict(metadata or {}))

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the order of the file."""
        return [port.name for port in self.inputs]

    @property
    def declared_axes(self) -> dict[str, tuple[int | str, ...]]:
        """The sizes of the inputs by name, open axes as texts."""
        return axes_of(self.inputs)

    def model_inputs(self, size: tuple[int, int, int] | None) -> ModelInputs:
        """Return an example of every input, and the open axes that the file declares.

        Args:
            size: (C, H, W) of images, where the file leaves them open; None where nobody gave one.

        Raises:
            UsageError: the size contradicts the file.
        """
        return inputs_of(self, self.inputs, size, self.rows)

    def fitted(self, given: object, axes: Axes) -> dict[str, torch.Tensor]:
        """Return an example of every input by name, with as many samples as the file takes.

        Args:
            given: one batch: a tensor, a tuple in the file's order, or a mapping.
            axes: sizes by name, open ones as texts, where they are other than the file's.

        Raises:
            CaptureError: an input is missing or unknown, or of another type, rank or size.
        """
        return fitted(self.inputs, given, {**self.declared_axes, **axes})

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs by name, in the order of the file.

        Args:
            inputs: in the order of the file, of its types and shapes.

        Returns:
            In the types of the file; FP16 and BF16 are computed in float32.
        """
        values: dict[str, Value] = {}
        for port, tensor in zip(self.inputs, inputs, strict=True):
            wide = tensor.float() if port.dtype in HALVES.values() else tensor
            values[port.name] = Value.of(wide)
        results = self.run(values)
        return {
            port.name: _answer(port, value)
            for port, value in zip(self.outputs, results, strict=True)
        }

    def about(self) -> list[str]:
        """Return a line about the nodes that ONNX Runtime computes."""
        opaque = self.opaque_nodes()
        if not opaque:
            return []
        first, why = next(iter(opaque.items()))
        return [
            f"ONNX Runtime computes {len(opaque)} nodes, which remain in float; the "
            f"first is {first}: {why}"
        ]

    def opaque_nodes(self) -> dict[str, str]:
        """Return the names of the nodes that ONNX Runtime computes, each with the reason.

        They are known once the model has run: sizes and constants may choose the form of a node,
        or a branch without it.
        """
        onnx_nodes = (m for m in self.modules() if isinstance(m, OnnxNode) and m.results)
        return {m.node.name or m.node.output[0]: m.opaque for m in onnx_nodes}


def _answer(port: Port, value: Value) -> torch.Tensor:
    """Return an output in the type of the file."""
    tensor = value.as_tensor()
    return tensor.to(port.dtype) if port.dtype in HALVES.values() else tensor


def _constants_of(branch: onnx.GraphProto) -> dict[str, Array]:
    """Return the constants that a branch has of its own."""
    tensors = [*branch.initializer]
    tensors += [
        c for n in branch.node if n.op_type == "Constant" and (c := constant_of(n)) is not None
    ]
    arrays = {h.name: array_of(h) for h in tensors}
    return {name: array for name, array in arrays.items() if array is not None}


def _last_reads(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> dict[int, list[str]]:
    """Return the tensors that nothing reads after each node."""
    last: dict[str, int] = {}
    for i, node in enumerate(nodes):
        names = (*reads_of(node), *node.output)
        last |= {name: i for name in names if name and name not in outputs}
    by_node: dict[int, list[str]] = {}
    for name, i in last.items():
        by_node.setdefault(i, []).append(name)
    return by_node
