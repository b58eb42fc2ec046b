"""EfficientQuant: 8-bit convolution weights and log2 softmax outputs, nothing else."""

from __future__ import annotations

import msgspec
from torch import fx

from trtq import ops
from trtq.errors import UsageError
from trtq.free_names import free_name
from trtq.graph.naming import is_softmax, node_name
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.quant.formats import Format
from trtq.quant.placement import Quantizer

GRANULARITY = ("layer", "channel")
ONLY = "EfficientQuant quantizes weights of convolutions and outputs of softmax only"


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        granularity: of weights: ``layer``, one range each, or ``channel``.
    """

    granularity: str = "layer"


def attention_softmaxes(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the softmaxes of attentions, in graph order.

    They are the softmaxes over maps of scores, not the one over classes at the end: their result
    has three axes or more.
    """
    return [n for n in graph.graph.nodes if ops.kind(n) == "softmax" and n.meta["val"].ndim >= 3]


def attention_probabilities(graph: fx.GraphModule) -> list[fx.Node]:
    """Return what attentions multiply with their values, in graph order.

    It is the output of a softmax, of what a method put in its place, or of a mask behind it.
    """
    softmaxes = [n for n in graph.graph.nodes if is_softmax(n) and n.meta["val"].ndim >= 3]
    return [n for n in softmaxes if not any(map(is_softmax, n.users))]


def log2_outputs_(context: MethodContext, bits: int | None) -> list[str]:
    """Give the output of every attention softmax the log2 format; return the quantizers' names.

    An output without a quantizer gets one.

    Args:
        context: its placement changes.
        bits: of the codes; None keeps each quantizer's own, and 8 for new ones.
    """
    names = []
    for softmax in attention_probabilities(context.graph):
        places = [
            (u, i) for u in softmax.users for i, value in enumerate(u.args) if value is softmax
        ]
        for reader, operand in places:
            quantizer = _quantizer(context, softmax, reader, operand)
            if not quantizer.decided:
                quantizer.format = Format(bits=bits or quantizer.format.bits, kind="log2")
                quantizer.float_reason = None
                names.append(quantizer.name)
    return names


def _quantizer(
    context: MethodContext, softmax: fx.Node, reader: fx.Node, operand: int
) -> Quantizer:
    existing = context.placement.quantizers
    for q in existing:
        if q.consumer is reader and q.operand == operand:
            return q
    quantizer = Quantizer(
        name=free_name(f"{node_name(softmax)}.output", {q.name for q in existing}),
        layer=node_name(reader),
        role="lhs",
        consumer=reader,
        operand=operand,
        source=softmax,
        format=Format(),
        is_weight=False,
    )
    existing.append(quantizer)
    return quantizer


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Set the formats; calibration then computes the numbers.

    Returns:
        Numbers of ``convolutions`` and ``softmaxes`` that got them, and ``engine_computes_in``.

    Raises:
        UsageError: an unknown granularity.
    """
    granularity = arguments.granularity
    if granularity not in GRANULARITY:
        raise UsageError(
            f"Cannot use efficientquant.granularity={granularity}",
            f"expected one of {', '.join(GRANULARITY)}",
        )
    convolutions = []
    for q in context.placement.quantizers:
        if q.decided:
            continue
        if q.role == "weight" and q.is_weight and ops.kind(q.consumer) == "conv":
            axis = None if granularity == "layer" else q.format.axis
            q.format = msgspec.structs.replace(q.format, kind="asymmetric", axis=axis)
            q.float_reason = None
            convolutions.append(q.layer)
        else:
            q.float_reason = q.float_reason or ONLY
    softmaxes = log2_outputs_(context, 8)
    return {
        "convolutions": len(convolutions),
        "softmaxes": len(softmaxes),
        "engine_computes_in": "float",
    }


def _has_layers(context: MethodContext) -> bool:
    convolutions = any(ops.kind(n) == "conv" for n in context.graph.graph.nodes)
    return convolutions or bool(attention_probabilities(context.graph))


METHOD = Method(
    name="efficientquant",
    summary="EfficientQuant: weights of convolutions on asymmetric codes, outputs of softmax on "
    "log2 codes, all else in float.",
    label="simulated",
    stage="before",
    source="S3 eq. 1-6, with eq. 2 and 5 corrected so that they invert (docs/methods.md)",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs((_has_layers, "it has no convolution and no attention")),
    excludes=(
        "smooth",
        "qads",
        "equalize",
        "repq",
        "ranking",
        "reconstruct",
        "attention-percentile",
        "layernorm-ema",
    ),
)
