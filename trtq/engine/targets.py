"""The table of targets: device names, compute capabilities, and what each backend does on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtq.errors import UsageError, suggest


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to build for.

    Attributes:
        name: as asked for.
        sm: compute capability times ten, such as 86.
        device: what people call it.
    """

    name: str
    sm: int
    device: str

    @property
    def capability(self) -> str:
        """Compute capability, such as ``8.6``."""
        return f"{self.sm // 10}.{self.sm % 10}"


# name: (compute capability x 10, product). Source: NVIDIA's CUDA GPU list; facts/tensorrt.md section 6.1.
DEVICES: dict[str, tuple[int, str]] = {
    "nano": (53, "Jetson Nano"), "tx1": (53, "Jetson TX1"), "tx2": (62, "Jetson TX2"),
    "xavier": (72, "Jetson AGX Xavier"), "xavier-nx": (72, "Jetson Xavier NX"),
    "orin": (87, "Jetson AGX Orin"), "orin-nx": (87, "Jetson Orin NX"), "orin-nano": (87, "Jetson Orin Nano"),
    "thor": (110, "Jetson Thor"),
    "v100": (70, "Tesla V100"), "t4": (75, "Tesla T4"), "rtx2060": (75, "GeForce RTX 2060"), "rtx2070": (75, "GeForce RTX 2070"),
    "rtx2080": (75, "GeForce RTX 2080"), "rtx2080ti": (75, "GeForce RTX 2080 Ti"),
    "a100": (80, "A100"), "a30": (80, "A30"),
    "a10": (86, "A10"), "a40": (86, "A40"), "a2000": (86, "RTX A2000"), "a4000": (86, "RTX A4000"), "a6000": (86, "RTX A6000"),
    "rtx3050": (86, "GeForce RTX 3050"), "rtx3060": (86, "GeForce RTX 3060"), "rtx3070": (86, "GeForce RTX 3070"),
    "rtx3080": (86, "GeForce RTX 3080"), "rtx3090": (86, "GeForce RTX 3090"),
    "l4": (89, "L4"), "l40": (89, "L40"), "l40s": (89, "L40S"), "rtx4060": (89, "GeForce RTX 4060"),
    "rtx4070": (89, "GeForce RTX 4070"), "rtx4080": (89, "GeForce RTX 4080"), "rtx4090": (89, "GeForce RTX 4090"),
    "h100": (90, "H100"), "h200": (90, "H200"), "b200": (100, "B200"),
    "rtx5060": (120, "GeForce RTX 5060"), "rtx5070": (120, "GeForce RTX 5070"), "rtx5080": (120, "GeForce RTX 5080"),
    "rtx5090": (120, "GeForce RTX 5090"),
}  # fmt: skip

# Compute capabilities TensorRT-RTX 1.7 builds for ahead of time, without a GPU.
RTX_AHEAD_OF_TIME = (75, 80, 86, 89, 120)


def parse_target(text: str) -> Target:
    """Return the target ``text`` names: a device, or a compute capability such as ``sm86`` or ``sm_86``.

    Raises:
        UsageError: unknown (the nearest are suggested).

    >>> parse_target("rtx3080").capability, parse_target("sm_120").capability
    ('8.6', '12.0')
    """
    name = text.strip().lower().replace(" ", "")
    match = re.fullmatch(r"sm_?(\d{2,3})", name)
    if match:
        sm = int(match.group(1))
        device = next((d for s, d in DEVICES.values() if s == sm), None)
        if device is None:
            known = sorted({s for s, _ in DEVICES.values()})
            raise UsageError(f"Unknown target {text!r}", mend=f"Known compute capabilities: {', '.join(f'sm{s}' for s in known)}")
        return Target(name=f"sm{sm}", sm=sm, device=f"compute capability {sm // 10}.{sm % 10}")
    if name not in DEVICES:
        raise UsageError(f"Unknown target {text!r}", mend=suggest(name, DEVICES))
    sm, device = DEVICES[name]
    return Target(name=name, sm=sm, device=device)
