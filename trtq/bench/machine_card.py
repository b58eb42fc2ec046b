"""The machine card of a record: what affects latency on a machine, and how two cards differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class GpuCard(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Properties and settings of a GPU; None where it reports none.

    Attributes:
        cuda: the newest version of CUDA that the driver supports, such as ``12.4``.
        power_limit_w: the enforced one; ``power_limits_w``: the smallest and the largest that can
            be set.
        ecc, mig, persistence: whether they are on.
        compute_mode: number of NVML; 0 is the default.
        locked_clocks: what came of locking them, None where that was not asked for.
    """

    name: str | None = None
    uuid: str | None = None
    driver: str | None = None
    cuda: str | None = None
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    power_limits_w: list[float | None] | None = None
    sm_clock_max_mhz: int | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    compute_mode: int | None = None
    locked_clocks: str | None = None


class JetsonCard(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Properties and settings of a board; None where its tools say nothing.

    Attributes:
        l4t: release of its system.
        power_mode, clocks: while it was measured.
        soc, jetpack, gpu_max_hz: of boards reached over SSH.
    """

    model: str | None = None
    soc: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    clocks: str | None = None
    gpu_max_hz: float | None = None


class Card(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The machine that a record was made on.

    Attributes:
        kind: ``cpu``, ``gpu`` or ``jetson``.
        device: ``cpu`` or ``cuda:N``.
        affinity: the cores that this process may use.
        load: averages over 1, 5 and 15 minutes.
        host: a digest of its name, or the user's name for a board.
        memory_bytes, tensorrt, trtexec, python: of boards reached over SSH.
        missing: why a field has no value, by its name.
    """

    kind: str = ""
    device: str | None = None
    cpu: str | None = None
    cores: int | None = None
    governor: str | None = None
    affinity: list[int] | None = None
    load: list[float] | None = None
    container: str | None = None
    host: str | None = None
    kernel: str | None = None
    memory_bytes: int | None = None
    tensorrt: str | None = None
    trtexec: int | None = None
    python: str | None = None
    gpu: GpuCard | None = None
    jetson: JetsonCard | None = None
    missing: dict[str, str] = {}

    @property
    def machine(self) -> str:
        """Its name: its GPU, its board or its CPU."""
        gpu, board = self.gpu or GpuCard(), self.jetson or JetsonCard()
        return gpu.name or board.model or self.cpu or "unknown"


# Without these a record cannot be compared with another one: present, or with the reason why not
# in "missing".
NEEDED = {
    "cpu": ("cpu", "cores", "governor", "affinity", "container", "host"),
    "gpu": (
        "name",
        "uuid",
        "driver",
        "power_limit_w",
        "sm_clock_max_mhz",
        "ecc",
        "mig",
        "locked_clocks",
    ),
    "jetson": ("model", "l4t", "power_mode", "clocks"),
}


def incomplete(card: Card) -> list[str]:
    """Return what a card lacks without saying why; a record with such a card is not comparable.

    The names are fields of :class:`Card`, :class:`GpuCard` or :class:`JetsonCard`; empty for a
    whole card.
    """
    if card.kind not in NEEDED:
        return ["kind"]
    parts: dict[str, object] = {"cpu": card, "gpu": card.gpu, "jetson": card.jetson}
    return [
        field
        for kind in dict.fromkeys(("cpu", card.kind))
        for field in NEEDED[kind]
        if getattr(parts[kind], field, None) is None and field not in card.missing
    ]


def different_machines(a: Card, b: Card) -> list[str]:
    """Return, in words, the fields in which two cards differ and should not."""
    return differences(msgspec.to_builtins(a), msgspec.to_builtins(b))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return, in words, the fields in which two mappings differ and should not.

    The load, the container, the reasons for what is missing, and clocks at one moment may differ.
    Fields of inner mappings are named ``outer.inner``; a field that one side lacks counts as None.

    >>> differences({"cpu": "a", "load": [1.0]}, {"cpu": "b", "load": [2.0]})
    ['cpu: a and b']
    """
    free = {"load", "missing", "container", "clocks"}
    fields = []
    for key in sorted((set(a) | set(b)) - free):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            fields += [f"{key}.{text}" for text in differences(left, right)]
        elif left != right:
            fields.append(f"{key}: {left} and {right}")
    return fields
