"""Scores of logits: accuracy, agreement, signal to quantization noise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) of two sums of squares.

    It is inf without noise, and -inf without signal or where one is not finite.

    Args:
        signal: sum of squares, at least 0.
        noise: sum of squares, at least 0.

    >>> round(ratio_db(25.0, 0.25), 3)
    20.0
    """
    if noise == 0.0:
        return math.inf
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def sqnr_words(value: float | None, *, finite: bool = True) -> str:
    """Return a signal-to-noise ratio in dB as text.

    None means no difference, unless an output was not ``finite``.

    Args:
        value: dB, or None.
        finite: whether the values behind it are.
    """
    return (
        "NaN or infinite" if not finite else "no difference" if value is None else f"{value:.2f} dB"
    )


def predictions(logits: Array) -> npt.NDArray[np.int64]:
    """Return the class of each image, or of each pixel when ``logits`` is [N, classes, H, W].

    The scores are of two classes or more.

    Args:
        logits: [N, classes] or [N, classes, H, W]; of equal scores the first class is taken.
    """
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def confusion(
    predicted: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], classes: int, ignore: int
) -> npt.NDArray[np.int64]:
    """Return how often each class (row) was predicted as each (column), [classes, classes].

    Labels equal to ``ignore`` do not count.

    Args:
        predicted: class indices of any shape, 0 to ``classes`` - 1.
        wanted: labels of the same shape, in the same range or ``ignore``.
        classes: how many there are.
        ignore: the label that does not count.
    """
    seen = wanted != ignore
    return np.bincount(
        wanted[seen] * classes + predicted[seen], minlength=classes * classes
    ).reshape(classes, classes)


def overlap(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the intersection over union of each class in percent, NaN for an absent class.

    Args:
        counts: of :func:`confusion`.

    >>> overlap(np.array([[3, 1], [0, 4]])).tolist()
    [75.0, 80.0]
    """
    both = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - both
    return np.where(union > 0, 100.0 * both / np.maximum(union, 1), np.nan)


def mean_overlap(counts: npt.NDArray[np.int64]) -> float:
    """Return the mean intersection over union (mIoU) of the classes that occur, percent.

    Args:
        counts: of :func:`confusion`; 0 where nothing was counted.
    """
    values = overlap(counts)
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def hit_rate(counts: npt.NDArray[np.int64]) -> float:
    """Return the share of right answers, percent: top-1 of images, accuracy of pixels.

    Args:
        counts: of :func:`confusion`; 0 where nothing was counted.
    """
    return 100.0 * float(np.trace(counts)) / max(int(counts.sum()), 1)
