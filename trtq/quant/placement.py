"""Where quantizers go: a table of rules, and the walk that applies it to a captured graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import fx

from trtq.errors import EncodingsError, UsageError, suggest
from trtq.graph.naming import MATMULS, TRANSPOSED, is_softmax, module_name, node_name
from trtq.graph.normalize import CONVS, PADS, get_constant, operands
from trtq.platform.target import Target
from trtq.quant.encodings import Encodings
from trtq.quant.formats import INT8, Format

aten = torch.ops.aten
Role = Literal["input", "weight", "lhs", "rhs", "residual", "output"]
MODULE_ROLES: tuple[Role, ...] = ("input", "weight", "output")
OPS: dict[str, tuple[object, ...]] = {
    "conv": CONVS,
    "linear": (aten.linear.default,),
    "matmul": (aten.matmul.default, aten.bmm.default, aten.mm.default),
    "add": (aten.add.Tensor,),
    "conv_transpose": TRANSPOSED,
}


def is_transposed(node: fx.Node) -> bool:
    """Whether a node is a transposed convolution."""
    return node.target in OPS["conv_transpose"] or (
        node.target is aten.convolution.default and bool(operands(node)[6])
    )


# Products that have no INT8 kernel as they are written: which nodes, the operand that is listed for
# them, and why.
UNSUPPORTED: tuple[tuple[Callable[[fx.Node], bool], Callable[[fx.Node], fx.Node], str], ...] = (
    (
        is_transposed,
        lambda n: operands(n)[1],
        "TensorRT computes transposed convolutions in float whatever is asked",
    ),
    (
        lambda n: n.target is aten.einsum.default,
        lambda n: operands(n)[1][0],
        "einsum is not quantized: write it as matmul to have it in INT8",
    ),
    (
        lambda n: n.target in (aten.baddbmm.default, aten.addmm.default),
        lambda n: operands(n)[1],
        "a product and a sum in one call are not quantized: write them as matmul and add to "
        "have the product in INT8",
    ),
)


class LayerBits(NamedTuple):
    """A layer's formats from an allocation: bits of its weight and of its input.

    The bits are None for an input that stays in float.
    """

    weight: int
    input: int | None
    kind: Literal["uniform", "fp8"] = "uniform"


@dataclass(frozen=True, slots=True)
class Rule:
    """Quantize operand ``operand`` of every ``op``.

    -1 means the operand that is the shortcut of a residual add.
    """

    op: str
    operand: int
    role: Role
    axis: int | None = None


# facts: inputs and weights of what has an INT8 kernel; never a conv's output (its activation and
# its add fuse into it); of a residual add only the shortcut; biases stay float. Transposed
# convolutions run in float whatever is asked.
TENSORRT: tuple[Rule, ...] = (
    Rule("conv", 0, "input"),
    Rule("conv", 1, "weight", axis=0),
    Rule("linear", 0, "input"),
    Rule("linear", 1, "weight", axis=0),
    Rule("matmul", 0, "lhs"),
    Rule("matmul", 1, "rhs"),
    Rule("add", -1, "residual"),
)


# By the name that the catalogue of platforms gives a compute capability.
RULES: Mapping[str, tuple[Rule, ...]] = {"tensorrt": TENSORRT}


def rules_for(target: Target | None) -> tuple[Rule, ...]:
    """Return the rules that place quantizers for a target, or for any of TensorRT without one."""
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
        float_reason: why it stays in float, None when it is quantized.
        decided: who wants it in float, whatever its values: a user, an allocation, or what it is
            multiplied with; "" for nobody.
        alone: it has codes whatever becomes of what it is multiplied with: only the weight of its
            layer was asked for.
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
    alone: bool = False

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
        force_attention: quantize softmax outputs whatever their values.
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

        Those that stay in float are included.
        """
        return list(dict.fromkeys(q.source for q in self.quantizers if not q.is_weight))


def place(
    graph: fx.GraphModule,
    *,
    rules: Sequence[Rule] = TENSORRT,
    high_precision: Sequence[str] = (),
    weight_bits: int = 8,
    input_bits: int = 8,
    attention: str = "auto",
    layer_bits: Mapping[str, LayerBits | None] | None = None,
) -> Placement:
    """Return the quantizers the rules put into ``graph``.

    Args:
        graph: normalised and named.
        rules: the placement table of the target.
        high_precision: shell patterns (``blocks.0.*``, ``head``) or ``@first``, ``@last``,
            ``@anchors``; a layer or a quantizer whose name matches stays in float.
        weight_bits: of weights; 2 to 8.
        input_bits: of activations; 2 to 8. The first and the last layer with weights (S1 A.2) and
            the shortcuts of residual adds keep 8 bits.
        attention: ``auto``, ``int8`` or ``float``: the matmuls around a softmax.
        layer_bits: formats of single layers, None for float; it overrides the widths above.

    Raises:
        UsageError: a pattern matches nothing (the nearest names are suggested), or ``layer_bits``
            names no layer.
    """
    found = Placement(force_attention=attention == "int8")
    depth = _depths(graph)
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        for rule in rules:
            if node.target in OPS[rule.op]:
                quantizer = _apply(graph, rule, node, depth)
                if quantizer is not None:
                    found.quantizers.append(quantizer)
        for belongs, source, why in UNSUPPORTED:
            if belongs(node):
                found.quantizers.append(_float_only(graph, node, source(node), why))
    _set_bits_(found, weight_bits, input_bits)
    _set_layer_bits_(found, layer_bits or {})
    if attention == "float":
        for q in found.quantizers:
            if attention_of(q) is not None:
                q.float_reason, q.decided = "asked for by --attention float", "user"
    enforce_partners_(found)
    _keep_high_precision_(found, high_precision)
    return found


def _set_bits_(placement: Placement, weight_bits: int, input_bits: int) -> None:
    layers = _weighted_layers(placement)
    wide = {*layers[:1], *layers[-1:]}
    for q in placement.quantizers:
        if q.layer not in wide and q.role != "residual":
            q.format = msgspec.structs.replace(
                q.format, bits=weight_bits if q.is_weight else input_bits
            )


def _set_layer_bits_(placement: Placement, layer_bits: Mapping[str, LayerBits | None]) -> None:
    known = _weighted_layers(placement)
    for name in layer_bits:
        if name not in known:
            raise UsageError(
                f"The allocation names a layer {name} that the model does not have",
                hint=suggest(name, known),
            )
    for q in placement.quantizers:
        if q.role in ("input", "weight") and q.layer in layer_bits:
            bits = layer_bits[q.layer]
            if bits is None:
                q.float_reason, q.decided = (
                    q.float_reason or "the allocation keeps it in float",
                    "allocation",
                )
            elif not q.is_weight and bits.input is None:
                q.float_reason = q.float_reason or "the allocation quantizes the weight alone"
            else:
                q.alone = bits.input is None
                q.format = msgspec.structs.replace(
                    q.format, bits=bits.weight if q.is_weight else bits.input, kind=bits.kind
                )


def _weighted_layers(placement: Placement) -> list[str]:
    return list(
        dict.fromkeys(q.layer for q in placement.quantizers if q.role in ("input", "weight"))
    )


def _apply(
    graph: fx.GraphModule, rule: Rule, node: fx.Node, depth: dict[fx.Node, int]
) -> Quantizer | None:
    operand, reason = rule.operand, None
    if rule.role == "residual":
        found = _shortcut(node, depth)
        if found is None:
            return None
        operand, reason = found
    source = operands(node)[operand]
    if not isinstance(source, fx.Node) or not _is_float(source):
        return None
    layer, axis, suffix = node_name(node), rule.axis, rule.role
    constant = get_constant(graph, source)
    if rule.op == "conv" and is_transposed(node):
        return None
    if rule.role == "weight" and constant is None:
        axis, reason = (
            None,
            "its weight is computed from the input, and only a constant weight runs in INT8",
        )
    if rule.op == "matmul" and constant is not None:
        axis = constant.ndim - 1 if rule.role == "rhs" and constant.ndim == 2 else None
    if constant is None:
        source = _before_pad(source)
    name = f"{layer}.{suffix}"
    if rule.role == "lhs" and is_softmax(source):
        name = f"{node_name(source)}.output"
    fmt = INT8 if axis is None else Format(axis=axis)
    return Quantizer(
        name=name,
        layer=layer,
        role=rule.role,
        consumer=node,
        operand=operand,
        source=source,
        format=fmt,
        is_weight=constant is not None,
        float_reason=reason,
    )


def _float_only(graph: fx.GraphModule, node: fx.Node, source: fx.Node, reason: str) -> Quantizer:
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


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.dtype == torch.float32


def _before_pad(source: fx.Node) -> fx.Node:
    """Return the tensor before a zero pad.

    Zero is exact in every symmetric format. Quantizing before the pad leaves nothing between pad
    and conv.
    """
    while source.target in PADS and len(source.users) == 1:
        mode = operands(source)[2] if len(operands(source)) > 2 else "constant"
        value = (
            operands(source)[3]
            if source.target is aten.pad.default and len(operands(source)) > 3
            else None
        )
        amounts = operands(source)[1]
        spatial = not any(
            amounts[4:]
        )  # amounts run from the last axis: more than two axes would pad channels
        if mode not in ("constant", 0, 0.0) or value not in (None, 0, 0.0) or not spatial:
            return source
        inner = operands(source)[0]
        if not isinstance(inner, fx.Node):
            return source
        source = inner
    return source


def _depths(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Longest path from an input to each node."""
    depth: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        depth[node] = max((depth[i] + 1 for i in node.all_input_nodes), default=0)
    return depth


def _shortcut(node: fx.Node, depth: dict[fx.Node, int]) -> tuple[int, str | None] | None:
    """Return which operand of an add is its shortcut, and why it stays in float.

    The reason is None for a shortcut that is quantized.

    An add is residual when both operands are activations of one shape and one of them ends in a
    convolution or a linear whose only use is this add: that one fuses with the add. The other, or
    the shallower of two such, is the shortcut.
    """
    left, right = operands(node)[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs:
        return None
    a, b = left.meta.get("val"), right.meta.get("val")
    if (
        not isinstance(a, torch.Tensor)
        or not isinstance(b, torch.Tensor)
        or a.shape != b.shape
        or a.ndim < 3
    ):
        return None
    if not depth[left] or not depth[right]:
        return None
    ends = [_branch_end(x) for x in (left, right)]
    if ends == [None, None]:
        return None
    operand = 0 if ends[0] is None else 1 if ends[1] is None else int(depth[right] < depth[left])
    if ends[1 - operand] == "conv":
        return operand, None
    return (
        operand,
        "the add follows a linear layer and no INT8 convolution: a quantized residual stream "
        "would gain nothing",
    )


def _branch_end(node: fx.Node) -> str | None:
    """Return the kind of op ("conv", "linear") whose values reach the add unchanged, or None."""
    while len(node.users) == 1:
        if node.target in CONVS:
            return "conv"
        if node.target in (aten.linear.default, *MATMULS):
            return "linear"
        if node.target in SHAPE_OPS or (node.target is aten.mul.Tensor and _is_layer_scale(node)):
            inner = operands(node)[0]
            if not isinstance(inner, fx.Node):
                return None
            node = inner
        else:
            return None
    return None


SHAPE_OPS = (
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.roll.default,
    aten.slice.Tensor,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)


def _is_layer_scale(node: fx.Node) -> bool:
    other = operands(node)[1]
    return isinstance(other, fx.Node) and other.op == "get_attr"


def enforce_partners_(placement: Placement) -> None:
    """Keep in float the quantizers that are worth nothing without one that stays in float.

    A conv, linear or matmul runs in INT8 only when both operands are quantized; a format without a
    kernel runs in float anyway and is left alone. The two matmuls of an attention and the softmax
    between them are one fused kernel when all of it is INT8 or all of it float, and separate ones
    when it is mixed (docs/decisions.md has the builds).
    """
    compute = [q for q in placement.quantizers if q.role != "residual"]
    for kind, owner in (
        ("an INT8 kernel needs both operands", _consumer),
        ("an attention is one kernel, all INT8 or none", attention_of),
    ):
        for quantizer in compute:
            if quantizer.float_reason is None or owner(quantizer) is None:
                continue
            for other in compute:
                keeps = other.alone or not other.format.has_kernel
                if other.float_reason is None and not keeps and owner(other) is owner(quantizer):
                    other.float_reason, other.decided = (
                        f"{quantizer.name} stays in float, and {kind}",
                        "partner",
                    )


def _consumer(quantizer: Quantizer) -> fx.Node | None:
    return quantizer.consumer


def attention_of(quantizer: Quantizer) -> fx.Node | None:
    """Return the softmax of the attention a matmul belongs to, None outside attentions."""
    softmax = quantizer.consumer.meta.get("trtq_softmax")
    return softmax if isinstance(softmax, fx.Node) else None


def _keep_high_precision_(placement: Placement, patterns: Sequence[str]) -> None:
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

    It is a shell pattern on names and layers, ``@first``, ``@last``, or ``@anchors``, which is
    both.
    """
    weighted = _weighted_layers(placement)
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


def _matches(quantizer: Quantizer, pattern: str) -> bool:
    return any(
        fnmatch.fnmatchcase(name, p)
        for name in (quantizer.name, quantizer.layer)
        for p in (pattern, f"{pattern}.*")
    )


def placement_of(graph: fx.GraphModule, encodings: Encodings) -> Placement:
    """Return the placement that an encodings file was made with.

    Raises:
        EncodingsError: it names a quantizer that the graph does not have.
    """
    found = place(graph)
    known = {q.name: q for q in found.quantizers}
    for name in encodings.formats:
        if name not in known:
            more = module_quantizers(graph, name.partition(":")[0])
            found.quantizers += [
                q for q in more if q.name not in known and q.name in encodings.formats
            ]
            known |= {q.name: q for q in more}
        if name not in known:
            raise EncodingsError(
                f"The encodings name a quantizer {name} that the model does not have",
                suggest(name, known) or "its graph is another",
                "Give the encodings of this model; methods that insert ops (qads) change the "
                "graph itself",
            )
    for q in found.quantizers:
        q.float_reason = (
            None
            if q.name in encodings.formats
            else encodings.left_in_float.get(q.name, "not in the encodings")
        )
        q.format = encodings.formats.get(q.name, q.format)
    return found


def module_quantizers(graph: fx.GraphModule, name: str) -> list[Quantizer]:
    """Return quantizers where a module's own input, weight or output is read.

    An import needs them beyond trtq's rules.

    Args:
        graph: normalised and named.
        name: ``MODULE.input``, ``MODULE.weight`` or ``MODULE.output``, such as ``avgpool.input``.
    """
    module, _, role = name.rpartition(".")
    if role not in MODULE_ROLES or not module:
        return []
    kind = next(r for r in MODULE_ROLES if r == role)
    places = [
        (node, i, operand)
        for node in graph.graph.nodes
        if node.op in ("call_function", "output")
        for i, operand in enumerate(_read_by(node))
        if isinstance(operand, fx.Node)
        and _is_float(operand)
        and _meets(module, kind, node, operand)
    ]
    return [
        Quantizer(
            name=f"{name}:{k}" if k else name,
            layer=module,
            role=kind,
            consumer=node,
            operand=i,
            source=source,
            format=INT8,
            is_weight=kind == "weight",
        )
        for k, (node, i, source) in enumerate(places)
    ]


def _read_by(node: fx.Node) -> tuple[object, ...]:
    """Return what a call, or the end of the graph, reads."""
    given = operands(node)
    return tuple(given[0]) if node.op == "output" and isinstance(given[0], (list, tuple)) else given


def _meets(module: str, role: Role, consumer: fx.Node, source: fx.Node) -> bool:
    """Whether a call reads a module's weight, its input from outside, or its output outside."""
    if role == "weight":
        return (
            source.op == "get_attr"
            and str(source.target).removeprefix("model.") == f"{module}.weight"
        )
    if source.op == "get_attr":
        return False
    reads = consumer.op != "output" and _within(module, module_name(consumer))
    folded = source.meta.get(
        "batch_norm"
    )  # of this path: what the node gives is the normalisation's output, not its own
    makes = (
        _within(module, module_name(source))
        if folded is None or role == "input"
        else module == folded
    )
    return (reads and not makes) if role == "input" else (makes and not reads)


def _within(module: str, path: str) -> bool:
    return path == module or path.startswith(f"{module}.")
