"""Loss of a tensor in another type."""

from __future__ import annotations

import torch


def lost_in(before: torch.Tensor, after: torch.Tensor) -> str:
    """Return what a cast lost, as a person reads it; "" for nothing but the rounding of floats.

    Args:
        before: values of any real type.
        after: the same values in another type.

    >>> lost_in(torch.tensor([1.5]), torch.tensor([1]))
    '1.5 would become 1'
    """
    if before.is_floating_point() and after.is_floating_point():
        overflow = torch.isfinite(before) & ~torch.isfinite(after)
        if not bool(overflow.any()):
            return ""
        return f"{float(before[overflow][0]):g} is beyond its range"
    differs = after.to(before.dtype) != before
    if not bool(differs.any()):
        return ""
    return f"{before[differs][0].item()} would become {after[differs][0].item()}"
