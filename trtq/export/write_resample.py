"""Resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from trtq.export.write_base import Write, static, val
from trtq.export.writer import UnsupportedOpError, Writer


def upsample(mode: str, place: str = "", **attributes: Any) -> Write:
    """Return a writer for resampling to twice, or any, size.

    Args:
        mode: as ONNX calls it.
        place: how coordinates of the result map to those of the operand; empty where the call says
            it.
        attributes: further attributes.
    """

    def write(w: Writer, n: fx.Node, x: fx.Node, *args: Any) -> Any:
        *aligned, factors = args[1:]
        how = place or ("align_corners" if aligned[0] else "half_pixel")
        if factors is not None and not _fixed_to_whole(n, x, factors):
            scales = np.asarray([1.0, 1.0, *factors], dtype=np.float32)
            return w.op(
                "Resize",
                x,
                None,
                scales,
                mode=mode,
                coordinate_transformation_mode=how,
                **attributes,
            )
        want = args[0] if factors is None else static(val(n).shape[2:])
        size = w.op("Concat", w.op("Slice", w.op("Shape", x), [0], [2], [0]), w.value(want), axis=0)
        return w.op(
            "Resize",
            x,
            None,
            None,
            size,
            mode=mode,
            coordinate_transformation_mode=how,
            **attributes,
        )

    return write


def _fixed_to_whole(n: fx.Node, x: fx.Node, factors: Sequence[float]) -> bool:
    """Whether all sizes are fixed and those of the result are exactly size times factor.

    They are then written as sizes, which every parser reads alike; 7 * 1.5 = 10.5 becomes 10, and
    only the factor says how torch maps coordinates.
    """
    have, want = val(x).shape[2:], val(n).shape[2:]
    if not all(isinstance(s, int) for s in (*have, *want)):
        return False
    return all(h * f == v for h, f, v in zip(have, factors, want, strict=True))


def grid_sample(
    w: Writer, n: fx.Node, x: fx.Node, grid: fx.Node, mode: int, padding: int, aligned: bool
) -> Any:
    """Sample an image at computed positions."""
    if w.opset < 16 or val(x).ndim > 4:
        raise UnsupportedOpError("sampling at computed places before opset 16, or of volumes")
    modes = ("linear", "nearest", "cubic") if w.opset >= 20 else ("bilinear", "nearest", "bicubic")
    beyond = ("zeros", "border", "reflection")[padding]
    return w.op(
        "GridSample", x, grid, mode=modes[mode], padding_mode=beyond, align_corners=int(aligned)
    )


nearest = upsample("nearest", "asymmetric", nearest_mode="floor")
nearest_exact = upsample("nearest", "half_pixel", nearest_mode="round_prefer_ceil")
linear = upsample("linear")
cubic = upsample("cubic", cubic_coeff_a=-0.75)
