"""Samples that judge what was made with the others."""

from __future__ import annotations

EVERY = 4  # of the samples one is held out
MOST = 64
FEWEST = 2 * EVERY
PAYS = 0.95  # of the error before: a smaller gain is within the noise of the samples


def held_out(count: int) -> range:
    """Return which of ``count`` samples judge: every fourth one, at most 64.

    >>> list(held_out(9))
    [3, 7]
    """
    return range(EVERY - 1, count, EVERY)[:MOST]
