"""What a verb tells while it works; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives what happens."""

    def begin(self, label: str, total: int) -> None:
        """A loop of ``total`` items starts; 0 where nobody knows how many."""

    def advance(self, count: int) -> None:
        """``count`` more items are done."""

    def status(self, text: str) -> None:
        """How the loop is doing, such as its loss; the next one takes its place."""

    def note(self, text: str) -> None:
        """A line a user should read: a skip, a fallback, a choice made for them."""


class Silent:
    """Tells nobody."""

    def begin(self, label: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def status(self, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


class Notes:
    """The notes of one run: each is told when it comes, and kept for the run's record.

    Args:
        tell: receives each line.

    Attributes:
        lines: those that came so far.

    >>> note = Notes(print)
    >>> note("a skip", "a fallback")
    a skip
    a fallback
    >>> note.lines
    ['a skip', 'a fallback']
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.lines = tell, list[str]()

    def __call__(self, *lines: str) -> None:
        """Tell and keep lines."""
        for line in lines:
            self.lines.append(line)
            self.tell(line)
