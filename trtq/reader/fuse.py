"""Operators that an exporter wrote as their formulas: each formula becomes one node again.

Files of an opset before 17 or 20 hold GELU, layer norm and others as a handful of nodes. As one
node they are placed, improved, counted and written like the same operator of any other model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import onnx
from onnx import helper

from trtq.free_names import free_name
from trtq.reader.call import OWN
from trtq.reader.formula import FORMULAS, GATES, Formula
from trtq.reader.links import Links, Match
from trtq.reader.values import Array

WRITTEN_AS = "trtq_written_as"  # the op type of the last node of a formula
Find = Callable[[Links, onnx.NodeProto], Iterator[Match]]


def fuse_(
    graph: onnx.GraphProto, constants: dict[str, Array], opset: int, kept: Collection[str]
) -> str:
    """Replace formulas by the operators that they compute.

    Args:
        graph: sorted, its constants folded.
        constants: by name; those of new nodes are added.
        opset: of ONNX's own domain.
        kept: names of nodes that are not changed.

    Returns:
        A note for the user, "" where nothing was replaced.
    """
    links = Links(graph, constants, opset, frozenset(kept))
    matches: list[Match] = []
    for node in graph.node:
        find = _FINDERS.get(node.op_type) if node.domain in OWN else None
        for match in find(links, node) if find is not None else ():
            if links.closed(match):
                links.taken |= match.nodes
                matches.append(match)
                break
    _replace_(graph, constants, matches)
    counts = Counter(m.op_type for m in matches)
    shown = ", ".join(f"{count} {op_type}" for op_type, count in sorted(counts.items()))
    return f"operators that the file has as formulas are read as one each: {shown}" if shown else ""


def _replace_(
    graph: onnx.GraphProto, constants: dict[str, Array], matches: Sequence[Match]
) -> None:
    """Put a node in the place of the last node of each formula, and remove the others."""
    gone = {name for match in matches for name in match.nodes}
    match_by_root = {match.root: match for match in matches}
    nodes = []
    for node in graph.node:
        match = match_by_root.get(node.output[0]) if node.output else None
        if match is not None:
            constants.update(match.constants)
            inputs, attributes = [*match.inputs], dict(match.attributes)
            new = helper.make_node(match.op_type, inputs, [match.root], node.name, **attributes)
            new.metadata_props.add(key=WRITTEN_AS, value=node.op_type)
            nodes.append(new)
        elif not node.output or node.output[0] not in gone:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def written_as(node: onnx.NodeProto) -> str:
    """Return the op type that a node has in its file: of a formula, that of the last node."""
    return next((p.value for p in node.metadata_props if p.key == WRITTEN_AS), node.op_type)


def _activations(links: Links, gate: onnx.NodeProto) -> Iterator[Match]:
    """Yield the activations that a gate belongs to, the largest formula first."""
    fitting = [f for f in FORMULAS if f.gates[0] == gate.op_type and links.has(gate, f.where)]
    matches = [m for formula in fitting for m in _matches(links, gate, formula)]
    yield from sorted(matches, key=lambda m: -len(m.nodes))


def _matches(links: Links, gate: onnx.NodeProto, formula: Formula) -> Iterator[Match]:
    """Yield where a gate and the arithmetic around it are a formula.

    Args:
        links: of the graph.
        gate: the first node of the formula's function.
        formula: what is looked for.
    """
    gates = [gate]
    for op_type in formula.gates[1:]:
        following = links.only_reader(gates[-1].output[0], op_type)
        if following is None:
            return
        gates.append(following)
    for x in links.sources(gate.input[0]):
        inner: set[str] = set()
        if not links.same(links.polynomial(gate.input[0], {x: (1, 0)}, inner), formula.inner):
            continue
        atoms = {x: (1, 0), gates[-1].output[0]: (0, 1)}
        for root in links.results(gates[-1].output[0]):
            used = {g.output[0] for g in gates} | inner
            if links.same(links.polynomial(root, atoms, used), formula.outer):
                yield Match(formula.op_type, root, (x,), used - {x}, formula.attributes)


def _layer_norms(links: Links, mean: onnx.NodeProto) -> Iterator[Match]:
    """Yield the layer norm that a mean of squares belongs to."""
    axes = links.last_axes(mean)
    used = {mean.output[0]}
    x = _square_of_centred(links, mean, used) if axes else None
    deviation = _inverse(links, mean.output[0], used) if x is not None else None
    if x is None or deviation is None:
        return
    name, epsilon, divides = deviation
    root = links.only_reader(name, "Div" if divides else "Mul")
    other = _other(root, name) if root is not None else ""
    if root is None or _centred(links, other, mean, used) != x:
        return
    used.add(root.output[0])
    attributes = {"axis": -len(axes), "epsilon": epsilon}
    match = Match("LayerNormalization", root.output[0], (x,), used, attributes)
    yield _with_affine(links, match, len(axes))


def _square_of_centred(links: Links, mean: onnx.NodeProto, used: set[str]) -> str | None:
    """Return x of a mean of (x - mean(x))^2."""
    square = links.maker(mean.input[0], "Pow", "Mul")
    if square is None:
        return None
    base, exponent = square.input
    if exponent != base and (square.op_type == "Mul" or links.number(exponent) != 2):
        return None
    used.add(square.output[0])
    return _centred(links, base, mean, used)


def _centred(links: Links, name: str, mean: onnx.NodeProto, used: set[str]) -> str | None:
    """Return x where a tensor is x - mean(x), over the axes of another mean."""
    difference = links.maker(name, "Sub")
    middle = links.maker(difference.input[1], "ReduceMean") if difference is not None else None
    if difference is None or middle is None or middle.input[0] != difference.input[0]:
        return None
    if links.last_axes(middle) != links.last_axes(mean):
        return None
    used |= {difference.output[0], middle.output[0]}
    return str(difference.input[0])


def _inverse(links: Links, variance: str, used: set[str]) -> tuple[str, float, bool] | None:
    """Return the deviation that follows from a variance.

    Returns:
        Its tensor, epsilon, and whether it divides; else it is the inverse.
    """
    add = links.only_reader(variance, "Add")
    epsilon = links.number(_other(add, variance)) if add is not None else None
    root = links.only_reader(add.output[0], "Sqrt", "Pow") if add is not None else None
    if add is None or epsilon is None or root is None:
        return None
    used |= {add.output[0], root.output[0]}
    if root.op_type == "Pow":
        exponent = links.number(root.input[1])
        return (root.output[0], epsilon, exponent == 0.5) if exponent in (0.5, -0.5) else None
    inverse = links.only_reader(root.output[0], "Reciprocal")
    if inverse is None:
        return root.output[0], epsilon, True
    used.add(inverse.output[0])
    return inverse.output[0], epsilon, False


def _other(node: onnx.NodeProto, name: str) -> str:
    """Return the operand of a node of two that is not ``name``; of a quotient the first."""
    first, second = node.input
    return str(second if first == name and node.op_type != "Div" else first)


def _with_affine(links: Links, match: Match, count: int) -> Match:
    """Return a norm with the product and the sum with constants that follow it.

    Args:
        links: of the graph.
        match: the norm.
        count: its axes; constants run along these alone.
    """
    root, used, inputs, new_constants = (
        match.root,
        set(match.nodes),
        [*match.inputs],
        dict[str, Array](),
    )
    for op_type in ("Mul", "Add"):
        node = links.only_reader(root, op_type)
        name = _other(node, root) if node is not None else ""
        flat = _flat(links.constants.get(name), count)
        if node is None or flat is None:
            inputs.append("")
            continue
        own = free_name(f"{name}/affine", {*links.constants, *links.made, *new_constants})
        new_constants[own], root = flat, node.output[0]
        inputs.append(own)
        used.add(root)
    while not inputs[-1]:
        inputs.pop()
    return Match(match.op_type, root, tuple(inputs), used, match.attributes, new_constants)


def _flat(constant: Array | None, count: int) -> Array | None:
    """Return a constant along the last ``count`` axes, None where it has more or fewer."""
    if constant is None or constant.ndim < count:
        return None
    lead = constant.shape[: constant.ndim - count]
    return constant.reshape(constant.shape[len(lead) :]) if set(lead) <= {1} else None


def _softmaxes(links: Links, total: onnx.NodeProto) -> Iterator[Match]:
    """Yield the softmax that a sum of exponentials belongs to."""
    axes = links.last_axes(total)
    exp = links.maker(total.input[0], "Exp")
    if len(axes) != 1 or exp is None:
        return
    used = {total.output[0], exp.output[0]}
    name = total.output[0]
    inverse = links.only_reader(name, "Reciprocal")
    if inverse is not None:
        used.add(inverse.output[0])
        name = inverse.output[0]
    root = links.only_reader(name, "Mul" if inverse is not None else "Div")
    if root is None or _other(root, name) != exp.output[0]:
        return
    used.add(root.output[0])
    x = _below_largest(links, exp.input[0], axes, used) or exp.input[0]
    yield Match("Softmax", root.output[0], (x,), used, {"axis": -1})


def _below_largest(links: Links, name: str, axes: tuple[int, ...], used: set[str]) -> str | None:
    """Return x where a tensor is x - max(x)."""
    difference = links.maker(name, "Sub")
    largest = links.maker(difference.input[1], "ReduceMax") if difference is not None else None
    if difference is None or largest is None or largest.input[0] != difference.input[0]:
        return None
    if links.last_axes(largest) != axes:
        return None
    used |= {difference.output[0], largest.output[0]}
    return str(difference.input[0])


_FINDERS: Mapping[str, Find] = {
    **dict.fromkeys(GATES, _activations),
    "ReduceMean": _layer_norms,
    "ReduceSum": _softmaxes,
}
