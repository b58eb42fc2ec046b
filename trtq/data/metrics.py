"""What is counted on logits: accuracy, agreement, signal to quantization noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) of two sums of squares: infinity without noise, minus infinity without signal.

    >>> round(ratio_db(25.0, 0.25), 3)
    20.0
    """
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def predictions(logits: Array) -> npt.NDArray[np.int64]:
    """Return the class of each image, or of each pixel when ``logits`` is [N, classes, H, W]; one channel decides by its sign."""
    if logits.ndim == 1 or logits.shape[1] == 1:  # one logit decides between two classes
        return np.asarray(logits > 0, dtype=np.int64)
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


@dataclass(slots=True)
class Scores:
    """Counts over batches of logits.

    Attributes:
        images: how many images were seen.
        top1, top5: how many labels were first, or among the first five.
        agree, compared: how many predictions equal the reference's, of how many (pixels for dense outputs).
        signal, noise: sums of squares against the reference.
    """

    images: int = 0
    top1: int = 0
    top5: int = 0
    agree: int = 0
    compared: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, logits: Array, labels: Sequence[int] | None, reference: Array | None) -> None:
        """Count one batch; ``logits`` and ``reference`` are [N, classes] or [N, classes, H, W]."""
        self.images += len(logits)
        if labels is not None and logits.ndim == 2:
            wanted = np.asarray(labels)[:, None]
            best = np.argsort(-logits, axis=1, kind="stable")[:, : min(5, logits.shape[1])]
            self.top1 += int((best[:, :1] == wanted).sum())
            self.top5 += int((best == wanted).sum())
        if reference is not None:
            mine, theirs = predictions(logits), predictions(reference)
            self.agree += int((mine == theirs).sum())
            self.compared += mine.size
            self.signal += float(np.sum(np.square(reference, dtype=np.float64)))
            self.noise += float(np.sum(np.square(np.subtract(reference, logits, dtype=np.float64))))

    @property
    def agreement(self) -> float | None:
        """Share of equal predictions in percent, None without a reference."""
        return 100.0 * self.agree / self.compared if self.compared else None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise against the reference in dB, None without a reference or without noise."""
        value = ratio_db(self.signal, self.noise) if self.compared else math.inf
        return value if math.isfinite(value) else None
