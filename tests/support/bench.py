"""Short measurements and a simulated clock."""

from __future__ import annotations

QUICK = {"duration": 0.3, "min_samples": 50, "max_duration": 1.0, "verdict": False}


# ---- sampling ----------------------------------------------------------------------------------


class Ticks:
    """A clock that moves when something is called."""

    def __init__(self, *durations: int) -> None:
        self.now, self.durations, self.calls = 0, durations, 0

    def __call__(self) -> int:
        return self.now

    def work(self) -> None:
        self.now += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1
