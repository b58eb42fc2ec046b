"""Inputs and outputs of a model: names, types and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from trtq.graph.nodes import operands
from trtq.graph.tensor_spec import SIGNATURE, Signature, SizeRange, TensorSpec

__all__ = [
    "BATCH",
    "INPUT",
    "OUTPUT",
    "RANGES",
    "SIGNATURE",
    "SPEC",
    "SYMBOL",
    "Axes",
    "Signature",
    "SizeRange",
    "TensorSpec",
    "input_names",
    "output_names",
    "placeholders",
    "results",
    "sign_",
    "signature_of",
]

INPUT = "input"
OUTPUT = "output"
BATCH = "batch"
SPEC = "trtq_spec"  # in the meta of a placeholder and, as a tuple, of the output node
RANGES = "trtq_ranges"  # in the meta of the output node
Axes = Mapping[str, Sequence[int | str]]  # of an input: sizes, and names of open axes
SYMBOL = re.compile(r"\b[su]\d+\b")  # torch's name of a size that no input axis has


def placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the inputs of a graph, in order."""
    return [n for n in graph.graph.nodes if n.op == "placeholder"]


def results(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes whose values a graph gives, in order."""
    given = operands(graph.graph.output_node())[0]
    return list(given) if isinstance(given, (list, tuple)) else [given]


def input_names(graph: fx.GraphModule) -> list[str]:
    """Return the names of a captured graph's inputs, in order."""
    return [_spec_of(n, INPUT).name for n in placeholders(graph)]


def output_names(graph: fx.GraphModule) -> list[str]:
    """Return the names of a captured graph's outputs, in order."""
    return [t.name for t in _outputs(graph)]


def signature_of(graph: fx.GraphModule) -> Signature:
    """Return the signature of a captured graph, as :func:`sign_` wrote it into its nodes."""
    return Signature(
        inputs=tuple(_spec_of(n, INPUT) for n in placeholders(graph)),
        outputs=tuple(_outputs(graph)),
        ranges=dict(graph.graph.output_node().meta.get(RANGES, {})),
    )


def sign_(
    graph: fx.GraphModule,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    ranges: dict[str, SizeRange],
) -> Signature:
    """Write names, types and shapes into the nodes of a captured graph, and return them.

    Args:
        graph: every node carries ``meta["val"]``.
        inputs: what each placeholder is.
        outputs: the name of each output.
        ranges: of the open axes.

    Returns:
        The signature; the open size of an output is the name of an axis, a formula of such names,
        or ``NAME_axisI`` where it follows from the data.
    """
    named = dict[str, str]()
    for node, spec in zip(placeholders(graph), inputs, strict=True):
        node.meta[SPEC] = spec
        for size, name in zip(node.meta["val"].shape, spec.shape, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(name, str):
                named.setdefault(str(size), name)
    output = graph.graph.output_node()
    output.meta[SPEC] = tuple(
        TensorSpec(
            name=name,
            dtype=str(node.meta["val"].dtype).removeprefix("torch."),
            shape=tuple(
                _size(d, named, f"{name}_axis{i}") for i, d in enumerate(node.meta["val"].shape)
            ),
        )
        for name, node in zip(outputs, results(graph), strict=True)
    )
    output.meta[RANGES] = ranges
    return signature_of(graph)


def _size(size: int | torch.SymInt, named: dict[str, str], otherwise: str) -> int | str:
    """Return a size: a number, the name of an axis, a formula of such names, or ``otherwise``."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    text = str(size)
    if text in named:
        return named[text]
    if any(symbol not in named for symbol in SYMBOL.findall(text)):
        return otherwise
    return SYMBOL.sub(lambda symbol: named[symbol[0]], text)


def _outputs(graph: fx.GraphModule) -> list[TensorSpec]:
    specs = graph.graph.output_node().meta.get(SPEC)
    if specs is not None:
        return list(specs)
    nodes = results(graph)
    names = [OUTPUT] if len(nodes) == 1 else [f"{OUTPUT}.{i}" for i in range(len(nodes))]
    return [_plain(node, name) for node, name in zip(nodes, names, strict=True)]


def _spec_of(node: fx.Node, name: str) -> TensorSpec:
    spec = node.meta.get(SPEC)
    return spec if isinstance(spec, TensorSpec) else _plain(node, name)


def _plain(node: fx.Node, name: str) -> TensorSpec:
    """Return what a node that nobody signed gives: part of a graph, or one made by hand."""
    value = node.meta["val"]
    shape = tuple(
        int(d) if isinstance(d, int) else (BATCH if i == 0 else str(d))
        for i, d in enumerate(value.shape)
    )
    return TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape)
