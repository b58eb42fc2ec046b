"""Result of an epoch of training, as records have it; needs no torch."""

from __future__ import annotations

import msgspec


class Epoch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Result of one epoch of training.

    Attributes:
        loss: mean over the images.
        lr: learning rate at its end.
        score: on the validation images, in the unit of the run's measure; None without any.
        images_per_s: images learned from a second, over all processes.
    """

    loss: float
    lr: float
    score: float | None = None
    images_per_s: float
