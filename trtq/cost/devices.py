"""The hardware table: what each device could do at most, from the data sheets in the catalogue."""

from __future__ import annotations

from functools import cache

import msgspec

from trtq.errors import UsageError, suggest
from trtq.platform.catalogue import Roofline, catalogue
from trtq.platform.target import Target


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: as ``--device`` and budgets write it.
        title: what people call it.
        kind: its class: ``server``, ``geforce`` or ``jetson``.
        peaks: dense operations a second by precision: fp32, fp16, int8, fp8, fp4; what is missing
            has no kernels.
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
    """Return every device with peaks, by name."""
    return {
        name: _device(name, row.title, row.roofline)
        for name, row in catalogue().devices.items()
        if row.roofline is not None
    }


def _device(name: str, title: str, row: Roofline) -> Device:
    fitted = catalogue().classes[row.kind]
    peaks = {"fp32": row.fp32, "fp16": row.fp16, "int8": row.int8}
    peaks |= {"fp8": row.fp8, "fp4": row.fp4}
    return Device(
        name=name,
        title=row.title or title,
        kind=row.kind,
        peaks={precision: v * 1e12 for precision, v in peaks.items() if v is not None},
        bandwidth=row.bandwidth * 1e9,
        power=row.power,
        source=row.source,
        efficiency=fitted.efficiency,
        launch=fitted.launch_us * 1e-6,
        memory=fitted.memory,
        fitted_to=fitted.fitted_to,
    )


def target_of(name: str) -> Target:
    """Return the target that a device of the hardware table is, or that a ``--target`` names.

    Args:
        name: such as ``orin-nano``, or a target such as ``xavier@8.5``; case does not count for
            devices.

    Raises:
        UsageError: unknown (the nearest are suggested).
    """
    row = catalogue().devices.get(name.strip().lower())
    return Target.parse(row.variant_of if row is not None and row.variant_of else name)


def find_device(name: str) -> Device:
    """Return the device called ``name``.

    Args:
        name: as in :func:`devices`; case does not count.

    Raises:
        UsageError: unknown (the nearest are suggested).
    """
    device = devices().get(name.strip().lower())
    if device is None:
        known = f"known are {', '.join(devices())}"
        raise UsageError(
            f"Unknown device {name!r} in the hardware table", known, suggest(name, devices())
        )
    return device
