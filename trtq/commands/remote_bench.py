"""``trtq bench --device ssh:NAME``: ``trtq bench`` on a board."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec

from trtq.artifact import environment, header, write_json
from trtq.bench.record import BenchRecord
from trtq.commands.deploy import deploy
from trtq.commands.fleet import model_names
from trtq.errors import BoardError, UsageError
from trtq.files import BENCH_JSON
from trtq.progress import Clock, Progress, or_silent
from trtq.specs import BenchSpec, DeploySpec, changed_words, option_name

# Options that a deployment has, that it measures in any case, and that change nothing there; others
# are refused.
MEANT_THERE = (
    "file",
    "device",
    "batch",
    "shapes",
    "duration",
    "min_samples",
    "energy",
    "cuda_graph",
    "lock_clocks",
    "load",
    "memory",
    "verdict",
    "out",
)

SHARED = ("shapes", "duration", "min_samples", "energy", "cuda_graph", "lock_clocks")


def bench_there(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Build the ONNX files that the board has no engine of, and measure them there.

    Args:
        spec: its device is ``ssh:NAME``.
        progress: receives what happens.

    Raises:
        UsageError: a file that is no ONNX file, or a figure that boards do not give.
        DeviceError: the board cannot be reached, or refuses.
    """
    progress, clock = or_silent(progress), Clock()
    _require_measurable(spec)
    names = model_names(spec.file)
    deployments = [_deployment(spec, *named) for named in zip(spec.file, names, strict=True)]
    records = [deploy(one, progress) for one in deployments]
    rows = [r for record in records for r in record.rows]
    last = records[-1]
    if not rows:
        raise BoardError(
            f"Nothing was measured on {spec.device}", "; ".join(last.unavailable.values())
        )
    record = BenchRecord(
        **header("bench", spec),
        command=shlex.join(["trtq", "bench", *spec.file, *changed_words(spec, "file")]),
        rows=rows,
        verdicts=[],
        card=last.board.card(rows[-1].settings),
        valid=all(r.valid for r in records),
        notes=[n for r in records for n in r.notes],
        seconds=clock.total,
        environment=environment(),
    )
    if spec.out:
        write_json(Path(spec.out) / BENCH_JSON, record)
    return record


def _require_measurable(spec: BenchSpec) -> None:
    """Refuse what boards do not measure.

    Raises:
        UsageError: names the option or the file.
    """
    fields = (f for f in msgspec.structs.fields(spec) if f.name not in MEANT_THERE)
    changed = next((f.name for f in fields if getattr(spec, f.name) != f.default), None)
    if changed is not None:
        raise UsageError(
            f"Cannot measure with {option_name(changed)} on {spec.device}",
            "boards are measured with their own trtexec, one request at a time",
            "Leave it out",
        )
    engine = next((f for f in spec.file if Path(f).suffix != ".onnx"), None)
    if engine is not None:
        raise UsageError(
            f"Cannot measure {engine} on {spec.device}",
            "engines are built on the board that runs them",
            "Give the ONNX file, or measure the engines there: trtq fleet bench --devices "
            f"{shlex.quote(_board_name(spec))}",
        )


def _board_name(spec: BenchSpec) -> str:
    return spec.device.partition(":")[2]


def _deployment(spec: BenchSpec, file: str, name: str) -> DeploySpec:
    return DeploySpec(
        device=_board_name(spec),
        model=file,
        bench_batch=spec.batch,
        out=str(Path(spec.out) / name) if spec.out else "",
        **{name: getattr(spec, name) for name in SHARED},
    )
