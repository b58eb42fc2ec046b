"""Where quantizers go: a table of rules, and the walk that applies it to a captured graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from trtq import ops
from trtq.errors import EncodingsError, UsageError, suggest
from trtq.graph.heads import decoder_nodes, head_nodes
from trtq.graph.naming import is_softmax, node_name
from trtq.graph.nodes import get_constant, operands, zero_pad
from trtq.ops import Operand, Role
from trtq.platform.target import Target
from trtq.quant.encodings import Encodings
from trtq.quant.formats import EIGHT, INT8, BitConfig, Format
from trtq.quant.module_places import MODULE_ROLES, is_float, module_places
from trtq.quant.residual import path_lengths, shortcut_of
from trtq.quant.widths import layers_with_weights, set_bits_, set_layer_bits_
from trtq.typed import present

# facts: inputs and weights of what has an INT8 kernel; never a conv's output (its activation and
# its add fuse into it); of a residual add only the shortcut; biases remain float. Which operands of
# these operators are quantized, and along which axis, is in the table of operators.
TENSORRT: tuple[str, ...] = ("conv", "convolution", "linear", "matmul", "add")


# By the name that the catalogue of platforms gives a compute capability.
RULES: Mapping[str, tuple[str, ...]] = {"tensorrt": TENSORRT}

# Parts of a graph that --high-precision knows by name.
PARTS: Mapping[str, Callable[[fx.Graph], set[fx.Node]]] = {
    "@head": head_nodes,
    "@decoder": decoder_nodes,
}


def rules_for(target: Target | None) -> tuple[str, ...]:
    """Return the names of the operators that are quantized for a target.

    Args:
        target: None for any of TensorRT.
    """
    return TENSORRT if target is None else RULES[target.placement]


@dataclass(slots=True, kw_only=True)
class Quantizer:
    """A place in the graph where a tensor may change number format.

    Attributes:
        name: stable, such as ``layer1.0.conv1.input``.
        layer: the op it belongs to, such as ``layer1.0.conv1``.
        role: what the tensor is to the op.
        consumer: the call whose operand is quantized.
        operand: which one.
        source: the node whose value is quantized (before a zero pad, so that the pad still fuses
            into its convolution).
        format: the number format wanted.
        is_weight: the source is a constant.
        float_reason: why it remains in float, None when it is quantized.
        decided: who wants it in float, regardless of its values: a user, an allocation, or what it
            is multiplied with; "" for nobody.
        weight_only: it is quantized regardless of the other operand: only the weight of
            its layer was asked for.
    """

    name: str
    layer: str
    role: Role
    consumer: fx.Node
    operand: int
    source: fx.Node
    format: Format
    is_weight: bool
    float_reason: str | None = None
    decided: Literal["", "user", "allocation", "partner"] = ""
    weight_only: bool = False

    @property
    def stats_key(self) -> str:
        """The key of its tensor's statistics at its width.

        One tensor may be read at two widths.
        """
        return f"{self.source.name}:{self.format.bits}"


@dataclass(slots=True)
class Placement:
    """All quantizers of a graph in the order the graph runs them.

    Attributes:
        force_attention: quantize softmax outputs regardless of their values.
    """

    quantizers: list[Quantizer] = field(default_factory=list)
    force_attention: bool = False

    @property
    def active(self) -> list[Quantizer]:
        """Those that do quantize."""
        return [q for q in self.quantizers if q.float_reason is None]

    @property
    def sources(self) -> list[fx.Node]:
        """The distinct activations to observe, in graph order.

        Those that remain in float are included.
        """
        return list(dict.fromkeys(q.source for q in self.quantizers if not q.is_weight))


def place(
    graph: fx.GraphModule,
    *,
    rules: Sequence[str] = TENSORRT,
    high_precision: Sequence[str] = (),
    bits: BitConfig = EIGHT,
    attention: str = "auto",
    layer_bits: Mapping[str, BitConfig] | None = None,
) -> Placement:
    """Return the quantizers of ``graph`` for a target.

    Args:
        graph: normalised and named.
        rules: names of the operators that the target has kernels for.
        high_precision: as for :func:`matching`; what a pattern selects remains in float.
        bits: of weights and activations; see :func:`trtq.quant.widths.set_bits_`.
        attention: ``auto``, ``int8`` or ``float``: the matmuls around a softmax.
        layer_bits: widths of single layers; it overrides the widths above.

    Raises:
        UsageError: a pattern matches nothing (the nearest names are suggested), or ``layer_bits``
            names no layer.
    """
    placement = Placement(force_attention=attention == "int8")
    lengths = path_lengths(graph)
    for node in graph.graph.nodes:
        row = ops.of(node)
        if row.float_reason:
            placement.quantizers.append(_float_only(graph, node, row.float_reason))
        elif row.name in rules:
            places = (_quantizer(graph, node, operand, lengths) for operand in row.operands)
            placement.quantizers += present(places)
    set_bits_(placement.quantizers, bits)
    set_layer_bits_(placement.quantizers, layer_bits or {})
    if attention == "float":
        for q in placement.quantizers:
            if attention_of(q) is not None:
                q.float_reason, q.decided = "asked for by --attention float", "user"
    enforce_partners_(placement)
    _keep_high_precision_(placement, high_precision)
    return placement


def _quantizer(
    graph: fx.GraphModule, node: fx.Node, operand: Operand, lengths: Mapping[fx.Node, int]
) -> Quantizer | None:
    """Return the quantizer of an operand, None where it is no tensor of float32."""
    index, reason = operand.index, None
    if operand.role == "residual":
        shortcut = shortcut_of(node, lengths)
        if shortcut is None:
            return None
        index, reason = shortcut
    source = operands(node)[index]
    if not isinstance(source, fx.Node) or not is_float(source):
        return None
    constant = get_constant(graph, source)
    if operand.role == "weight" and constant is None:
        reason = "its weight is computed from the input, and only a constant weight runs in INT8"
    source = _before_pad(source) if constant is None else source
    name = f"{node_name(node)}.{operand.role}"
    if operand.role == "lhs" and is_softmax(source):
        name = f"{node_name(source)}.output"
    return Quantizer(
        name=name,
        layer=node_name(node),
        role=operand.role,
        consumer=node,
        operand=index,
        source=source,
        format=Format(axis=_scale_axis(operand, constant)),
        is_weight=constant is not None,
        float_reason=reason,
    )


def _scale_axis(operand: Operand, constant: torch.Tensor | None) -> int | None:
    """Return the axis that has a scale per channel: constants alone have one."""
    if constant is None:
        return None
    columns = operand.role == "rhs" and constant.ndim == 2
    return 1 if columns else operand.axis


def _float_only(graph: fx.GraphModule, node: fx.Node, reason: str) -> Quantizer:
    """Return what is listed for an operator that has no INT8 kernel as it is written."""
    source = operands(node)[1]
    source = source[0] if isinstance(source, (list, tuple)) else source
    name, constant = node_name(node), get_constant(graph, source) is not None
    role: Role = "weight" if constant else "lhs"
    return Quantizer(
        name=f"{name}.{role}",
        layer=name,
        role=role,
        consumer=node,
        operand=1,
        source=source,
        format=INT8,
        is_weight=constant,
        float_reason=reason,
    )


def _before_pad(source: fx.Node) -> fx.Node:
    """Return the tensor before a zero pad.

    Zero is exact in every symmetric format. Quantizing before the pad leaves nothing between pad
    and conv.
    """
    while len(source.users) == 1:
        amounts = zero_pad(source)
        # Amounts run from the last axis: more than two axes would pad channels.
        if amounts is None or any(amounts[4:]) or not isinstance(operands(source)[0], fx.Node):
            return source
        source = operands(source)[0]
    return source


def enforce_partners_(placement: Placement) -> None:
    """Keep in float the quantizers that are useless without one that remains in float.

    A conv, linear or matmul runs in INT8 only when both operands are quantized; a format without a
    kernel runs in float anyway and is left alone. The two matmuls of an attention and the softmax
    between them are one fused kernel when all of it is INT8 or all of it float, and separate ones
    when it is mixed (docs/decisions.md has the builds).

    Args:
        placement: its quantizers get a ``float_reason`` that names the partner.
    """
    compute = [q for q in placement.quantizers if q.role != "residual"]
    for why, owner in (
        ("an INT8 kernel needs both operands", _consumer),
        ("an attention is one kernel, all INT8 or none", attention_of),
    ):
        groups: dict[fx.Node | None, list[Quantizer]] = {}
        for q in compute:
            groups.setdefault(owner(q), []).append(q)
        groups.pop(None, None)
        for group in groups.values():
            _keep_together_(group, why)


def _keep_together_(group: Sequence[Quantizer], why: str) -> None:
    """Keep a whole group in float where one of it is, but for those that gain nothing by it."""
    first = next((q for q in group if q.float_reason is not None), None)
    for q in group if first is not None else ():
        if q.float_reason is None and not q.weight_only and q.format.has_kernel:
            assert first is not None
            q.float_reason, q.decided = f"{first.name} remains in float, and {why}", "partner"


def _consumer(quantizer: Quantizer) -> fx.Node | None:
    return quantizer.consumer


def attention_of(quantizer: Quantizer) -> fx.Node | None:
    """Return the softmax of the attention a matmul belongs to, None outside attentions."""
    softmax = quantizer.consumer.meta.get("trtq_softmax")
    return softmax if isinstance(softmax, fx.Node) else None


def _keep_high_precision_(placement: Placement, patterns: Sequence[str]) -> None:
    """Keep in float what patterns select.

    Raises:
        UsageError: one selects nothing; the nearest names are suggested.
    """
    for pattern in patterns:
        hits = matching(placement, pattern)
        if not hits:
            names = [q.layer for q in placement.quantizers]
            raise UsageError(
                f"--high-precision {pattern!r} matches no layer", hint=suggest(pattern, names)
            )
        for q in hits:
            q.float_reason, q.decided = f"asked for by --high-precision {pattern}", "user"
    enforce_partners_(placement)


def matching(placement: Placement, pattern: str) -> list[Quantizer]:
    """Return the quantizers that a pattern selects.

    Args:
        placement: what is searched.
        pattern: a shell pattern on the names of quantizers and layers (``blocks.0`` also selects
            ``blocks.0.attn``); ``@first``, ``@last``, ``@anchors``, which is both; ``@head``:
            the layers that no other one follows, and what is behind them; or ``@decoder``: the
            layers that work on the queries of a DETR-like model.
    """
    if pattern in PARTS:
        return _of_part(placement, PARTS[pattern])
    weighted = layers_with_weights(placement.quantizers)
    wanted = {
        "@first": weighted[:1],
        "@last": weighted[-1:],
        "@anchors": [*weighted[:1], *weighted[-1:]],
    }.get(pattern)
    return [
        q
        for q in placement.quantizers
        if (q.layer in wanted if wanted is not None else _matches(q, pattern))
    ]


def _of_part(placement: Placement, nodes_of: Callable[[fx.Graph], set[fx.Node]]) -> list[Quantizer]:
    if not placement.quantizers:
        return []
    part = nodes_of(placement.quantizers[0].consumer.graph)
    return [q for q in placement.quantizers if q.consumer in part]


def _matches(quantizer: Quantizer, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(name, p)
        for name in (quantizer.name, quantizer.layer)
        for p in (pattern, f"{pattern}.*")
    )


def placement_of(graph: fx.GraphModule, encodings: Encodings) -> Placement:
    """Return the placement that an encodings file was made with.

    Args:
        graph: normalised and named, of the same model.
        encodings: its formats are the active quantizers; all others remain in float.

    Raises:
        EncodingsError: it names a quantizer that the graph does not have.
    """
    placement = place(graph)
    known = {q.name: q for q in placement.quantizers}
    for name in (n for n in encodings.formats if n not in known):
        more = module_quantizers(graph, name.partition(":")[0])
        wanted = [q for q in more if q.name not in known and q.name in encodings.formats]
        placement.quantizers += wanted
        known |= {q.name: q for q in more}
        if name not in known:
            raise EncodingsError(
                f"The encodings name a quantizer {name} that the model does not have",
                suggest(name, known) or "its graph is another",
                "Give the encodings of this model; methods that insert ops (qads) change the "
                "graph itself",
            )
    for q in placement.quantizers:
        fmt = encodings.formats.get(q.name)
        why_float = encodings.left_in_float.get(q.name, "not in the encodings")
        q.float_reason = why_float if fmt is None else None
        q.format = q.format if fmt is None else fmt
    return placement


def module_quantizers(graph: fx.GraphModule, name: str) -> list[Quantizer]:
    """Return quantizers where a module's own input, weight or output is read.

    An import needs them beyond trtq's rules.

    Args:
        graph: normalised and named.
        name: ``MODULE.input``, ``MODULE.weight`` or ``MODULE.output``, such as ``avgpool.input``.

    Returns:
        One for each reader: ``name``, then ``name:1``, ``name:2`` ...; none for any other name.
    """
    module, _, text = name.rpartition(".")
    role = next((r for r in MODULE_ROLES if r == text), None)
    if role is None or not module:
        return []
    places = module_places(graph, module, role)
    return [
        Quantizer(
            name=f"{name}:{k}" if k else name,
            layer=module,
            role=role,
            consumer=node,
            operand=i,
            source=source,
            format=INT8,
            is_weight=role == "weight",
        )
        for k, (node, i, source) in enumerate(places)
    ]
