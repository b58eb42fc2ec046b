"""The hardware table: what each device could do at most, from data sheets (devices.toml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from trtq.errors import UsageError, suggest
from trtq.recipe import read_toml


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: as ``--device`` and budgets write it.
        title: what people call it.
        kind: its class: ``server``, ``geforce`` or ``jetson``.
        peaks: dense operations a second by precision: fp32, fp16, int8, fp8; what is missing has no kernels.
        bandwidth: of its memory, bytes a second.
        power: limit in W.
        source: where the figures come from.
        efficiency: share of the peak a kernel reaches; fitted, one number a class.
        launch: seconds a kernel takes on top; fitted, one number a class.
        memory: share of the bandwidth a kernel reaches.
        fitted_to: the published latencies behind the two.
    """

    name: str
    title: str
    kind: str
    peaks: dict[str, float]
    bandwidth: float
    power: float
    source: str
    efficiency: float
    launch: float
    memory: float
    fitted_to: str


@cache
def devices() -> dict[str, Device]:
    """Return every device by name."""
    table = read_toml(Path(__file__).with_name("devices.toml"))
    return {name: _device(name, row, table["class"][row["class"]]) for name, row in table["device"].items()}


def _device(name: str, row: dict[str, Any], shared: dict[str, Any]) -> Device:
    return Device(
        name=name, title=row["title"], kind=row["class"], peaks={p: row[p] * 1e12 for p in ("fp32", "fp16", "int8", "fp8") if p in row},
        bandwidth=row["bandwidth"] * 1e9, power=row["power"], source=row["source"], efficiency=shared["efficiency"],
        launch=shared["launch_us"] * 1e-6, memory=shared["memory"], fitted_to=shared["fitted_to"],
    )  # fmt: skip


def find_device(name: str) -> Device:
    """Return the device called ``name``.

    Raises:
        UsageError: unknown (the nearest are suggested).
    """
    found = devices().get(name.strip().lower())
    if found is None:
        known = f"known are {', '.join(devices())}"
        raise UsageError(f"Unknown device {name!r} in the hardware table", known, suggest(name, devices()))
    return found
