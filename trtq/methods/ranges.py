"""Separate ranges for the tensors of attentions and for LayerNorm outputs."""

from __future__ import annotations

import msgspec
import torch

from trtq import ops
from trtq.errors import UsageError
from trtq.graph.naming import is_softmax
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.quant.calibrate import summarize
from trtq.quant.observe import observe
from trtq.quant.placement import Placement, Quantizer, attention_of


class Clamp(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg attention-percentile.NAME``.

    Attributes:
        percentile: of the magnitudes, percent, above 50.
        images: calibration images that are observed.
    """

    percentile: float = 99.9
    images: int = 256


class Ema(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg layernorm-ema.NAME``.

    Attributes:
        images: calibration images that are averaged over.
    """

    images: int = 128


def _attention_tensors(context: MethodContext) -> list[Quantizer]:
    """Queries, keys and values; never the probabilities, whose few large ones carry the result."""
    attention_operands = [
        q
        for q in context.placement.active
        if attention_of(q) is not None and not q.is_weight and q.format.kind == "uniform"
    ]
    return [q for q in attention_operands if not is_softmax(q.source)]


def _layer_norm_outputs(context: MethodContext) -> list[Quantizer]:
    return [
        q
        for q in context.placement.active
        if ops.of(q.source).name == "layer_norm" and q.format.kind == "uniform"
    ]


def _range_again(
    context: MethodContext, quantizers: list[Quantizer], mode: str, percentile: float, images: int
) -> dict[str, list[float]]:
    """Observe some tensors once more and replace their ranges.

    Args:
        context: its encodings change.
        quantizers: of the tensors.
        mode: name of the calibrator.
        percentile: for the calibrator of that name, percent.
        images: how many are observed.

    Returns:
        The range before and after, by the name of each changed quantizer.
    """
    seen = observe(context.graph, Placement(quantizers), context.images(images), mode=mode)
    changed = {}
    for q in quantizers:
        chosen = summarize(seen[q.source.name], mode, percentile, q.format.bits).amax
        if chosen > 0.0:
            changed[q.name] = [float(context.encodings.amax[q.name]), chosen]
            context.encodings.amax[q.name] = torch.tensor(chosen, dtype=torch.float32)
    return changed


def clamp(context: MethodContext, arguments: Clamp) -> Report:
    """Set the range of queries, keys and values to a percentile of their magnitudes.

    Returns:
        ``ranges``: before and after, by quantizer.

    Raises:
        UsageError: a percentile of 50 or less, or above 100.
    """
    percentile = arguments.percentile
    if not 50.0 < percentile <= 100.0:
        raise UsageError(
            f"Cannot use attention-percentile.percentile={percentile:g}",
            "expected more than 50 and at most 100",
        )
    tensors = _attention_tensors(context)
    if not tensors:
        context.note(
            "attention-percentile: every attention remains in float, so there is nothing to "
            "clamp (--attention int8)"
        )
        return {"ranges": {}}
    return {"ranges": _range_again(context, tensors, "percentile", percentile, arguments.images)}


def ema(context: MethodContext, arguments: Ema) -> Report:
    """Set the range after every LayerNorm to a moving average over images.

    The average is over each image's largest magnitude.

    Returns:
        ``ranges``: before and after, by quantizer.
    """
    return {
        "ranges": _range_again(
            context, _layer_norm_outputs(context), "ema", 100.0, arguments.images
        )
    }


ATTENTION_PERCENTILE = Method(
    name="attention-percentile",
    summary="Clamp queries, keys and values of attentions at a percentile of their magnitudes.",
    label="folded",
    stage="after",
    source="S2 eq. 1",
    arguments=Clamp(),
    run=clamp,
    not_applicable_reason=needs(
        (
            _attention_tensors,
            "it has no attention with quantized operands; it is for transformers",
        )
    ),
    excludes=("ranking",),
)
LAYERNORM_EMA = Method(
    name="layernorm-ema",
    summary="Range of LayerNorm outputs from a moving average over the first images.",
    label="folded",
    stage="after",
    source="S2, dynamic range estimation for LayerNorm: an exponential moving average of each "
    "image's largest magnitude",
    arguments=Ema(),
    run=ema,
    not_applicable_reason=needs(
        (_layer_norm_outputs, "no LayerNorm feeds a quantized layer; it is for transformers")
    ),
)
