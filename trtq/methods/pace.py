"""How long a learning method takes, and how many of its steps a time budget allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

WORTH_SAYING_S = 60.0
FEWEST = 10  # steps below which nothing is learned


class Pace:
    """Times the first steps of a loop, says how long all take, and shortens the loop to a budget.

    The first step of a process pays for what torch prepares, so the second one is timed.

    Args:
        method: name of the method, for the notes.
        steps: that were asked for.
        budget_s: seconds that the loop may take; None without a limit.
        note: receives a line.
        settled: the number that an earlier part of this run found, 0 for none.

    Attributes:
        total: steps that are done in the end.
    """

    def __init__(
        self,
        method: str,
        steps: int,
        budget_s: float | None,
        note: Callable[[str], None],
        settled: int = 0,
    ) -> None:
        self.method, self.steps, self.budget_s, self.note = method, steps, budget_s, note
        self.total = settled or steps
        self.settled = bool(settled)
        self.began = self.last = time.perf_counter()
        self.seen = 0

    def did(self, done: int) -> None:
        """Count a step, and settle the total after the second one.

        Args:
            done: steps that are done, with those of earlier parts of the run.
        """
        now = time.perf_counter()
        step_s, self.last, self.seen = now - self.last, now, self.seen + 1
        if self.settled or self.seen < 2:
            return
        self.settled = True
        whole = f"{self.steps} steps of {step_s:.2g} s take about {_minutes(self.steps * step_s)}"
        if self.budget_s is None:
            if (self.steps - done) * step_s > WORTH_SAYING_S:
                self.note(f"{self.method}: {whole} (--time-budget MIN shortens it)")
            return
        left = max(0.0, self.budget_s - (now - self.began))
        fitting = max(FEWEST, done + int(left / step_s))
        self.total = min(self.steps, fitting)
        if self.total < self.steps:
            self.note(
                f"{self.method}: {self.total} steps fit into the time budget of "
                f"{_minutes(self.budget_s)}; {whole} "
                f"(--time-budget {math.ceil(self.steps * step_s / 60)} does them all)"
            )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
