"""``trtq bench --device ssh:NAME``: the same question, answered by a board."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import msgspec

from trtq.artifact import SCHEMA, environment
from trtq.bench.record import BenchRecord
from trtq.errors import UsageError
from trtq.progress import Progress, Silent
from trtq.specs import BenchSpec, DeploySpec
from trtq.verbs.deploy import deploy

# What a board's trtexec cannot be asked for, with the value that asks for nothing.
ONLY_HERE = {"mode": "latency", "profile": False, "trtexec": False, "repeat": 1, "baseline": None, "scenario": "closed"}


def bench_there(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Build the ONNX files on the board where that has not been done, and measure them there.

    Raises:
        UsageError: a file that is no ONNX file, or a figure that boards do not give.
        DeviceError: the board cannot be reached, or refuses.
    """
    told, began = progress or Silent(), time.perf_counter()
    name = spec.device.partition(":")[2]
    wrong = next((k for k, v in ONLY_HERE.items() if getattr(spec, k) != v), None)
    if wrong is not None:
        raise UsageError(
            f"Cannot measure with --{wrong} on {spec.device}", "boards are measured with their own trtexec, one request at a time"
        )
    engine = next((f for f in spec.file if Path(f).suffix != ".onnx"), None)
    if engine is not None:
        raise UsageError(
            f"Cannot measure {engine} on {spec.device}", "engines are built on the board that runs them",
            f"Give the ONNX file, or measure what lies there: trtq fleet bench --devices {name}",
        )  # fmt: skip
    records = [
        deploy(
            DeploySpec(
                device=name, model=file, bench_batch=spec.batch, duration=spec.duration, min_samples=spec.min_samples, energy=spec.energy,
                cuda_graph=spec.cuda_graph, lock_clocks=spec.lock_clocks, out=str(Path(spec.out) / Path(file).stem) if spec.out else "",
            ),
            told,
        )
        for file in spec.file
    ]  # fmt: skip
    last = records[-1]
    return BenchRecord(
        schema=SCHEMA, verb="bench", spec=msgspec.to_builtins(spec),
        command=shlex.join(["trtq", "bench", *spec.file, "--device", spec.device]),
        rows=[r for record in records for r in record.rows], verdicts=[], card={"kind": "jetson", "jetson": last.board},
        valid=all(r.valid for r in records), notes=[n for r in records for n in r.notes], seconds=round(time.perf_counter() - began, 3),
        environment=environment(),
    )  # fmt: skip
