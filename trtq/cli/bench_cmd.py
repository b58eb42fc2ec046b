"""``trtq bench``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import BenchSpec


@click.command("bench", cls=Sectioned)
@spec_options(BenchSpec, argument="file")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> int:
    """Measure latency, throughput, load time, memory and energy of each FILE.

    The record describes the machine, too.

    A figure that cannot be measured here is listed with the reason, never as zero. Exit code 3:
    measured, but not valid.

    \b
    Examples:
      trtq bench out/model.qdq.onnx --load --memory --energy --out out/bench
      trtq bench engines/rtx4090.engine --device cuda:0 --batch 1,8,32 --lock-clocks
    """
    merged = collect(BenchSpec, values)
    require(merged, ("file",), "bench", "file")
    spec = BenchSpec.make(merged)
    if spec.device.startswith("ssh:"):
        from trtq.commands.remote_bench import bench_there as bench
    else:
        from trtq.bench.harness import bench

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(bench(spec, progress))
    missing = {f"{name}: {why}" for row in record.rows for name, why in row.unavailable.items()}
    notes = [n for row in record.rows for n in row.notes]
    print_record(
        record,
        as_json=as_json,
        lines=[*dict.fromkeys(notes), *(f"n/a: {m}" for m in sorted(missing))],
    )
    return 0 if record.valid else 3
