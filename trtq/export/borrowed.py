"""Export of the operators that no row of :mod:`trtq.ops` writes, one small program per op.

The ONNX form of each program is spliced into the file.

A region is one such op with the values behind it that ONNX has no type for (complex numbers,
computed sizes). It is exported by itself: decomposed into simpler ops where the table has those,
else by ``torch.onnx.export``, converted to an older opset where that is asked for. The quantized
rest of the graph never passes through torch's exporter. A model is written several times (float,
quantized, tried before calibration): torch sees each different region once a process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import checker, helper, inliner, numpy_helper, shape_inference, version_converter
from torch import fx

from trtq.errors import ExportError, first_line
from trtq.export.write_base import is_natural
from trtq.export.writer import UnsupportedOpError, Writer
from trtq.graph.dtypes import ONNX_TYPES
from trtq.graph.nodes import get_constant
from trtq.graph.normalize import normalize_
from trtq.graph.tracing import quiet
from trtq.quant.digest import update_with_tensor

OLDEST_OF_TORCH = 18
SOME_SIZE = 7  # stands for a size that only the data decides
MOST_PROGRAMS = 64  # kept for the next file; constants of a region are few and small
WriteGraph = Callable[[Writer, fx.GraphModule, Mapping[fx.Node, Any]], list[Any]]


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that are exported together.

    Attributes:
        nodes: in graph order, copies of computed sizes and complex numbers that they need included.
        inputs: nodes outside of the region whose tensors it reads.
        outputs: nodes of the region whose tensors are read outside of it.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def region_of(start: fx.Node) -> Region:
    """Return the region of an op that cannot be written by itself.

    The region includes copies of the values behind the op that ONNX has no type for, and the
    getitem calls that read one of several results.

    Args:
        start: the call.
    """
    core = (
        [start, *(u for u in start.users if u.target is operator.getitem)]
        if not is_writable(start)
        else [start]
    )
    copied = set(core) | set(_untyped_behind(core))
    order = [n for n in start.graph.nodes if n in copied]
    inputs = dict.fromkeys(i for n in order for i in n.all_input_nodes if i not in copied)
    outputs = [n for n in core if is_writable(n) and any(u not in core for u in n.users)]
    return Region(tuple(order), tuple(inputs), tuple(outputs))


def is_writable(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of a type that ONNX has."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in ONNX_TYPES


def is_deferred(node: fx.Node) -> bool:
    """Whether a node's value is written only as a part of its reader.

    This holds for complex tensors, computed sizes and computed booleans.
    """
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.dtype not in ONNX_TYPES
    return value is None or isinstance(
        value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)
    )


def _untyped_behind(nodes: list[fx.Node]) -> Iterator[fx.Node]:
    """Yield the operands that ONNX has no type for, back to the tensors they are made of."""
    pending = [i for n in nodes for i in n.all_input_nodes if i not in nodes]
    while pending:
        node = pending.pop()
        if node.op in ("get_attr", "call_function") and is_deferred(node):
            yield node
            pending += node.all_input_nodes


class Borrower:
    """Writes regions into an ONNX graph.

    Args:
        graph: the captured graph that regions are taken from.
        write_graph: writes a decomposed graph with the table of ops alone.

    Attributes:
        borrowed: what torch's exporter wrote, by op and layer, for the user.
    """

    def __init__(self, graph: fx.GraphModule, write_graph: WriteGraph) -> None:
        self.graph, self.write_graph = graph, write_graph
        self.borrowed: list[str] = []

    def write_(self, writer: Writer, region: Region, reason: str, *, by_table: bool = True) -> None:
        """Write a region; its inputs must be written already.

        Args:
            writer: receives the nodes.
            region: to write.
            reason: why the table does not write the op as it is, for the user.
            by_table: try the table on the decomposed op first.

        Raises:
            ExportError: neither torch nor the opset can express it; carries the exporter's own
                cause.
        """
        program = _known_program(self.graph, region, reason)
        values = [writer.values[i] for i in region.inputs]
        checkpoint = writer.mark()
        try:
            if not by_table:
                raise UnsupportedOpError(reason)
            graph = program.decomposed()
            inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
            results = self.write_graph(writer, graph, dict(zip(inputs, values, strict=True)))
        except UnsupportedOpError:
            writer.rewind(checkpoint)
            results = splice(writer, program.torch_onnx(writer.opset, reason), values)
            self.borrowed.append(reason)
        for node, result in zip(region.outputs, results, strict=True):
            writer.values[node] = result
        for node in region.nodes:
            writer.values.setdefault(node, None)


class _Program:
    """A region as a program of its own; each of its forms is made once and only read.

    Args:
        export: makes a new program for each form, since torch's passes use up its open sizes.
    """

    def __init__(self, export: Callable[[], torch.export.ExportedProgram]) -> None:
        self.export = export
        self._decomposed: fx.GraphModule | None = None
        self._onnx: dict[int, onnx.ModelProto] = {}

    def decomposed(self) -> fx.GraphModule:
        """Return the program in core ATen ops.

        Raises:
            UnsupportedOpError: torch cannot decompose it; its exporter may still know the op.
        """
        if self._decomposed is None:
            self._decomposed = _decomposed(self.export())
        return self._decomposed

    def torch_onnx(self, opset: int, reason: str) -> onnx.ModelProto:
        """Return what torch's exporter writes, in an opset, without local functions.

        Raises:
            ExportError: neither the exporter nor the opset can express it.
        """
        if opset not in self._onnx:
            self._onnx[opset] = _torch_onnx(self.export(), opset, reason)
        return self._onnx[opset]


_programs: dict[str, _Program] = {}


def _known_program(graph: fx.GraphModule, region: Region, reason: str) -> _Program:
    """Return the program of a region, the one of an equal region before it where there was one."""
    key = _digest(graph, region)
    if key not in _programs:
        program = _Program(functools.partial(_exported, graph, region, reason))
        while len(_programs) >= MOST_PROGRAMS:
            del _programs[next(iter(_programs))]
        _programs[key] = program
    return _programs[key]


def _digest(graph: fx.GraphModule, region: Region) -> str:
    """Return a SHA-256 over all that a region's program depends on; names are not among it."""
    places = {n: ("value", i) for i, n in enumerate((*region.inputs, *region.nodes))}
    total = hashlib.sha256()
    for node in region.inputs:
        value = node.meta["val"]
        opened = [isinstance(d, torch.SymInt) for d in value.shape]
        total.update(f"{value.dtype} {[_hint(d) for d in value.shape]} {opened}\n".encode())
    for node in region.nodes:
        constant = get_constant(graph, node)
        if constant is not None:
            update_with_tensor(total, "constant", constant)
        elif node.op == "get_attr":
            total.update(f"{id(graph)} {node.target}\n".encode())  # a graph inside of the graph
        else:
            operands = fx.map_arg((node.args, node.kwargs), places.__getitem__)
            total.update(f"{node.target} {operands}\n".encode())
    total.update(f"{[places[n] for n in region.outputs]}".encode())
    return total.hexdigest()


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Return torch's table of decompositions to core ATen, which takes long to make."""
    return dict(torch.export.default_decompositions())


def _decomposed(program: torch.export.ExportedProgram) -> fx.GraphModule:
    try:
        with quiet(), torch.no_grad():
            graph = program.run_decompositions(_decompositions()).module(check_guards=False)
            assert isinstance(graph, fx.GraphModule)
            normalize_(graph)
    except (
        Exception
    ) as exc:  # torch's decompositions share no base of errors; its exporter may still know the op
        raise UnsupportedOpError(str(exc)) from exc
    return graph


def _exported(graph: fx.GraphModule, region: Region, reason: str) -> torch.export.ExportedProgram:
    """Return the region as a program of its own, open where the captured graph is."""
    small = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(region.inputs):
        copies[node] = small.placeholder(f"x{i}")
    for node in region.nodes:
        copies[node] = small.node_copy(node, copies.__getitem__)
    small.output(tuple(copies[n] for n in region.outputs))
    module = fx.GraphModule(graph, small)
    values = [n.meta["val"] for n in region.inputs]
    examples = tuple(torch.zeros([_hint(d) for d in v.shape], dtype=v.dtype) for v in values)
    opened = tuple(
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(v.shape) if isinstance(d, torch.SymInt)}
        for v in values
    )
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, examples, dynamic_shapes=opened, strict=False)
    except Exception as exc:  # torch.export's failures share no base
        raise _refusal(reason, exc) from exc


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else SOME_SIZE
    return hint if isinstance(hint, int) else SOME_SIZE


def _torch_onnx(program: torch.export.ExportedProgram, opset: int, reason: str) -> onnx.ModelProto:
    """Return a program as ONNX of an opset, without local functions."""
    try:
        # The exporter prints progress and warnings that a user of trtq can do nothing about.
        with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, OLDEST_OF_TORCH),
                verbose=False,
                custom_translation_table=_translations(program),
            )
        assert onnx_program is not None
        model = inliner.inline_local_functions(onnx_program.model_proto)
    except Exception as exc:  # the exporter's failures share no base
        raise _refusal(reason, exc) from exc
    if opset >= OLDEST_OF_TORCH:
        return model
    try:
        return _older(model, opset)
    except Exception as exc:  # nor do the converter's
        raise _refusal(reason, exc, opset) from exc


def _translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Any]:
    """Return what is written otherwise than torch does: // on sizes that may be negative.

    It takes ONNX's Mod, which TensorRT reads from 8.5 on, so others are not changed.
    """
    calls = (n for n in program.graph.nodes if n.target is operator.floordiv)
    whole = all(is_natural(v) for n in calls for v in n.args)
    return {} if whole else {operator.floordiv: _floor_division}


def _floor_division(a: Any, b: Any) -> Any:
    """Write // on sizes; torch's own translation rounds towards zero where one is negative."""
    ops = importlib.import_module("onnxscript").opset18
    return ops.Div(ops.Sub(a, ops.Mod(a, b)), b)


def _older(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a model in an older opset.

    It is returned as it is where its ops already have the older form; otherwise it is converted.

    The values of a form may have changed between opsets; the file is compared with torch before it
    is used.
    """
    same = onnx.ModelProto()
    same.CopyFrom(model)
    _axes_as_attributes_(same.graph)
    for entry in same.opset_import:
        entry.version = opset if entry.domain in ("", "ai.onnx") else entry.version
    try:
        checker.check_model(same, full_check=True)
        return same
    except (checker.ValidationError, shape_inference.InferenceError):
        converted = version_converter.convert_version(model, opset)
        checker.check_model(converted, full_check=True)
        return converted


def _axes_as_attributes_(graph: onnx.GraphProto) -> None:
    """Write the axes of reductions as they were before opset 18 (ReduceSum: 13)."""
    known = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            axes = known.get(node.input[1]) if len(node.input) > 1 else None
            kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
            if axes is not None:
                del node.input[1:]
                node.attribute.append(
                    helper.make_attribute("axes", numpy_helper.to_array(axes).flatten().tolist())
                )


def _refusal(reason: str, exc: BaseException, opset: int | None = None) -> ExportError:
    """Return the error for a region that cannot be written, in the words of the innermost cause."""
    cause = exc
    while cause.__cause__ is not None:
        cause = cause.__cause__
    why = first_line(str(cause)).rpartition("` failed: ")[2]
    return ExportError(
        "Cannot write the model as ONNX" + (f" of opset {opset}" if opset is not None else ""),
        f"{reason}: {type(cause).__name__}: {why}",
        "Give a target of TensorRT 10 or later (opset 20), or write that part with other ops"
        if opset is not None
        else "Write that part with other ops, or leave it out of the model",
    )


def splice(
    writer: Writer, model: onnx.ModelProto, values: list[Any], *, foreign: bool = False
) -> list[str]:
    """Write the nodes of ``model`` and return the names of its outputs.

    Args:
        writer: receives the nodes.
        model: holds them.
        values: the inputs of ``model``.
        foreign: nodes may be of other domains than ONNX's own.
    """
    graph = model.graph
    names = dict(zip((i.name for i in graph.input), map(writer.value, values), strict=True)) | {
        "": ""
    }
    for initializer in graph.initializer:
        names[initializer.name] = writer.constant(numpy_helper.to_array(initializer))
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") and not foreign:
            raise UnsupportedOpError(f"{node.domain}::{node.op_type}")
        given = {a.name: _attribute(a, names) for a in node.attribute}
        output_names = writer.op(
            node.op_type, *(names[i] for i in node.input), outputs=len(node.output), **given
        )
        if node.domain not in ("", "ai.onnx"):
            writer.nodes[-1].domain = node.domain
        names.update(
            zip(
                node.output,
                [output_names] if isinstance(output_names, str) else output_names,
                strict=True,
            )
        )
    return [names[o.name] for o in graph.output]


def _attribute(attribute: onnx.AttributeProto, names: Mapping[str, str]) -> Any:
    """Return an attribute's value; a nested graph reads the outer tensors under their new names."""
    if attribute.type != onnx.AttributeProto.GRAPH:
        return helper.get_attribute_value(attribute)
    body = onnx.GraphProto()
    body.CopyFrom(attribute.g)
    for node in body.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for inner in node.attribute:
            if inner.type == onnx.AttributeProto.GRAPH:
                inner.g.CopyFrom(_attribute(inner, names))
    return body
