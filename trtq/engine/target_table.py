"""Facts about every target, as rows for a person or a program."""

from __future__ import annotations

import msgspec

from trtq.platform.catalogue import board_row, catalogue
from trtq.platform.releases import offers, opset_read, releases, shown
from trtq.platform.target import Target


class TargetRow(msgspec.Struct, frozen=True, kw_only=True):
    """One target.

    Attributes:
        name: for ``--target``.
        device: what people call it.
        capability: compute capability.
        tensorrt: the release it is written for; None where any may be installed.
        last: the last release with kernels for it; None while it is still supported.
        formats: what it multiplies in beside FP32.
        dla: has deep-learning accelerators.
        opset: of the ONNX files for it.
        reads: the newest opset its parser reads; None where any may be installed.
        typed: the graph has the types; None where that depends on the release.
        features: of the release that the device can use; empty where any may be installed.
        here: can be built for ahead of time, without that GPU.
    """

    name: str
    device: str
    capability: str
    tensorrt: str | None
    last: str | None
    formats: tuple[str, ...]
    dla: bool
    opset: int
    reads: int | None
    typed: bool | None
    features: tuple[str, ...]
    here: bool


def describe(target: Target) -> TargetRow:
    """Return the row of a target."""
    release, last = target.release, target.facts.kernels.last
    return TargetRow(
        name=target.name,
        device=target.device,
        capability=target.capability,
        tensorrt=shown(release) if release else None,
        last=shown(last) if last else None,
        formats=target.formats,
        dla=target.dla,
        opset=target.opset,
        reads=opset_read(release) if release else None,
        typed=offers("typed", release) if release else None,
        features=tuple(f for f in releases().features if offers(f, release) and not target.lacks(f))
        if release
        else (),
        here=bool(target.facts.rtx),
    )


def list_targets(target: str | None = None) -> list[TargetRow]:
    """Return the rows of every device in the order of the catalogue, or of one target.

    Args:
        target: as ``--target`` takes it, with or without a release; None for every device.

    Raises:
        UsageError: it is unknown.
    """
    names = [target] if target is not None else list(catalogue().targets)
    return [describe(Target.parse(name)) for name in names]


def reads(row: TargetRow) -> str:
    """Return what a target is written for, in words."""
    if row.tensorrt is None:
        return f"any TensorRT: opset {row.opset}, types in the graph from 10 on"
    kind = "types in the graph" if row.typed else "precision by flags"
    return f"TensorRT {row.tensorrt}: opset {row.opset} (reads up to {row.reads}), {kind}"


def board_lines(name: str) -> list[str]:
    """Return what is known of a board, line by line; nothing for another device."""
    row = board_row(name)
    if row is None:
        return []
    usual, fastest = row.modes
    first, last = row.jetpacks
    cores = f", {row.dla} DLA core{'s' * (row.dla > 1)}" if row.dla else ""
    return [
        f"JetPack {first} to {last}{cores}; delivered in power mode {usual}, the fastest is "
        f"{fastest}",
        *(f"note: {note}" for note in row.notes),
    ]
