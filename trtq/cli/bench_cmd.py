"""``trtq bench``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.recipe import BenchSpec


@click.command("bench")
@spec_options(BenchSpec, argument="file")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> int:
    """Latency of FILE in ONNX Runtime; the result says on which device it ran.

    \b
    Example:
      trtq bench out/model.qdq.onnx
    """
    merged = collect(BenchSpec, values)
    require(merged, ("file",), "bench", "file")
    from trtq.bench.latency import bench

    record = bench(BenchSpec.make(merged))
    if as_json:
        print_json(record)
    else:
        click.echo(record.summary)
    return 0 if record.valid else 3
