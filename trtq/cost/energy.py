"""Energy and BitOps from counts.

These are models, not measurements: on a GPU they say nothing about joules.
"""

from __future__ import annotations

from trtq.cost.count import LayerCost

FULL = 32
DRAM_OVER_MAC = 200.0  # S1 section 3.5: one 32-bit DRAM access costs 200 times a 32-bit MAC
# Horowitz, ISSCC 2014, 45 nm, pJ: INT8 multiply 0.2 + INT32 add 0.1; FP16 multiply 1.1 + FP32 add
# 0.9; FP32 multiply 3.7 + add 0.9.
PJ_MAC = {16: 2.0, 32: 4.6}
PJ_INT8_MULTIPLY, PJ_INT32_ADD = 0.2, 0.1
PJ_DRAM_BIT = 20.0  # the lower end, 1.3 nJ for 64 bits


def relative_energy(memory_share: float, bits: int) -> float:
    """Return the ratio of the energy at ``bits`` bits to that at 32 bits (S1 eq. 7).

    With the share m of memory it is m b / 32 + (1 - m) (b / 32)^2.

    Args:
        memory_share: of the energy at 32 bits, 0 to 1.
        bits: of weights and activations.

    >>> [round(relative_energy(0.936, b), 3) for b in (8, 6, 4)]
    [0.238, 0.178, 0.118]
    >>> [round(relative_energy(0.952, b), 3) for b in (8, 6, 4)]
    [0.241, 0.18, 0.12]
    """
    return memory_share * bits / FULL + (1.0 - memory_share) * (bits / FULL) ** 2


def layer_energy(layer: LayerCost, weight_bits: int, input_bits: int) -> float:
    """Return a layer's energy for one image in units of one 32-bit MAC (S1 eq. 7).

    The energy of MACs scales with the product of the widths, that of accesses with the width.

    Every weight is read once, every input read once and every output written once, from DRAM: S1
    does not say what it counts, and its printed ratios imply memory shares of 0.936 and 0.952.

    Args:
        layer: its counts.
        weight_bits: of its weight.
        input_bits: of its activations, result included.

    >>> from trtq.cost.count import LayerCost
    >>> one = LayerCost(name="fc", kind="linear", macs=64, weights=2, reads=1, writes=1)
    >>> layer_energy(one, 32, 32), layer_energy(one, 8, 8)
    (864.0, 204.0)
    """
    compute = layer.macs * weight_bits * input_bits / FULL**2
    moved = layer.weights * weight_bits + (layer.reads + layer.writes) * input_bits
    return compute + DRAM_OVER_MAC * moved / FULL


def layer_picojoules(layer: LayerCost, weight_bits: int, input_bits: int) -> float:
    """Return a layer's energy for one image in pJ (Horowitz 2014: 45 nm, 20 pJ a bit of DRAM).

    Below 8 bits the multiplier's energy scales with the product of the widths (an extrapolation);
    the accumulator remains INT32.

    Args:
        layer: its counts.
        weight_bits: of its weight.
        input_bits: of its activations, result included.
    """
    widest = max(weight_bits, input_bits)
    narrow = PJ_INT8_MULTIPLY * weight_bits * input_bits / 64 + PJ_INT32_ADD
    mac = narrow if widest <= 8 else PJ_MAC[16 if widest <= 16 else 32]
    moved = layer.weights * weight_bits + (layer.reads + layer.writes) * input_bits
    return layer.macs * mac + PJ_DRAM_BIT * moved


def layer_bitops(layer: LayerCost, weight_bits: int, input_bits: int) -> float:
    """Return a layer's BitOps: MACs times the widths of both operands."""
    return float(layer.macs * weight_bits * input_bits)
