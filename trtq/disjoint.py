"""Disjoint sets of names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sets:
    """Names, some of which belong together.

    Attributes:
        parent: of each name, another name of its set, or itself.

    >>> sets = Sets()
    >>> sets.join(["a", "b"])
    >>> sets.join(["b", "c"])
    >>> list(sets.groups(["c", "d", "a"]))
    [['c', 'a'], ['d']]
    """

    parent: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """Return the name that stands for the set of ``name``."""
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Put names into one set."""
        first, *rest = [self.find(n) for n in names] or [""]
        self.parent.update({r: first for r in rest if r != first})

    def groups(self, names: Collection[str]) -> Iterator[list[str]]:
        """Return the sets that some of these names are in, without other names.

        Args:
            names: unknown ones are alone.
        """
        members: dict[str, list[str]] = {}
        for name in names:
            members.setdefault(self.find(name), []).append(name)
        yield from members.values()
