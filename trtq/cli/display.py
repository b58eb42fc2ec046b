"""Terminal display: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from trtq.terminal import say, visible


def pace(rate: float) -> str:
    """Return items a second in words, seconds for each where they are fewer than one.

    >>> pace(31.6), pace(2.04), pace(0.05)
    ('32/s', '2.0/s', '20 s each')
    """
    if rate < 1:
        return f"{1 / rate:.0f} s each" if rate > 0 else "0/s"
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def counted(lines: Iterable[str]) -> list[str]:
    """Return each line once, in their order, with how often it occurs.

    >>> counted(["scales to fp32", "no timing cache", "scales to fp32"])
    ['scales to fp32 (2 times)', 'no timing cache']
    """
    return [f"{line} ({n} times)" if n > 1 else line for line, n in Counter(lines).items()]


class ConsoleProgress:
    """Shows a progress bar with count, rate and time left on a terminal.

    Elsewhere it prints plain lines, and nothing when quiet.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._label, self._total, self._done, self._start, self._told = "", 0, 0, 0.0, 0.0
        self._status = ""

    def begin(self, label: str, total: int) -> None:
        """Start a loop of ``total`` items; 0 when the number is unknown."""
        self.close()
        self._label, self._total, self._done, self._start, self._told = (
            label,
            total,
            0,
            time.monotonic(),
            time.monotonic(),
        )
        self._status = ""
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(visible(label), total=total or None, rate="")
        else:
            say(f"{label}: {total} to do" if total else label, err=True)

    def advance(self, count: int) -> None:
        """``count`` more are done."""
        self._done += count
        rate = self._done / max(time.monotonic() - self._start, 1e-6)
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{pace(rate)}{visible(self._status)}")
            if 0 < self._total <= self._done:
                self.close()
        elif not self.quiet and time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            left = (self._total - self._done) / max(rate, 1e-6)
            done = (
                f": {self._done}/{self._total}, {pace(rate)}{self._status}, {left:.0f} s left"
                if self._total
                else self._status
            )
            say(f"{self._label}{done}", err=True)

    def status(self, text: str) -> None:
        """Show ``text`` beside the rate."""
        self._status = f", {text}" if text else ""

    def note(self, text: str) -> None:
        """Print a line for the user."""
        if not self.quiet:
            self.close()
            say(f"  {text}", err=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def print_record(record: Any, *, as_json: bool, lines: Iterable[str] = ()) -> None:
    """Print a record as JSON, or its summary and ``lines`` about it.

    Args:
        record: with a ``summary``.
        as_json: print all of it.
        lines: for a person, indented below the summary.

    Raises:
        ClosedOutputError: the reader of standard output has exited.
    """
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for line in lines:
        say(f"  {line}")


def print_json(value: Any) -> None:
    """Print a record as indented JSON."""
    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode(), lines=True)
