"""Progress reports of verbs: the command line draws them, a library user may ignore them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Progress(Protocol):
    """Receives progress reports."""

    def begin(self, label: str, total: int) -> None:
        """A loop of ``total`` items starts; 0 when the number is unknown."""

    def advance(self, count: int) -> None:
        """``count`` more items are done."""

    def status(self, text: str) -> None:
        """The state of the loop, such as its loss; it replaces the previous one."""

    def note(self, text: str) -> None:
        """A line for the user: a skip, a fallback or an automatic choice."""


class Silent:
    """Discards all progress reports."""

    def begin(self, label: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def status(self, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


def or_silent(progress: Progress | None) -> Progress:
    """Return a listener; one that discards everything where there is none."""
    return progress or Silent()


class Notes:
    """The notes of one run: each is passed on at once and kept for the record.

    Args:
        tell: receives each line.

    Attributes:
        lines: the notes so far.

    >>> note = Notes(print)
    >>> note("a skip", "a fallback", "a skip")
    a skip
    a fallback
    >>> note.lines
    ['a skip', 'a fallback']
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.lines = tell, list[str]()

    def __call__(self, *lines: str) -> None:
        """Pass on and keep lines, each once."""
        for line in lines:
            if line not in self.lines:
                self.lines.append(line)
                self.tell(line)


@dataclass(slots=True)
class Clock:
    """Seconds per step, and in all.

    Attributes:
        seconds: by name of the step.
        started: of the current step, by ``time.perf_counter``.
        began: of the clock.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    began: float = field(default_factory=time.perf_counter)

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return round(time.perf_counter() - self.began, 3)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to the step ``name``."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self.started, 3)
        self.started = now
