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
    """Abilities of a compute capability; a table ``[sm.*]`` of the file.

    Attributes:
        formats: what it multiplies in beside FP32, such as ``INT8``.
        weights: formats that it stores weights in and multiplies in another.
        releases: first and last TensorRT with kernels for it, as :meth:`Span.parse` reads them.
        ships: the TensorRT that its boards come with, down to the patch; "" where any may be
            installed.
        rtx: what TensorRT for RTX computes in when it builds ahead of time; empty where it does
            not.
        placement: name of the rules for quantizers.
    """

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
    """Peaks of a device for predictions: dense, GPU only, at boost clock.

    Attributes:
        title: what people call the device; "" for the title of its row.
        kind: name of its class of devices.
        fp32, fp16, int8, fp8, fp4: 1e12 operations a second; None for no such kernels.
        bandwidth: 1e9 bytes a second.
        power: limit in W, never a consumption.
        source: where the figures were read.
    """

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
    """Facts that cannot be read from a board.

    Attributes:
        models: texts in the model of its device tree, lower case.
        soc: its SoCs, such as ``tegra234``; "" and none where the model is enough.
        memory_gib: the least memory by which it is told from other boards of its SoC.
        dla: number of deep-learning accelerators.
        typed_dla: whether TensorRT 11 supports them.
        workspace: (limit of the board's memory in GiB, scratch memory in MiB), by rising limits.
        rails: rails whose sum is the input power; alternatives in order.
        modes: the power mode it is delivered with, and the fastest.
        throttles_c: junction temperature from which it throttles, degrees Celsius.
        jetpacks: first and last that run on it.
        notes: what a person should know before the first deployment.
    """

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
        """Return the scratch memory to build with, MiB; None for what there is.

        Args:
            memory_bytes: of the board.
        """
        return next((mib for gib, mib in self.workspace if memory_bytes < gib * 2**30), None)


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device; a table ``[device.*]`` of the file.

    Attributes:
        title: what people call it.
        sm: compute capability times ten.
        variant_of: another device, of which only predictions know this variant; "" for none.
        roofline: None where no latency can be predicted.
        board: None for a GPU that is no board.
    """

    title: str
    sm: int
    variant_of: str = ""
    roofline: Roofline | None = None
    board: BoardRow | None = None


class DeviceClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fitted numbers of a class of devices.

    Attributes:
        efficiency: share of the peak that kernels reach, 0 to 1.
        launch_us: of a kernel, microseconds.
        memory: share of the bandwidth that kernels reach, 0 to 1.
        fitted_to: what it was fitted to.
    """

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
        """Return the compute capabilities that multiply in a format.

        Args:
            number_format: such as ``INT8``.
        """
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
    """Return a compute capability with its dot.

    >>> dotted(86), dotted(120)
    ('8.6', '12.0')
    """
    return f"{sm // 10}.{sm % 10}"
