"""What an epoch of training reached, as records have it; needs no torch."""

from __future__ import annotations

import msgspec


class Epoch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one epoch of training reached.

    Attributes:
        lr: learning rate at its end.
        score: on the validation images, percent; None without any.
    """

    loss: float
    lr: float
    score: float | None = None
    images_per_s: float
