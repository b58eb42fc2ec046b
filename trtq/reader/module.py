"""An ONNX graph as an nn.Module: a module for each node, which holds the node's constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import nn

from trtq.graph.inputs import ModelInputs
from trtq.graph.onnx_origin import OnnxOrigin
from trtq.graph.opaque import onnx_node, packed
from trtq.reader.call import Call, attributes_of, reader_of, reads_of
from trtq.reader.example import inputs_of
from trtq.reader.host import on_numbers
from trtq.reader.names import module_names
from trtq.reader.opaque_model import opaque_model
from trtq.reader.port import Port, port_of
from trtq.reader.values import HALVES, LARGEST_HOST, Array, UnreadError, Value


class OnnxNode(nn.Module):
    """One node; its constants are parameters and buffers.

    Attributes:
        opaque: why ONNX Runtime computes it; "" where torch does.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        opset: int,
        constants: Mapping[int, Array],
        domains: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.node, self.opset, self.domains = node, opset, domains
        self.attributes = attributes_of(node)
        self.read = reader_of(node)
        self.opaque = "" if self.read is not None else "no row of the table reads it"
        self.outer = tuple(dict.fromkeys(r for r in reads_of(node) if r and r not in node.input))
        self.held: dict[int, str] = {}
        self.host: dict[int, Array] = {}
        self.arrays = dict(constants)
        for position, array in constants.items():
            self._hold(position, array)

    def _hold(self, position: int, array: Array) -> None:
        """Keep a constant: as a tensor, and as numbers where it is small."""
        array = np.asarray(array, np.float32) if array.dtype == np.float16 else np.array(array)
        name = _CONSTANTS.get(position, f"constant_{position}")
        tensor = torch.from_numpy(array)
        if array.dtype == np.float32 and array.ndim > 0:
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=True))
        else:
            self.register_buffer(name, tensor)
        self.held[position] = name
        if array.size <= LARGEST_HOST:
            self.host[position] = array

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that the node reads, those of its branches last."""
        return (*self.node.input, *self.outer)

    def values(self, given: Sequence[Value | None]) -> list[Value | None]:
        """Return the operands with the node's own constants."""
        full = list(given)
        for position, name in self.held.items():
            tensor = getattr(self, name)
            full[position] = Value(tensor, self.host.get(position), tensor.dtype)
        return full

    def forward(self, *given: Value | None) -> list[Value]:
        """Return the results of the node."""
        call = Call(self.node, self.opset, self.values(given), self.attributes)
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

    def _by_runtime(self, call: Call) -> list[Value]:
        """Let ONNX Runtime compute the node."""
        model, places = opaque_model(call, self.outer, self.domains)
        results = onnx_node([call.x(p) for p in places], packed(model))
        made = iter(results)
        none = torch.zeros(0)
        return [Value.of(next(made) if name else none) for name in self.node.output]


_CONSTANTS = {1: "weight", 2: "bias"}


class OnnxModule(nn.Module):
    """A model that was read from ONNX.

    Attributes:
        inputs, outputs: of the file, in its order.
        paths: of each node's module, in the order in which they run.
        origin: what the written file keeps of this one.
        notes: what a user must know about the file.
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
        super().__init__()
        self.inputs = tuple(port_of(v) for v in graph.input)
        self.outputs = tuple(port_of(v) for v in graph.output)
        self.notes: list[str] = []
        self.nodes = list(graph.node)
        self.paths = module_names(self.nodes)
        pairs = zip(self.paths, self.nodes, strict=True)
        names = {path: (node.name, node.op_type) for path, node in pairs if node.name}
        self.origin = OnnxOrigin(names, dict(metadata or {}))
        self._last = _last_reads(self.nodes, {o.name for o in self.outputs})
        for path, node in zip(self.paths, self.nodes, strict=True):
            reads = [*node.input, *dict.fromkeys(r for r in reads_of(node) if r not in node.input)]
            own = {i: constants[n] for i, n in enumerate(reads) if n in constants}
            self._add(path, OnnxNode(node, opset, own, domains))
        self._constant_outputs(constants)

    def _add(self, path: str, module: nn.Module) -> None:
        *folders, leaf = path.split(".")
        owner: nn.Module = self
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.add_module(leaf, module)

    def _constant_outputs(self, constants: Mapping[str, Array]) -> None:
        """Keep outputs that depend on no input."""
        self.fixed: dict[str, str] = {}
        for i, port in enumerate(self.outputs):
            if port.name in constants:
                self.register_buffer(
                    f"output_{i}", torch.from_numpy(np.array(constants[port.name]))
                )
                self.fixed[port.name] = f"output_{i}"

    def model_inputs(self, size: tuple[int, int, int] | None) -> ModelInputs:
        """Return an example of every input, and the open axes that the file declares.

        Args:
            size: (C, H, W) of images, where the file leaves them open.
        """
        return inputs_of(self, self.inputs, size)

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs by name, in the order of the file.

        Args:
            inputs: in the order of the file, of its types and shapes.
        """
        values: dict[str, Value] = {
            name: Value.of(getattr(self, buffer)) for name, buffer in self.fixed.items()
        }
        for port, tensor in zip(self.inputs, inputs, strict=True):
            wide = tensor.float() if port.dtype in HALVES.values() else tensor
            values[port.name] = Value.of(wide)
        for i, (path, node) in enumerate(zip(self.paths, self.nodes, strict=True)):
            module = self.get_submodule(path)
            assert isinstance(module, OnnxNode)
            results = module(*(values.get(n) if n else None for n in module.reads))
            values.update(zip(node.output, results, strict=False))
            for name in self._last.get(i, ()):
                values.pop(name, None)
        return {port.name: self._answer(port, values[port.name]) for port in self.outputs}

    def _answer(self, port: Port, value: Value) -> torch.Tensor:
        """Return an output in the type of the file."""
        tensor = value.as_tensor()
        return tensor.to(port.dtype) if port.dtype in HALVES.values() else tensor

    def opaque_nodes(self) -> dict[str, str]:
        """Return the paths of the nodes that ONNX Runtime computes, each with the reason."""
        return {
            path: module.opaque
            for path in self.paths
            if isinstance(module := self.get_submodule(path), OnnxNode) and module.opaque
        }


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
