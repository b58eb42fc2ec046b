"""Samples that judge what was made with the others."""

from __future__ import annotations

EVERY = 4  # of the samples one is held out
MOST = 64
FEWEST = 2 * EVERY
PAYS = 0.95  # of the error before: a smaller gain is within the noise of the samples


def split(count: int) -> tuple[list[int], list[int]]:
    """Return which of ``count`` samples make something, and which judge it.

    Every fourth one judges, at most 64.

    >>> split(9)
    ([0, 1, 2, 4, 5, 6, 8], [3, 7])
    """
    judges = list(range(EVERY - 1, count, EVERY)[:MOST])
    return sorted(set(range(count)) - set(judges)), judges
