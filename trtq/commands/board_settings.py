"""What a deployment asks of a board: its power mode, its clocks, and the build."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from trtq.deploy.board import Board
from trtq.errors import BoardError, UsageError
from trtq.specs import BuildSpec, DeployOptions, DeploySpec


def require_mode(spec: DeployOptions, board: Board) -> None:
    """Refuse a power mode or pinning that the board cannot have, before any work."""
    if spec.power_mode is None and not spec.lock_clocks:
        return
    _require_known(spec.power_mode, board)
    unchanged = spec.power_mode in (None, board.power_mode["name"])
    if board.root or (unchanged and (not spec.lock_clocks or board.clocks["pinned"])):
        return
    raise BoardError(
        f"Cannot set the power mode or the clocks of {board.name}",
        "sudo asks for a password there, and trtq never does",
        next((m["mend"] for m in board.missing if "sudo" in m["what"]), ""),
    )


def _require_known(mode: str | None, board: Board) -> None:
    modes = board.power_mode["modes"]
    if mode is None or not modes or mode in modes:
        return
    near = next((m for m in modes if m.lower() == mode.lower()), None)
    raise UsageError(
        f"{board.name} has no power mode {mode}",
        f"it has {', '.join(modes)}",
        f"Write --power-mode {shlex.quote(near or next(iter(modes)))}",
    )


def power_of(spec: DeployOptions) -> dict[str, Any]:
    """Return what a job wants of the board.

    The agent decides what must be set for it once the board is the job's own.
    """
    return {"mode": spec.power_mode, "pin": spec.lock_clocks}


def build_spec(spec: DeploySpec, onnx: Path, target: str, board: Board, out: Path) -> BuildSpec:
    """Return what the build on the board is asked for.

    Args:
        spec: the deployment.
        onnx: the file to send.
        target: name of the board's target.
        board: as it was probed.
        out: folder here.
    """
    asked = f"{target}@{board.release[0]}.{board.release[1]}"
    return BuildSpec(
        onnx=str(onnx),
        target=asked,
        out=str(out / "engine"),
        backend="trtexec",
        precision=spec.precision,
        batch=spec.batch,
        fallback=True,
        workspace=spec.workspace,
        optimization_level=spec.optimization_level,
        dla=spec.dla,
        gpu_fallback=spec.gpu_fallback,
    )
