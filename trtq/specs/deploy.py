"""Boards."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import Tokenizer
from trtq.specs.options import TaskName
from trtq.specs.sweep import Address, Executor


class DeployOptions(Spec, frozen=True, kw_only=True):
    """How a model gets onto a board, and what is measured there."""

    power_mode: Annotated[
        str | None,
        Doc(
            description="nvpmodel mode during the run, by name (MAXN, 15W); restored afterwards. "
            "Without it the mode is not changed."
        ),
    ] = None
    lock_clocks: Annotated[
        bool,
        Doc(
            description="Lock the clocks during the run (jetson_clocks); restored on exit, even "
            "after SIGKILL."
        ),
    ] = False
    keep: Annotated[
        bool,
        Doc(
            description="Leave the uploaded model on the board; the engine and its manifest "
            "are kept in both cases."
        ),
    ] = False
    fetch_engine: Annotated[bool, Doc(description="Copy the engine here, too.")] = False
    precision: Annotated[
        Literal["fp32", "fp16"], Doc(description="Precision of what is not quantized.")
    ] = "fp16"
    batch: Annotated[
        tuple[int, int, int] | None,
        Doc(description="MIN:OPT:MAX for a dynamic batch.  [default: 1:8:32]"),
    ] = None
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="NAME=MIN:OPT:MAX of an input with open axes; one shape fixes them; "
            "repeatable."
        ),
    ] = ()
    workspace: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(
            description="Most scratch memory of a kernel, MiB; default by the board's memory, "
            "less when "
            "the builder runs out."
        ),
    ] = None
    optimization_level: Annotated[
        Annotated[int, Meta(ge=0, le=5)] | None,
        Doc(description="Builder optimization level (8.6 on)."),
    ] = None
    dla: Annotated[
        Annotated[int, Meta(ge=0, le=1)] | None,
        Doc(description="Build for this DLA core of Xavier or Orin."),
    ] = None
    gpu_fallback: Annotated[
        bool, Doc(description="With --dla: what the DLA cannot do runs on the GPU.")
    ] = True
    bench: Annotated[bool, Doc(description="Measure load time, latency and memory there.")] = True
    bench_batch: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Doc(description="Images in a request; several are swept."),
    ] = (1,)
    duration: Annotated[
        Annotated[float, Meta(gt=0)], Doc(description="Shortest measured time, seconds.")
    ] = 5.0
    min_samples: Annotated[
        Annotated[int, Meta(ge=10)], Doc(description="Fewest measured requests.")
    ] = 200
    energy: Annotated[
        bool,
        Doc(
            description="Energy per image from the board's power rails: 20 s under load, idle "
            "power "
            "before and after."
        ),
    ] = False
    cuda_graph: Annotated[
        bool, Doc(description="Launch as CUDA graphs where that is possible.")
    ] = True
    data: Annotated[
        str | None,
        PathDoc(
            description="Samples of any form (as for quantize) to run on the board and compare "
            "with the ONNX file."
        ),
    ] = None
    task: TaskName = None
    tokenizer: Tokenizer = None
    images: Annotated[Annotated[int, Meta(ge=1)], Doc(description="How many of them.")] = 32
    class_index: Annotated[
        str | None, PathDoc(description="JSON list of folder names in class order.")
    ] = None
    force: Annotated[bool, Doc(description="Rebuild and measure even if up to date.")] = False
    reconnect_timeout: Annotated[
        Annotated[float, Meta(ge=0)],
        Doc(description="Longest wait for a board that cannot be reached, seconds."),
    ] = 600.0


class DeploySpec(DeployOptions, frozen=True, kw_only=True):
    """One model on a board: built there, measured there, kept there."""

    device: Annotated[str, Doc(description="A device that trtq device add knows, or user@host.")]
    model: Annotated[
        str, PathDoc(description="An ONNX file, or a recipe.toml whose Q/DQ file is made first.")
    ]
    out: Annotated[
        str, PathDoc(description="Folder for the records.  [default: runs/deploy/DEVICE/MODEL]")
    ] = ""


class FleetSpec(DeployOptions, frozen=True, kw_only=True):
    """Several models on several boards, side by side."""

    model: Annotated[
        tuple[str, ...],
        PathDoc(description="ONNX files or recipes; none: every engine that is on the devices."),
    ] = ()
    devices: Annotated[
        str,
        Doc(
            description="Names of devices, separated by commas; default: every one that was added."
        ),
    ] = ""
    out: Annotated[str, PathDoc(description="Folder for the records and the table.")] = "runs/fleet"
    on: Annotated[
        Executor,
        Doc(
            description="Who connects to the devices: processes of this machine, tasks of a Ray "
            "cluster, or jobs of Slurm's queue."
        ),
    ] = "local"
    workers: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Devices at a time.  [default: all]"),
    ] = None
    address: Address = ""
