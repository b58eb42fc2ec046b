"""Facts of the source ONNX file that a graph keeps, so that it is written back alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import fx

from trtq.graph.naming import module_name

ORIGIN = "trtq_onnx_origin"  # in the meta of the output node
NODE = "trtq_onnx_node"  # in the meta of a call: the name and the op type of its ONNX node


@dataclass(frozen=True, slots=True)
class OnnxOrigin:
    """An ONNX file beside its graph.

    Attributes:
        names: (name, op type) of the node behind each module path.
        metadata: what other tools wrote into the file.
    """

    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class FromOnnx(Protocol):
    """A module that was read from an ONNX file.

    Attributes:
        origin: what the written file keeps of it.
    """

    origin: OnnxOrigin


def mark_(graph: fx.GraphModule, origin: OnnxOrigin) -> None:
    """Write an origin into the nodes of a captured and named graph.

    Args:
        graph: its calls get the name and the op type of their ONNX node in ``meta``.
        origin: of the module that was captured.
    """
    graph.graph.output_node().meta[ORIGIN] = origin
    for node in graph.graph.nodes:
        onnx_node = origin.names.get(module_name(node))
        if node.op == "call_function" and onnx_node is not None:
            node.meta[NODE] = onnx_node


def origin_of(graph: fx.GraphModule) -> OnnxOrigin:
    """Return the origin of a graph, an empty one for a graph that comes from no file."""
    origin = graph.graph.output_node().meta.get(ORIGIN)
    return origin if isinstance(origin, OnnxOrigin) else OnnxOrigin()


def onnx_node_of(node: fx.Node) -> tuple[str, str] | None:
    """Return the name and the op type of the ONNX node that a call comes from."""
    onnx_node = node.meta.get(NODE)
    return onnx_node if isinstance(onnx_node, tuple) else None
