"""Which quantizer gets which width: the one asked for every layer, and those of an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import torch

from trtq import ops
from trtq.errors import UsageError, suggest
from trtq.quant.formats import HALF, BitConfig

if TYPE_CHECKING:
    from trtq.quant.placement import Quantizer

OF_A_LAYER = ("input", "weight")


def layers_with_weights(quantizers: Sequence[Quantizer]) -> list[str]:
    """Return the names of convolutions and linear layers, in graph order, each once."""
    return list(dict.fromkeys(q.layer for q in quantizers if q.role in OF_A_LAYER))


def set_bits_(quantizers: Sequence[Quantizer], bits: BitConfig) -> None:
    """Give every quantizer one width.

    The first and the last layer with weights (S1 A.2) have :attr:`BitConfig.at_ends`; the shortcuts
    of residual adds keep 8 bits, and remain in float beside formats that are no integers of both
    operands.

    Args:
        quantizers: of a graph, in its order; their ``format`` or ``float_reason`` changes.
        bits: what was asked for.
    """
    layers = layers_with_weights(quantizers)
    ends, option = {*layers[:1], *layers[-1:]}, f"--bits {bits.label}"
    plain = bits.kind == "uniform" and not bits.weight_only
    for q in quantizers:
        if q.role == "residual":
            if not plain:
                _leave_(q, f"{option} has no INT8 for the shortcuts of residual adds")
        elif q.role not in OF_A_LAYER and (bits.weight_only or bits.in_blocks):
            _leave_(q, f"{option} is for layers with weights")
        elif q.layer not in ends:
            _give_(q, bits, option)
        elif bits.at_ends == HALF:
            _leave_(q, f"{option} keeps the first and the last layer in float")
        else:
            _give_(q, bits.at_ends, option)


def set_layer_bits_(quantizers: Sequence[Quantizer], layer_bits: Mapping[str, BitConfig]) -> None:
    """Give single layers widths of their own.

    Args:
        quantizers: of a graph, in its order; their ``format`` or ``float_reason`` changes.
        layer_bits: by the name of the layer; 16 bits of weight keep it in float.

    Raises:
        UsageError: there is no such layer; the nearest name is suggested.
    """
    known = layers_with_weights(quantizers)
    for name in layer_bits:
        if name not in known:
            raise UsageError(
                f"The allocation names a layer {name} that the model does not have",
                hint=suggest(name, known),
            )
    for q in quantizers:
        if q.role not in OF_A_LAYER or q.layer not in layer_bits:
            continue
        bits = layer_bits[q.layer]
        if bits.quantized:
            _give_(q, bits, "the allocation")
        else:
            q.decided = "allocation"
            _leave_(q, "the allocation keeps it in float")


def _give_(quantizer: Quantizer, bits: BitConfig, option: str) -> None:
    """Give a quantizer a width; tensors without a form in it remain in float."""
    if bits.weight_only and not quantizer.is_weight:
        _leave_(quantizer, f"{option} quantizes the weight alone")
        return
    unfit = _unfit(quantizer, bits.block) if bits.in_blocks else ""
    if unfit:
        _leave_(quantizer, f"{option}: {unfit}")
        return
    quantizer.weight_only = bits.weight_only
    quantizer.format = msgspec.structs.replace(
        quantizer.format,
        bits=bits.weight if quantizer.is_weight else bits.input,
        kind=bits.kind,
        block=bits.block or msgspec.UNSET,
    )


def _leave_(quantizer: Quantizer, reason: str) -> None:
    quantizer.float_reason = quantizer.float_reason or reason


def _unfit(quantizer: Quantizer, block: int) -> str:
    """Return why a tensor cannot be cut into blocks, "" where it can."""
    if ops.kind(quantizer.consumer) != "linear":
        return "blocks are for linear layers"
    value = quantizer.source.meta.get("val")
    size = value.shape[-1] if isinstance(value, torch.Tensor) and value.ndim else 0
    if not isinstance(size, int) or size % block:
        return f"its {size} inputs are no multiple of blocks of {block}"
    return ""
