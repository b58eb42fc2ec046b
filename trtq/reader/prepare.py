"""Preparation of an ONNX model before it becomes a module.

It is checked, functions are inlined, what depends on no input is folded, formulas of operators
become one node each, and matmuls with a matrix of constants are marked as linear layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtq.errors import ModelError
from trtq.export.clamps import CLAMP
from trtq.export.onnx_file import METADATA_PREFIX, copy_model, opset_of, read_onnx, tidied
from trtq.export.sound import require_sound
from trtq.export.strip import strip_qdq
from trtq.export.tail import TAIL, pack_tail
from trtq.free_names import free_name
from trtq.onnx_constants import constant_of
from trtq.onnx_node import integer, label_of, names_of
from trtq.onnx_walk import (
    QDQ,
    RANDOM,
    Scope,
    all_nodes,
    all_tensors,
    branches,
    has_branches,
)
from trtq.reader.call import reads_of
from trtq.reader.doubles import singles_, widen_halves_
from trtq.reader.fixed_inputs import fix_inputs_
from trtq.reader.fuse import fuse_
from trtq.reader.ranges import Range, ranges_of
from trtq.reader.refusals import require_readable
from trtq.reader.tail import split_tail_
from trtq.reader.unsigned import sign_
from trtq.reader.values import HALVES, Array

OWN = ("", "ai.onnx")


@dataclass
class Prepared:
    """A model whose nodes compute what depends on its inputs, in the order of the file.

    Attributes:
        name: of the file, for messages.
        model: the rest of the file: metadata, opsets.
        graph: inputs, outputs and remaining nodes.
        constants: by name, those that remaining nodes read.
        notes: what a user must know.
        ranges: of its Q/DQ pairs, which are stripped, by node; empty for a float file.
        tail: the nodes that nothing here runs, and those behind them.
    """

    name: str
    model: onnx.ModelProto
    graph: onnx.GraphProto
    constants: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ranges: dict[str, list[Range]] = field(default_factory=dict)
    tail: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata that tools other than trtq wrote into the file."""
        props = self.model.metadata_props
        own = {p.key: p.value for p in props if not p.key.startswith(METADATA_PREFIX)}
        return {**own, TAIL: self.tail} if self.tail else own

    @property
    def opset(self) -> int:
        """Opset of ONNX's own domain."""
        return opset_of(self.model)

    @property
    def domains(self) -> dict[str, int]:
        """The opset of every domain."""
        opsets = {
            "" if o.domain == "ai.onnx" else o.domain: o.version for o in self.model.opset_import
        }
        return opsets | {n.domain: 1 for n in self.graph.node if n.domain not in (*OWN, *opsets)}


def prepare(
    source: Path | onnx.ModelProto, name: str = "", fixed: Mapping[str, Any] | None = None
) -> Prepared:
    """Return a model, ready to become a module.

    Args:
        source: a file, or a model in memory, which is not changed.
        name: of a model in memory, for messages.
        fixed: values of inputs that become constants, by name.

    Raises:
        UsageError: a value of ``fixed`` does not fit an input.
        ExportError: the file is missing, damaged or incomplete.
        ModelError: it is quantized in a form that has no float model, or of an unknown opset.
    """
    if isinstance(source, onnx.ModelProto):
        name = name or source.graph.name or "the ONNX model"
        require_sound(source, name)
        model = tidied(copy_model(source))
    else:
        name = name or str(source)
        model = read_onnx(source)[0]
    require_readable(model, name)
    constant = fix_inputs_(model.graph, fixed or {}, name)
    renamed = _rename_twins_(model.graph)
    ranges = {}
    if any(n.op_type in QDQ for n in all_nodes(model)):
        ranges = ranges_of(model)
        model = strip_qdq(model)
    prepared = Prepared(name, model, onnx.GraphProto(), ranges=ranges)
    prepared.notes += [*constant, *_notes(model), *renamed, *_activations(model)]
    prepared.graph.CopyFrom(model.graph)
    _sort_(prepared)
    _fold_(prepared)
    wide = singles_(prepared.graph, prepared.constants)
    prepared.notes += [wide] if wide else []
    widen_halves_(prepared.graph)
    tail, note = split_tail_(prepared.graph, prepared.constants, prepared.domains, name)
    if tail is not None:
        prepared.tail = pack_tail(tail)
        prepared.notes.append(note)
    fused = fuse_(prepared.graph, prepared.constants, prepared.opset, ranges)
    prepared.notes += [fused] if fused else []
    _linears_(prepared)
    _drop_unread_(prepared)
    signed = sign_(prepared.graph, prepared.constants, name)
    prepared.notes += [signed] if signed else []
    return prepared


def _notes(model: onnx.ModelProto) -> list[str]:
    """Return what a user must know about a file."""
    halves = {t.data_type for t in all_tensors(model)} & set(HALVES)
    names = " and ".join(sorted(TensorProto.DataType.Name(h) for h in halves))
    return [f"the constants of the file are {names}: it is computed in float32"] if names else []


def _activations(model: onnx.ModelProto) -> list[str]:
    """Return a line about the activations that Q/DQ pairs were, too."""
    clamps = [n for n in all_nodes(model) if n.name.endswith(CLAMP)]
    if not clamps:
        return []
    six = sum(n.op_type == "Clip" for n in clamps)
    kinds = " and ".join(
        f"{count} {kind}" for count, kind in ((len(clamps) - six, "ReLU"), (six, "ReLU6")) if count
    )
    first = clamps[0].name.removesuffix(CLAMP)
    return [
        f"unsigned codes from 0 make negative values 0: without the pairs they are activations "
        f"again, {kinds}; the first is {first}"
    ]


def _rename_twins_(graph: onnx.GraphProto) -> list[str]:
    """Give each node of a graph a name of its own; return what a user must know.

    Nodes without a name keep none.
    """
    taken = names_of(graph.node)
    seen: set[str] = set()
    renamed: list[tuple[str, str]] = []
    for node in graph.node:
        if node.name in seen:
            name = next(n for k in count(1) if (n := f"{node.name}_{k}") not in taken)
            renamed.append((node.name, name))
            node.name = name
            taken.add(name)
        seen.update({node.name} - {""})
    if not renamed:
        return []
    more = f", and {len(renamed) - 1} more" if len(renamed) > 1 else ""
    old, new = renamed[0]
    return [f"two nodes have the name {old}: the second is renamed {new}{more}"]


def _sort_(prepared: Prepared) -> None:
    """Put nodes behind those that make their operands.

    Raises:
        ModelError: they form a cycle.
    """
    nodes = list(prepared.graph.node)
    makers = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    needs = [{makers[r] for r in reads_of(n) if r in makers} for n in nodes]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return
    order: list[int] = []
    placed: set[int] = set()
    waiting = list(range(len(nodes)))
    while waiting:
        ready = [i for i in waiting if needs[i] <= placed]
        if not ready:
            node = nodes[waiting[0]]
            raise ModelError(
                f"Cannot read the ONNX file {prepared.name}",
                f"its nodes form a cycle through {label_of(node)} ({node.op_type})",
                "Export it again",
            )
        order += ready
        placed.update(ready)
        waiting = [i for i in waiting if i not in placed]
    del prepared.graph.node[:]
    prepared.graph.node.extend(nodes[i] for i in order)


def _fold_(prepared: Prepared) -> None:
    """Compute what depends on no input; branches whose condition is known replace their node.

    Results and initializers move to ``prepared.constants``; the nodes behind them disappear.
    """
    scope = Scope(prepared.graph, prepared.domains)
    kept: list[onnx.NodeProto] = []
    waiting = list(prepared.graph.node)
    while waiting:
        node = waiting.pop(0)
        chosen = _chosen_branch(node, scope)
        if chosen is not None:
            inlined = _inlined(prepared, node, chosen)
            waiting[:0] = inlined
            prepared.graph.node.extend(inlined)
            scope = Scope(prepared.graph, prepared.domains)
            continue
        values = _folded(node, scope)
        if values is None:
            kept.append(node)
        else:
            prepared.constants.update(values)
    for initializer in prepared.graph.initializer:
        value = scope.value(initializer.name)
        if value is not None:
            prepared.constants[initializer.name] = value
    del prepared.graph.node[:]
    prepared.graph.node.extend(kept)


def _folded(node: onnx.NodeProto, scope: Scope) -> dict[str, Array] | None:
    """Return the results of a node that depends on constants only, None for any other."""
    if has_branches(node) or node.op_type in RANDOM:
        return None
    if node.op_type == "Constant" and constant_of(node) is None:
        return None
    results = {o: scope.value(o) for o in node.output if o}
    if any(v is None for v in results.values()):
        return None
    return {o: v for o, v in results.items() if v is not None}


def _chosen_branch(node: onnx.NodeProto, scope: Scope) -> onnx.GraphProto | None:
    """Return the branch of an If whose condition is known."""
    if node.op_type != "If" or node.domain not in OWN:
        return None
    condition = scope.value(node.input[0])
    if condition is None:
        return None
    name = "then_branch" if bool(np.asarray(condition).reshape(-1)[0]) else "else_branch"
    branch: onnx.GraphProto = next(a.g for a in node.attribute if a.name == name)
    return branch


def _inlined(
    prepared: Prepared, node: onnx.NodeProto, branch: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Return the nodes of a branch in place of its If, under names that nothing else has.

    Args:
        prepared: its graph gets the constants of the branch.
        node: the If.
        branch: that is taken.
    """
    prefix = f"{label_of(node)}/"
    own = {o for n in branch.node for o in n.output if o} | names_of(branch.initializer)
    graph = prepared.graph
    taken = {o for n in graph.node for o in (*n.input, *n.output)}
    taken |= names_of((*graph.input, *graph.initializer, *graph.output))
    names = {name: free_name(prefix + name, taken) for name in sorted(own)}
    for initializer in branch.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(initializer)
        copy.name = names[initializer.name]
        prepared.graph.initializer.append(copy)
    nodes = []
    for inner in branch.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(inner)
        copy.name = prefix + inner.name
        _rename_(copy, names)
        nodes.append(copy)
    for result, value in zip(node.output, branch.output, strict=True):
        source = names.get(value.name, value.name)
        nodes.append(helper.make_node("Identity", [source], [result], name=f"{prefix}{result}"))
    return nodes


def _rename_(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(n, n) for n in node.input]
    node.output[:] = [names.get(n, n) for n in node.output]
    for branch in branches(node):
        hidden = {o for n in branch.node for o in n.output} | names_of(branch.input)
        inner = {k: v for k, v in names.items() if k not in hidden}
        for child in branch.node:
            _rename_(child, inner)
        for value in branch.output:
            value.name = inner.get(value.name, value.name)


def _linears_(prepared: Prepared) -> None:
    """Mark matmuls with a matrix of constants as linear layers, with the sum behind as their bias.

    Weights are stored as torch stores them: [outputs, inputs]. A MatMul gets the attribute
    ``linear``, and its bias as a third operand.
    """
    readers = Counter(r for n in prepared.graph.node for r in reads_of(n))
    readers.update(o.name for o in prepared.graph.output)
    adds = {i: n for n in prepared.graph.node if n.op_type == "Add" for i in n.input}
    gone, turned = list[onnx.NodeProto](), dict[str, str]()
    for node in prepared.graph.node:
        if node.domain not in OWN or not _is_float_matrix(prepared, node):
            continue
        if node.op_type == "Gemm":
            _turn_gemm_(prepared, node, turned)
        elif node.op_type == "MatMul":
            _transpose_(prepared, node, turned)
            node.attribute.append(helper.make_attribute("linear", 1))
            add = adds.get(node.output[0]) if readers[node.output[0]] == 1 else None
            bias = _bias_of(prepared, node, add) if add is not None else None
            if add is not None and bias is not None:
                node.input.append(bias)
                node.output[0] = add.output[0]
                gone.append(add)
    for add in gone:
        prepared.graph.node.remove(add)


def _is_float_matrix(prepared: Prepared, node: onnx.NodeProto) -> bool:
    """Whether the second operand of a matmul is a matrix of constants, and the first is none."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[0] in prepared.constants:
        return False
    value = prepared.constants.get(node.input[1])
    return value is not None and value.ndim == 2 and value.dtype.kind in "fV"


def _turn_gemm_(prepared: Prepared, node: onnx.NodeProto, turned: dict[str, str]) -> None:
    if integer(node, "transB", 0):
        return
    _transpose_(prepared, node, turned)
    kept = [a for a in node.attribute if a.name != "transB"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("transB", 1)])


def _transpose_(prepared: Prepared, node: onnx.NodeProto, turned: dict[str, str]) -> None:
    """Let a node read the transpose of its weight.

    Args:
        prepared: its constants get the transpose.
        node: whose second operand it is.
        turned: names of transposes by those of their weights; nodes that read one weight share it.
    """
    weight = node.input[1]
    if weight not in turned:
        turned[weight] = free_name(f"{weight}/transposed", prepared.constants)
        prepared.constants[turned[weight]] = np.ascontiguousarray(prepared.constants[weight].T)
    node.input[1] = turned[weight]


def _bias_of(prepared: Prepared, node: onnx.NodeProto, add: onnx.NodeProto) -> str | None:
    """Return the constant vector that a sum adds to the result of a matmul."""
    other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
    value = prepared.constants.get(other)
    wide = prepared.constants[node.input[1]].shape[0]
    return other if value is not None and value.shape == (wide,) else None


def _drop_unread_(prepared: Prepared) -> None:
    """Remove nodes and constants that no output needs."""
    needed = names_of(prepared.graph.output)
    kept: list[onnx.NodeProto] = []
    for node in reversed(prepared.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(reads_of(node))
    del prepared.graph.node[:]
    prepared.graph.node.extend(reversed(kept))
    prepared.constants = {n: v for n, v in prepared.constants.items() if n in needed}
