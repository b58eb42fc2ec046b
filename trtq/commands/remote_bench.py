"""``trtq bench --device ssh:NAME``: ``trtq bench`` on a board."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import msgspec

from trtq.artifact import environment, header, write_json
from trtq.bench.record import BenchRecord
from trtq.commands.deploy import deploy
from trtq.deploy.board import Board
from trtq.errors import BoardError, UsageError
from trtq.files import BENCH_JSON
from trtq.progress import Progress, Silent
from trtq.specs import BenchSpec, DeploySpec, changed_words, option_name

# What a deployment can be asked for, what it measures anyway, and what asks for nothing there; the
# rest is refused.
MEANT_THERE = (
    "file",
    "device",
    "batch",
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


def bench_there(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Build the ONNX files that the board has no engine of, and measure them there.

    Raises:
        UsageError: a file that is no ONNX file, or a figure that boards do not give.
        DeviceError: the board cannot be reached, or refuses.
    """
    told, began = progress or Silent(), time.perf_counter()
    name = spec.device.partition(":")[2]
    for field in msgspec.structs.fields(spec):
        if field.name not in MEANT_THERE and getattr(spec, field.name) != field.default:
            why = "boards are measured with their own trtexec, one request at a time"
            raise UsageError(
                f"Cannot measure with {option_name(field.name)} on {spec.device}",
                why,
                "Leave it out",
            )
    engine = next((f for f in spec.file if Path(f).suffix != ".onnx"), None)
    if engine is not None:
        raise UsageError(
            f"Cannot measure {engine} on {spec.device}",
            "engines are built on the board that runs them",
            "Give the ONNX file, or measure what lies there: trtq fleet bench --devices "
            f"{shlex.quote(name)}",
        )
    records = [
        deploy(
            DeploySpec(
                device=name,
                model=file,
                bench_batch=spec.batch,
                duration=spec.duration,
                min_samples=spec.min_samples,
                energy=spec.energy,
                cuda_graph=spec.cuda_graph,
                lock_clocks=spec.lock_clocks,
                out=str(Path(spec.out) / Path(file).stem) if spec.out else "",
            ),
            told,
        )
        for file in spec.file
    ]
    rows = [r for record in records for r in record.rows]
    if not rows:
        raise BoardError(
            f"Nothing was measured on {spec.device}", "; ".join(records[-1].unavailable.values())
        )
    record = BenchRecord(
        **header("bench", spec),
        command=shlex.join(["trtq", "bench", *spec.file, *changed_words(spec, "file")]),
        rows=rows,
        verdicts=[],
        card=msgspec.convert(records[-1].board, Board).card(rows[-1].settings),
        valid=all(r.valid for r in records),
        notes=[n for r in records for n in r.notes],
        seconds=round(time.perf_counter() - began, 3),
        environment=environment(),
    )
    if spec.out:
        write_json(Path(spec.out) / BENCH_JSON, record)
    return record
