"""Latency predicted by a roofline model, never measured.

The roofline is a lower bound from data sheets with two fitted numbers per class of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from trtq.cost.devices import Device
from trtq.cost.ops import WEIGHTED, Kernel
from trtq.quant.formats import BitConfig

Bound = Literal["compute", "memory", "launch"]
BITS = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "fp4": 4}
HOW = (
    "Roofline: max(operations / (peak x efficiency), bytes / (bandwidth x memory share)) + "
    "launch, kernel by kernel. Peaks and bandwidth from data sheets; efficiency and launch "
    "fitted, two numbers a class of devices. Caches, clocks below boost and copies to and from "
    "the host are not in it. Predicted, not measured."
)


class KernelTime(msgspec.Struct, frozen=True, kw_only=True):
    """The roofline prediction for one kernel.

    Attributes:
        name, kind: of the kernel.
        precision: what it computes in.
        ms: predicted milliseconds, launch included.
        bound: what dominates the time.
    """

    name: str
    kind: str
    precision: str
    ms: float
    bound: Bound


def computes_in(device: Device, widths: BitConfig) -> str:
    """Return the precision in which a device multiplies operands of these widths.

    INT8, FP8 and FP4 require both operands at 8 bits or less and kernels on the device.

    Widths below 8 bits run in INT8 containers; weights below 16 bits beside a float input are
    unpacked and multiplied in FP16.

    Args:
        device: from the table.
        widths: bits of weight and input.

    Returns:
        ``int8``, ``fp8``, ``fp4``, ``fp16`` or ``fp32``.
    """
    widest = max(widths.weight, widths.input)
    narrow = {"uniform": "int8"}.get(widths.kind, widths.kind)
    if widest <= 8 and narrow in device.peaks:
        return narrow
    return "fp16" if widest <= 16 else "fp32"


def _weight_bits(widths: BitConfig, precision: str) -> int:
    """Return the bits of a weight in memory: 4 or 8 beside a float input, else the precision's."""
    weight_only = widths.weight <= 8 < widths.input
    return BITS[precision] if not weight_only else 4 if widths.weight <= 4 else 8


def predict(
    kernel: Kernel,
    device: Device,
    widths: BitConfig,
    *,
    batch: int = 1,
    precision: str | None = None,
) -> KernelTime:
    """Return the roofline's time of one kernel.

    Args:
        kernel: counts for one image.
        device: from the table.
        widths: bits of weight and input.
        batch: images a call; weights are read once.
        precision: what it computes in, where that is known.
    """
    precision = precision or computes_in(device, widths)
    stored = BITS[precision]
    # Depthwise convolutions and everything that is no product run on the plain cores, not on tensor
    # cores.
    peak = (
        device.peaks[precision]
        if kernel.kind in WEIGHTED and not kernel.depthwise
        else device.peaks["fp32"]
    )
    compute = 2.0 * kernel.macs * batch / (peak * device.efficiency)
    moved = (
        kernel.weights * _weight_bits(widths, precision)
        + (kernel.reads + kernel.writes) * batch * stored
    ) / 8
    memory = moved / (device.bandwidth * device.memory)
    busiest = max(compute, memory)
    bound: Bound = (
        "launch" if device.launch > busiest else "compute" if compute >= memory else "memory"
    )
    return KernelTime(
        name=kernel.name,
        kind=kernel.kind,
        precision=precision,
        ms=1e3 * (busiest + device.launch),
        bound=bound,
    )


def predict_all(
    kernels: Iterable[Kernel],
    device: Device,
    widths: Callable[[Kernel], BitConfig],
    *,
    batch: int = 1,
) -> list[KernelTime]:
    """Return the time of every kernel.

    Args:
        kernels: counts for one image.
        device: from the table.
        widths: gives the bits of a kernel's weight and input.
        batch: images a call.
    """
    return [predict(k, device, widths(k), batch=batch) for k in kernels]
