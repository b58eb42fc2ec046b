"""RepQ-ViT: channel-wise LayerNorm ranges folded into one, and log-sqrt(2) softmax codes."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import fx

from trtq import ops
from trtq.graph.naming import node_name
from trtq.graph.nodes import get_constant, operands
from trtq.methods.base import BATCHES, Method, MethodContext, Report, needs, weight_and_bias
from trtq.methods.efficientquant import attention_probabilities, log2_outputs_
from trtq.methods.pairs import Pair, find_pairs, fold_factors
from trtq.quant.fake_quantize import LOG_EPSILON


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        images: calibration images whose channels are looked at.
        softmax: outputs of softmax get log-sqrt(2) codes.
    """

    images: int = 32
    softmax: bool = True


class _Ends(fx.Interpreter):
    """Keeps the lowest and the highest value of each channel (last axis) of some activations."""

    def __init__(self, graph: fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph)
        self.names, self.ends = names, dict[str, tuple[torch.Tensor, torch.Tensor]]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            flat = result.reshape(-1, result.shape[-1])
            low, high = flat.amin(dim=0), flat.amax(dim=0)
            if n.name in self.ends:
                low, high = (
                    torch.minimum(low, self.ends[n.name][0]),
                    torch.maximum(high, self.ends[n.name][1]),
                )
            self.ends[n.name] = low, high
        return result


def _pairs(context: MethodContext) -> list[Pair]:
    return [
        p
        for p in find_pairs(context)[0]
        if ops.of(p.producer).name == "layer_norm"
        and p.activation is p.producer
        and p.restore is None  # its shift moves, too, and an add would miss it
    ]


def _centre(context: MethodContext, pair: Pair, middle: torch.Tensor) -> bool:
    """Move the middle of each channel to 0; return False where that is not exact.

    The middle m moves from the norm's shift into the biases of the layers that read it:
    W x + b = W (x - m) + (b + W m).

    Args:
        context: its constants change.
        pair: of the norm and its layers.
        middle: float32 [C].
    """
    shift = (*operands(pair.producer), None, None)[3]
    layers = [weight_and_bias(context.graph, c) for c in pair.consumers]
    moved = [shift, *(bias for _, bias in layers)]
    linear = all(ops.kind(c) == "linear" for c in pair.consumers)
    if not linear or not all(_own_constant(context.graph, n) for n in moved):
        return False
    old = [context.constant(n) for n in moved]
    context.fold(moved[0], old[0] - middle)
    for (weight, bias), value in zip(layers, old[1:], strict=True):
        assert bias is not None
        context.fold(bias, value + context.constant(weight) @ middle)
    return True


def _own_constant(graph: fx.GraphModule, node: object) -> bool:
    """Whether a node is a constant that one call alone reads."""
    known = get_constant(graph, node) is not None
    return known and isinstance(node, fx.Node) and len(node.users) == 1


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Fold r1 and r2 of every LayerNorm, and give softmax outputs their logarithmic format.

    With ``r`` the ratio of a channel's range to the mean range, the norm is divided by r and the
    weights that read it are multiplied with r: one range then fits all channels.

    Returns:
        Numbers of ``layernorms`` and of those ``centred``, ``softmaxes``: names of quantizers, and
        the ``label`` that follows.
    """
    pairs = _pairs(context)
    watch = _Ends(context.graph, {p.activation.name for p in pairs})
    with torch.inference_mode():
        for batch in context.images(arguments.images):
            watch.run(*batch)
    centred = []
    for pair in pairs:
        low, high = (v.clone() for v in watch.ends[pair.activation.name])
        if _centre(context, pair, (low + high) / 2):
            centred.append(node_name(pair.consumers[0]))
            spread = (high - low) / 2
        else:
            spread = torch.maximum(low.abs(), high.abs())
        live = spread > 0
        mean = spread[live].mean() if bool(live.any()) else torch.ones(())
        fold_factors(
            context, pair, torch.where(live, spread / mean, torch.ones_like(spread)).clamp_min(1e-3)
        )
    softmaxes = log2_outputs_(context, None) if arguments.softmax else []
    return {
        "layernorms": len(pairs),
        "centred": len(centred),
        "softmaxes": softmaxes,
        "label": "ops" if softmaxes else "folded",
    }


def finish(context: MethodContext, arguments: Arguments) -> None:
    """Set the step of the logarithm to 1/2, which is log-sqrt(2).

    The lowest value becomes ``amax * 2^(-qmax / 2)``, no less than 1e-5: the range of a softmax's
    codes ends where the codes run out.
    """
    if not arguments.softmax:
        return
    for q in context.placement.active:
        if q.format.kind == "log2":
            amax = context.encodings.amax[q.name]
            context.encodings.amin[q.name] = (amax * 2.0 ** (-q.format.qmax / 2.0)).clamp_min(
                LOG_EPSILON
            )


METHOD = Method(
    name="repq",
    summary="RepQ-ViT: per-channel ranges behind LayerNorm folded into one range; log-sqrt(2) "
    "codes "
    "for softmax.",
    label="ops",
    stage="before",
    source="Li et al. 2023, RepQ-ViT, eq. 9-14 and 16-18, with symmetric codes: r2 centres each "
    "channel",
    arguments=Arguments(),
    run=run,
    exact=True,
    finish=finish,
    not_applicable_reason=needs(
        BATCHES,
        (
            lambda context: _pairs(context) or attention_probabilities(context.graph),
            "it has no LayerNorm in front of a linear; it is for transformers",
        ),
    ),
    excludes=("smooth", "qads", "integer-softmax"),
)
