"""Simulation: a copy of the graph with a fake-quantize call at every encoded quantizer."""

from __future__ import annotations

import copy

import torch
from torch import fx

from trtq import ops
from trtq.errors import EncodingsError
from trtq.graph.nodes import add_constant, get_constant, operands
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import FAKE_QUANTIZE, FakeQuantizeCall
from trtq.quant.formats import FLOATS
from trtq.quant.placement import Placement, Quantizer


def insert_fake_quantize(
    graph: fx.GraphModule, placement: Placement, encodings: Encodings, *, on_codes: bool = True
) -> fx.GraphModule:
    """Return a copy of ``graph`` that computes with the codes of ``encodings``.

    Quantizers that share a tensor, a format and a scale share one call. Parameters are shared with
    ``graph``.

    Args:
        graph: captured; not changed.
        placement: its quantizers.
        encodings: of every active quantizer; their constants replace the graph's.
        on_codes: narrow weights are stored on their codes, as the exported file has them; training
            needs what is between.

    Raises:
        EncodingsError: an active quantizer has no encoding, or one of another shape.
    """
    simulated = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    by_name = _replace_constants(simulated, encodings)
    shared = shared_names(placement, encodings)
    fake_quantize_nodes: dict[str, fx.Node] = {}
    # The layers behind a layer quantize its quantized output once more.
    outputs, coded = [q for q in placement.active if q.role == "output"], dict[str, fx.Node]()
    for group in (outputs, [q for q in placement.active if q.role != "output"]):
        for quantizer in group:
            name, first = quantizer.source.name, shared[quantizer.name]
            source = coded.get(name, by_name[name])
            if first not in fake_quantize_nodes:
                scale = encodings.scale(quantizer.name)
                _check_shape(quantizer, scale, source)
                zero_point = encodings.zero_point(quantizer.name)
                input_node = (
                    _on_codes(simulated, quantizer, scale, zero_point, source)
                    if on_codes
                    else source
                )
                fake_quantize_nodes[first] = _insert(
                    simulated, quantizer, scale, zero_point, input_node
                )
            _redirect(
                by_name[quantizer.consumer.name],
                quantizer.operand,
                source,
                fake_quantize_nodes[first],
            )
        coded = {q.source.name: fake_quantize_nodes[shared[q.name]] for q in outputs}
    simulated.graph.lint()
    simulated.recompile()
    return simulated


def _replace_constants(graph: fx.GraphModule, encodings: Encodings) -> dict[str, fx.Node]:
    """Replace the graph's constants by those of the encodings.

    Returns every node by the name that it had.
    """
    by_name = {n.name: n for n in graph.graph.nodes}
    for node in list(by_name.values()):
        value = encodings.constants.get(str(node.target)) if node.op == "get_attr" else None
        if value is not None:
            new = add_constant(graph, str(node.target), value, before=node)
            node.replace_all_uses_with(new)
            by_name[node.name] = new
    return by_name


def _on_codes(
    graph: fx.GraphModule,
    quantizer: Quantizer,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    source: fx.Node,
) -> fx.Node:
    """Return a weight that no INT8 pair can clamp as it is stored: already on its codes.

    Such a weight has fewer bits or a format of another kind.

    Q/DQ has no clamp below 8 bits; a weight on its codes needs none, and an INT8 container then
    holds them exactly.
    """
    fmt, weight = quantizer.format, get_constant(graph, source)
    if not quantizer.is_weight or weight is None or (fmt.bits == 8 and fmt.has_kernel):
        return source
    scale = scale.to(weight.device)
    zero_point = None if zero_point is None else zero_point.to(weight.device)
    codes = torch.ops.trtq.fake_quantize(
        weight, scale, zero_point, fmt.axis, fmt.qmin, fmt.qmax, quantizer.name, fmt.kind
    )
    return add_constant(graph, str(source.target), codes, before=source)


def formats_needed(graph: fx.GraphModule) -> set[str]:
    """Return what a target must have for a simulated graph, as the catalogue of platforms says.

    Args:
        graph: from :func:`insert_fake_quantize`.

    Returns:
        Some of ``INT8``, ``INT4 weights``, ``FP8`` and ``FP4``.
    """
    calls = (FakeQuantizeCall.of(n) for n in graph.graph.nodes)
    return {_needs(graph, call) for call in calls if call is not None}


def _needs(graph: fx.GraphModule, call: FakeQuantizeCall) -> str:
    scale = get_constant(graph, call.scale)
    blocked = call.kind == "uniform" and scale is not None and scale.ndim > 1
    return "INT4 weights" if blocked else FLOATS.get(call.kind, "INT8")


def shared_names(placement: Placement, encodings: Encodings) -> dict[str, str]:
    """Return, for each active quantizer, the first one with the same tensor, format and scale.

    They are one call of the simulation.

    Returns:
        A name by the name of each active quantizer; a quantizer that is the first has its own.

    Raises:
        EncodingsError: an active quantizer has no encoding.
    """
    first: dict[tuple[str, object, bytes], str] = {}
    names = {}
    for q in placement.active:
        scale, zero = encodings.scale(q.name), encodings.zero_point(q.name)
        numbers = scale.numpy().tobytes() + (b"" if zero is None else zero.numpy().tobytes())
        key = (q.source.name, q.format, numbers)
        names[q.name] = first.setdefault(key, q.name)
    return names


def _insert(
    graph: fx.GraphModule,
    quantizer: Quantizer,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    source: fx.Node,
) -> fx.Node:
    """Put a fake-quantize call and its scale behind ``source``, and return the call."""
    following = source.next
    while following.op in ("placeholder", "get_attr"):
        following = following.next
    constant = add_constant(graph, f"{quantizer.name}.scale", scale, before=following)
    zero = (
        None
        if zero_point is None
        else add_constant(graph, f"{quantizer.name}.zero_point", zero_point, before=following)
    )
    fmt = quantizer.format
    with graph.graph.inserting_before(following):
        node = graph.graph.call_function(
            FAKE_QUANTIZE,
            (source, constant, zero, fmt.axis, fmt.qmin, fmt.qmax, quantizer.name, fmt.kind),
        )
    node.meta.update({k: v for k, v in source.meta.items() if k in ("val", "nn_module_stack")})
    node.meta["trtq_name"] = quantizer.name
    return node


def _redirect(consumer: fx.Node, operand: int, source: fx.Node, quantized: fx.Node) -> None:
    """Make operand ``operand`` of ``consumer`` read ``quantized`` instead of ``source``.

    A zero pad between them remains.
    """
    if consumer.op == "output":
        consumer.replace_input_with(source, quantized)
        return
    current = operands(consumer)[operand]
    while isinstance(current, fx.Node) and current is not source and ops.kind(current) == "pad":
        if operands(current)[0] is source:
            current.update_arg(0, quantized)
            return
        current = operands(current)[0]
    consumer.update_arg(operand, quantized)


def _check_shape(quantizer: Quantizer, scale: torch.Tensor, source: fx.Node) -> None:
    """Refuse a scale whose shape is not that of its format for the tensor.

    Raises:
        EncodingsError: names both shapes.
    """
    fmt, value = quantizer.format, source.meta.get("val")
    expected = list(scale.shape)
    if fmt.axis is None:
        expected = []
    elif isinstance(value, torch.Tensor):
        expected = [int(value.shape[fmt.axis])]
        expected += [value.shape[-1] // fmt.block] if isinstance(fmt.block, int) else []
    if list(scale.shape) != expected:
        raise EncodingsError(
            f"The encodings do not fit the graph at {quantizer.name}",
            f"expected scales of shape {expected}, found {list(scale.shape)}",
            "They were made for another model: run trtq quantize again",
        )
