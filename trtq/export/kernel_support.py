"""Where a quantizer runs: in a kernel of TensorRT, as extra ops, or only in the simulation."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trtq.quant.formats import Format

LOG2_OPS = 9  # what lowering writes: Add Log Mul Add Round Clip Sub Mul Pow


FLOATS = {
    "fp8": "FP8, on Ada (sm89), Hopper and later",
    "fp4": "FP4, on Blackwell (sm100, sm120) and later",
}


class Runs(NamedTuple):
    """The answer for one quantizer.

    Attributes:
        label: ``engine`` TensorRT has the kernel, ``ops`` extra float ops run, ``simulated`` there
            is no kernel anywhere.
        extra_ops: how many.
        computes_in: what the engine multiplies with.
    """

    label: Literal["engine", "ops", "simulated"]
    extra_ops: int
    computes_in: str


def where_it_runs(
    fmt: Format, *, is_weight: bool, partner: bool = True, int4: bool = False
) -> Runs:
    """Return where a tensor of this format runs in the exported file.

    Args:
        fmt: its format.
        is_weight: it is a constant.
        partner: what it is multiplied with has integer codes, too (True for the shortcut of an
            add).
        int4: weights of 4 bits are stored as INT4.
    """
    if not fmt.has_kernel:
        if is_weight:
            return Runs("simulated", 0, "float: the weights are stored as rounded values")
        return Runs("ops", LOG2_OPS, "float")
    if fmt.kind in FLOATS:
        alone = "float: what it is multiplied with has no codes"
        return Runs("engine", 0, FLOATS[fmt.kind] if partner else alone)
    if is_weight and (fmt.blocked or (int4 and fmt.bits == 4)):
        return Runs("engine", 0, "float: INT4 weights are dequantized first")
    clips = int(fmt.bits < 8 and not is_weight)
    width = "INT8" if partner else "float: what it is multiplied with has no integer codes"
    return Runs("ops" if clips else "engine", clips, width)
