"""Names that nobody has yet."""

from __future__ import annotations

from collections.abc import Container
from itertools import count


def free_name(name: str, taken: Container[str], sign: str = "_") -> str:
    """Return a name, with the first free number behind it where it is taken.

    Args:
        name: wanted.
        taken: names of others.
        sign: between the name and the number.

    >>> free_name("w", {"w", "w_1"}), free_name("w", ["w"], "."), free_name("w", [])
    ('w_2', 'w.1', 'w')
    """
    numbered = (f"{name}{sign}{k}" for k in count(1))
    return name if name not in taken else next(n for n in numbered if n not in taken)
