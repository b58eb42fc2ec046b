"""Ranges of a matrix whose rows are cut into blocks with a scale each."""

from __future__ import annotations

from functools import partial

import torch

from trtq.quant.fake_quantize import block_scales
from trtq.quant.formats import FP4_LARGEST, FP8_LARGEST
from trtq.quant.weight_ranges import CHUNK_VALUES, Moments, row_dot, search_rows

SMALLEST_E4M3 = 2.0**-9


def block_amax(
    weight: torch.Tensor, block: int, qmax: int, moments: Moments | None = None
) -> torch.Tensor:
    """Return the largest magnitude of each block of a weight.

    With ``moments`` it is the fraction of it with the least expected squared error of the output,
    ``sum d_i^2 E[x_i^2]`` for the rounding errors ``d`` of the block.

    Args:
        weight: float32 [N, K].
        block: values that share a scale; K is a multiple of it.
        qmax: highest code.
        moments: of the K inputs; None for the plain largest magnitude.

    Returns:
        float32 [N, K / block]; 1 for a block of zeros.
    """
    rows = weight.reshape(-1, block)
    if moments is None:
        best = rows.abs().amax(dim=1)
    else:
        energy = (moments.mean.square() + moments.variance).to(weight.device).float()
        of_blocks = energy.reshape(-1, block)
        step = len(of_blocks) * max(1, CHUNK_VALUES // of_blocks.numel())  # whole rows of a weight
        parts = (rows[i : i + step] for i in range(0, len(rows), step))
        best = torch.cat([_search(part, of_blocks, qmax) for part in parts])
    best = torch.where(best > 0, best, torch.ones_like(best))
    return best.reshape(weight.shape[0], -1)


def _search(rows: torch.Tensor, of_blocks: torch.Tensor, qmax: int) -> torch.Tensor:
    energy = of_blocks.repeat(len(rows) // len(of_blocks), 1)
    return search_rows(rows, _no_shift, partial(row_dot, energy), qmax)


def _no_shift(rows: torch.Tensor) -> torch.Tensor:
    """Return 0: how the blocks of a row shift its sum is not known to one block."""
    return rows.new_zeros(len(rows))


def nvfp4_amax(weight: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitudes of a weight's blocks of 16 in NVFP4.

    Each is 6 times a scale that NVFP4 has: an E4M3 number times ``m / (6 * 448)``, where ``m`` is
    the tensor's largest magnitude. The largest block then has a scale code of 448.

    Args:
        weight: float32 [N, K], K a multiple of 16.

    Returns:
        float32 [N, K / 16], greater than 0.
    """
    unit = weight.abs().amax().clamp_min(torch.finfo(torch.float32).tiny * 2.0**24)
    unit = unit / (FP4_LARGEST * FP8_LARGEST)
    scales = block_scales(weight, unit)
    return torch.maximum(scales, SMALLEST_E4M3 * unit) * FP4_LARGEST
