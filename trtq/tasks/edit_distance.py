"""How many characters must be changed to make one text of another."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how few insertions, deletions and replacements make one sequence the other.

    Args:
        one: text, or symbols that can be compared.
        other: of the same kind.

    >>> edit_distance("kitten", "sitting")
    3
    """
    costs = list(range(len(other) + 1))
    for i, own in enumerate(one, 1):
        before, costs[0] = costs[0], i
        for j, theirs in enumerate(other, 1):
            changed = before + (own != theirs)
            before = costs[j]
            costs[j] = min(changed, costs[j] + 1, costs[j - 1] + 1)
    return costs[-1]
