"""Every device and board that trtq knows: ``devices.toml``, loaded when asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

from trtq.platform.releases import Span, Version, parse_version
from trtq.typed import toml_as

FILE = Path(__file__).with_name("devices.toml")


class Capability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a compute capability does; the file explains the fields."""

    formats: tuple[str, ...]
    weights: tuple[str, ...] = ()
    releases: str
    ships: str = ""
    rtx: tuple[str, ...] = ()
    placement: str = "tensorrt"

    @property
    def kernels(self) -> Span:
        """First and last release with kernels for it."""
        return Span.parse(self.releases)

    @property
    def shipped(self) -> Version | None:
        """The release that its boards come with; None where any may be installed."""
        return parse_version(self.ships) if self.ships else None

    @property
    def patch(self) -> int:
        """The patch of ``shipped``."""
        return int(self.ships.split(".")[2]) if self.ships else 0


class Roofline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peaks of a device for predictions; the file explains the fields and their units."""

    title: str = ""
    kind: str = msgspec.field(name="class")
    fp32: float
    fp16: float | None = None
    int8: float | None = None
    fp8: float | None = None
    fp4: float | None = None
    bandwidth: float
    power: float
    source: str


class BoardRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What cannot be read from a board; the file explains the fields."""

    models: tuple[str, ...]
    soc: tuple[str, ...] = ()
    memory_gib: int = 0
    dla: int = 0
    typed_dla: bool = False
    workspace: tuple[tuple[float, int], ...]
    rails: tuple[tuple[str, ...], ...]
    modes: tuple[str, str]
    throttles_c: float
    jetpacks: tuple[str, str]
    notes: tuple[str, ...]

    def workspace_for(self, memory_bytes: int) -> int | None:
        """Return the scratch memory to build with, MiB; None for what there is."""
        return next((mib for gib, mib in self.workspace if memory_bytes < gib * 2**30), None)


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device; the file explains the fields."""

    title: str
    sm: int
    variant_of: str = ""
    roofline: Roofline | None = None
    board: BoardRow | None = None


class DeviceClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fitted numbers of a class of devices; the file explains the fields."""

    efficiency: float
    launch_us: float
    memory: float
    fitted_to: str


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        jetpack: JetPack by L4T release.
        classes: of devices, by name.
        capabilities: by compute capability times ten.
        devices: by the name that options take, variants included.
    """

    jetpack: dict[str, str]
    classes: dict[str, DeviceClass] = msgspec.field(name="class")
    capabilities: dict[int, Capability] = msgspec.field(name="sm")
    devices: dict[str, DeviceRow] = msgspec.field(name="device")

    @property
    def targets(self) -> dict[str, DeviceRow]:
        """The devices to build for."""
        return {name: row for name, row in self.devices.items() if not row.variant_of}

    @property
    def rtx(self) -> list[int]:
        """The compute capabilities that TensorRT for RTX builds for ahead of time."""
        return [sm for sm, row in self.capabilities.items() if row.rtx]

    def having(self, number_format: str) -> list[int]:
        """Return the compute capabilities that multiply in a format."""
        return [sm for sm, row in self.capabilities.items() if number_format in row.formats]


@cache
def catalogue() -> Catalogue:
    """Return the catalogue of devices."""
    return toml_as(FILE.read_bytes(), Catalogue)


def board_row(name: str | None) -> BoardRow | None:
    """Return the row of a board by its name as a target, None for an unknown one."""
    row = catalogue().devices.get(name or "")
    return row.board if row is not None else None


def boards() -> Mapping[str, BoardRow]:
    """Return the row of every board, by name."""
    return {n: row.board for n, row in catalogue().devices.items() if row.board is not None}


def dotted(sm: int) -> str:
    """Return ``8.6`` for 86."""
    return f"{sm // 10}.{sm % 10}"
