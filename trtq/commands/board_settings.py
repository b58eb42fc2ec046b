"""Requests of a deployment to a board: its power mode, its clocks, and what is built there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx

from trtq.commands.board_export import for_dla, profile_for
from trtq.deploy.board import Board
from trtq.deploy.jobs import JobPower
from trtq.engine.job import Job, prepare
from trtq.errors import BoardError, UsageError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import load_onnx
from trtq.specs import BuildSpec, DeployOptions, DeploySpec
from trtq.workspace import Workspace


def require_mode(spec: DeployOptions, board: Board) -> None:
    """Refuse a power mode or pinning that the board cannot have, before any work.

    Args:
        spec: the power mode and the pinning that are asked for.
        board: as it was probed.

    Raises:
        UsageError: the board has no such power mode; the nearest is named.
        BoardError: it would have to change, and sudo asks for a password there.
    """
    if spec.power_mode is None and not spec.lock_clocks:
        return
    _require_known(spec.power_mode, board)
    unchanged = spec.power_mode in (None, board.power_mode.name)
    if board.root or (unchanged and (not spec.lock_clocks or board.clocks.pinned)):
        return
    raise BoardError(
        f"Cannot set the power mode or the clocks of {board.name}",
        "sudo asks for a password there, and trtq never does",
        next((m.mend for m in board.missing if "sudo" in m.what), ""),
    )


def _require_known(mode: str | None, board: Board) -> None:
    modes = board.power_mode.modes
    if mode is None or not modes or mode in modes:
        return
    near = next((m for m in modes if m.lower() == mode.lower()), None)
    raise UsageError(
        f"{board.name} has no power mode {mode}",
        f"it has {', '.join(modes)}",
        f"Write --power-mode {shlex.quote(near or next(iter(modes)))}",
    )


def power_of(spec: DeployOptions) -> JobPower:
    """Return what a job wants of the board."""
    return JobPower(spec.power_mode, spec.lock_clocks)


def _build_spec(spec: DeploySpec, onnx: Path, target: str, board: Board, out: Path) -> BuildSpec:
    """Return what the build on the board is asked for.

    Args:
        spec: the deployment.
        onnx: the file to send.
        target: name of the board's target.
        board: as it was probed.
        out: folder here.
    """
    label = f"{target}@{board.release[0]}.{board.release[1]}"
    return BuildSpec(
        onnx=str(onnx),
        target=label,
        out=str(out / "engine"),
        backend="trtexec",
        precision=spec.precision,
        batch=spec.batch,
        shapes=spec.shapes,
        fallback=True,
        workspace=spec.workspace,
        optimization_level=spec.optimization_level,
        dla=spec.dla,
        gpu_fallback=spec.gpu_fallback,
    )


@dataclass(frozen=True, slots=True)
class Order:
    """The engine to build.

    Attributes:
        job: the build.
        judged: the model that the engine's answers are compared with.
        notes: what a user should know about the file that is sent.
    """

    job: Job
    judged: onnx.ModelProto
    notes: list[str]


def order_build(spec: DeploySpec, board: Board, work: Workspace) -> Order:
    """Return the build of the file that the board's TensorRT should read.

    Args:
        spec: the deployment.
        board: as it was probed.
        work: folder for files that are made for the board.

    Raises:
        BoardError: INT8 on a DLA, and the board has no trtexec.
        UsageError: a setting that the file or the board's TensorRT does not take.
        ExportError: the file cannot be read, or cannot be written for the board.
    """
    target, source = board.target, Path(spec.model)
    precision = spec.precision if spec.dla is None else "fp32"
    file = profile_for(source, target, precision, work.progress)
    build_spec, notes = _build_spec(spec, file.path, target.name, board, work.folder), [*file.notes]
    quantized = None
    if spec.dla is not None and not file.fallback:
        model = load_onnx(file.path)
        quantized = model if count_qdq(model) else None
    if quantized is not None:
        build_spec = _int8_on_dla(build_spec, board, work.folder / "dla", notes)
    job = prepare(build_spec)
    job = replace(job, fallback=job.fallback or file.fallback)
    judged = job.model if quantized is None else quantized
    return Order(job, judged, [*notes, *job.notes])


def _int8_on_dla(build_spec: BuildSpec, board: Board, folder: Path, notes: list[str]) -> BuildSpec:
    """Ask for a Q/DQ file in the form a DLA takes.

    That is the float file and a calibration cache with the same scales.

    Raises:
        BoardError: the board has no trtexec: only that reads caches here.
    """
    if not board.has_trtexec or board.number is None:
        mend = (
            "on the board: sudo apt-get install libnvinfer-bin; or give the float file, which "
            "runs on the DLA in FP16"
        )
        raise BoardError(
            f"Cannot build INT8 for the DLA of {board.name}",
            "there is no trtexec to read the calibration cache",
            mend,
        )
    plain, cache, conversion_notes = for_dla(Path(build_spec.onnx), board.number, folder)
    notes.append(
        "the DLA does not support Q/DQ nodes: the float file is sent, with the scales of "
        f"activations in a calibration cache for TRT-{board.number}; "
        "TensorRT computes those of weights from the weights"
    )
    notes += conversion_notes
    return msgspec.structs.replace(build_spec, onnx=str(plain), calibration=str(cache))
