"""The table of targets: device names, compute capabilities, and what each backend does on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trtq.engine.versions import (
    FIRST,
    LAST,
    OF_BOARDS,
    OLDEST,
    PATCHES,
    WRITES,
    Version,
    newest_opset,
    shown,
)
from trtq.errors import UsageError, suggest
from trtq.specs import OPSET


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to build for.

    Attributes:
        name: as asked for.
        sm: compute capability times ten, such as 86.
        device: what people call it.
        version: of TensorRT, when the target names one (``orin@10.3``).
    """

    name: str
    sm: int
    device: str
    version: Version | None = None

    @property
    def release(self) -> Version | None:
        """The TensorRT to write for.

        It is the one that was named, or else that of the board's JetPack; None where any may be
        installed.
        """
        return self.version or OF_BOARDS.get(self.sm)

    @property
    def patch(self) -> int:
        """The patch of ``release`` that the board's JetPack ships; 0 where any may be installed."""
        return (
            PATCHES.get(self.release, 0)
            if self.release is not None and OF_BOARDS.get(self.sm) == self.release
            else 0
        )

    @property
    def opset(self) -> int:
        """The opset of the ONNX files for it."""
        return newest_opset(self.release, WRITES) if self.release is not None else OPSET

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """Number formats it multiplies in beside FP32."""
        return tuple(name for name, has in ARITHMETIC if has(self.sm))

    @property
    def dla(self) -> bool:
        """Whether it has deep-learning accelerators beside the GPU."""
        return self.name in WITH_DLA

    @property
    def capability(self) -> str:
        """Compute capability, such as ``8.6``."""
        return f"{self.sm // 10}.{self.sm % 10}"


# name: (compute capability x 10, product). Source: NVIDIA's CUDA GPU list; facts/tensorrt.md
# section 6.1.
DEVICES: dict[str, tuple[int, str]] = {
    "nano": (53, "Jetson Nano"),
    "tx1": (53, "Jetson TX1"),
    "tx2": (62, "Jetson TX2"),
    "xavier": (72, "Jetson AGX Xavier"),
    "xavier-nx": (72, "Jetson Xavier NX"),
    "orin": (87, "Jetson AGX Orin"),
    "orin-nx": (87, "Jetson Orin NX"),
    "orin-nano": (87, "Jetson Orin Nano"),
    "thor": (110, "Jetson Thor"),
    "v100": (70, "Tesla V100"),
    "t4": (75, "Tesla T4"),
    "rtx2060": (75, "GeForce RTX 2060"),
    "rtx2070": (75, "GeForce RTX 2070"),
    "rtx2080": (75, "GeForce RTX 2080"),
    "rtx2080ti": (75, "GeForce RTX 2080 Ti"),
    "a100": (80, "A100"),
    "a30": (80, "A30"),
    "a10": (86, "A10"),
    "a40": (86, "A40"),
    "a2000": (86, "RTX A2000"),
    "a4000": (86, "RTX A4000"),
    "a6000": (86, "RTX A6000"),
    "rtx3050": (86, "GeForce RTX 3050"),
    "rtx3060": (86, "GeForce RTX 3060"),
    "rtx3070": (86, "GeForce RTX 3070"),
    "rtx3080": (86, "GeForce RTX 3080"),
    "rtx3090": (86, "GeForce RTX 3090"),
    "l4": (89, "L4"),
    "l40": (89, "L40"),
    "l40s": (89, "L40S"),
    "rtx4060": (89, "GeForce RTX 4060"),
    "rtx4070": (89, "GeForce RTX 4070"),
    "rtx4080": (89, "GeForce RTX 4080"),
    "rtx4090": (89, "GeForce RTX 4090"),
    "h100": (90, "H100"),
    "h200": (90, "H200"),
    "b200": (100, "B200"),
    "rtx5060": (120, "GeForce RTX 5060"),
    "rtx5070": (120, "GeForce RTX 5070"),
    "rtx5080": (120, "GeForce RTX 5080"),
    "rtx5090": (120, "GeForce RTX 5090"),
}

NO_INT8 = (53, 60, 62)
# By compute capability (facts: support matrices of TensorRT 8.5 to 11.4).
ARITHMETIC: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("FP16", lambda sm: sm != 61),
    ("INT8", lambda sm: sm not in NO_INT8),
    ("BF16", lambda sm: sm >= 80),
    ("FP8", lambda sm: sm >= 89),
    ("FP4", lambda sm: sm >= 100),
)
WITH_DLA = ("xavier", "xavier-nx", "orin", "orin-nx")

# Compute capabilities TensorRT-RTX 1.7 builds for ahead of time, without a GPU.
RTX_AHEAD_OF_TIME = (75, 80, 86, 89, 120)


def parse_target(text: str) -> Target:
    """Return the target that ``text`` names.

    The text is a device or a compute capability (``sm86``, ``sm_86``), with or without ``@`` and a
    TensorRT version.

    Raises:
        UsageError: unknown (the nearest are suggested), or a TensorRT that has no kernels for it.

    >>> parse_target("rtx3080").capability, parse_target("sm_120").capability
    ('8.6', '12.0')
    >>> parse_target("nano").release, parse_target("nano@8.2").arithmetic
    ((8, 2), ('FP16',))
    >>> parse_target("orin@10.3").opset, parse_target("xavier").opset
    (20, 16)
    """
    name, at, release = text.strip().lower().replace(" ", "").partition("@")
    version = _version(release, text) if at else None
    match = re.fullmatch(r"sm_?(\d{2,3})", name)
    if match:
        sm = int(match.group(1))
        device = next((d for s, d in DEVICES.values() if s == sm), None)
        if device is None:
            known = sorted({s for s, _ in DEVICES.values()})
            raise UsageError(
                f"Unknown target {text!r}",
                hint=f"Known compute capabilities: {', '.join(f'sm{s}' for s in known)}",
            )
        name, device = f"sm{sm}", f"compute capability {sm // 10}.{sm % 10}"
    elif name in DEVICES:
        sm, device = DEVICES[name]
    else:
        raise UsageError(f"Unknown target {text!r}", hint=suggest(name, DEVICES))
    last = LAST.get(sm)
    if version is not None and last is not None and version > last:
        raise UsageError(
            f"Cannot build for {device} with TensorRT {shown(version)}",
            f"the last release with kernels for it is {shown(last)}",
            f"Write {name}@{shown(last)}",
        )
    earliest = FIRST.get(sm)
    if version is not None and earliest is not None and version < earliest:
        raise UsageError(
            f"Cannot build for {device} with TensorRT {shown(version)}",
            f"the first release with kernels for it is {shown(earliest)}",
            f"Write {name}@{shown(earliest)} or later",
        )
    return Target(name=name, sm=sm, device=device, version=version)


def _version(text: str, whole: str) -> Version:
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text)
    if match is None:
        raise UsageError(
            f"Cannot read the TensorRT version of {whole!r}",
            f"found {text!r}",
            "Write it like orin@10.3",
        )
    version = int(match.group(1)), int(match.group(2))
    if version < OLDEST:
        raise UsageError(
            f"Cannot build for {whole}",
            f"trtq knows TensorRT from {shown(OLDEST)} on",
            "Install a newer TensorRT",
        )
    return version
