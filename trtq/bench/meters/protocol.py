"""Interface of a meter."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Reads one sensor.

    Attributes:
        name: what is read: ``NVML energy counter``, ``RAPL``, ``INA3221``.
        scope: what it covers: ``GPU board``, ``CPU package``, ``rail VDD_IN``.
        counter: whether ``read`` gives joules since some start (a counter) or watts now.
        min_window_s: the shortest window whose mean can be believed, seconds.
        limits: what the sensor cannot see, for the record.
    """

    name: str
    scope: str
    counter: bool
    min_window_s: float
    limits: list[str]

    def read(self) -> float:
        """Return joules or watts.

        Raises:
            MeterError: the sensor does not answer.
        """
