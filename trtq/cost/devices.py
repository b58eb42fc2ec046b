"""The hardware table: what each device could do at most, from data sheets (devices.toml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from trtq.artifact import check_record
from trtq.errors import UsageError, suggest
from trtq.recipe import read_toml


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: as ``--device`` and budgets write it.
        title: what people call it.
        kind: its class: ``server``, ``geforce`` or ``jetson``.
        peaks: dense operations a second by precision: fp32, fp16, int8, fp8; what is missing has no
            kernels.
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


class _Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    title: str
    kind: str = msgspec.field(name="class")
    fp32: float
    fp16: float | None = None
    int8: float | None = None
    fp8: float | None = None
    bandwidth: float
    power: float
    source: str


class _Class(msgspec.Struct, forbid_unknown_fields=True):
    efficiency: float
    launch_us: float
    memory: float
    fitted_to: str


class _Table(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    device: dict[str, _Row]
    classes: dict[str, _Class] = msgspec.field(name="class")


@cache
def devices() -> dict[str, Device]:
    """Return every device by name."""
    path = Path(__file__).with_name("devices.toml")
    table = check_record(read_toml(path), path, _Table, kind="hardware table")
    return {name: _device(name, row, table.classes[row.kind]) for name, row in table.device.items()}


def _device(name: str, row: _Row, shared: _Class) -> Device:
    peaks = {
        p: v * 1e12 for p in ("fp32", "fp16", "int8", "fp8") if (v := getattr(row, p)) is not None
    }
    return Device(
        name=name,
        title=row.title,
        kind=row.kind,
        peaks=peaks,
        bandwidth=row.bandwidth * 1e9,
        power=row.power,
        source=row.source,
        efficiency=shared.efficiency,
        launch=shared.launch_us * 1e-6,
        memory=shared.memory,
        fitted_to=shared.fitted_to,
    )


def find_device(name: str) -> Device:
    """Return the device called ``name``.

    Raises:
        UsageError: unknown (the nearest are suggested).
    """
    found = devices().get(name.strip().lower())
    if found is None:
        known = f"known are {', '.join(devices())}"
        raise UsageError(
            f"Unknown device {name!r} in the hardware table", known, suggest(name, devices())
        )
    return found
