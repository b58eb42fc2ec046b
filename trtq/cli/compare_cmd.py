"""``trtq compare``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import CompareSpec


@click.command("compare", cls=Sectioned)
@spec_options(CompareSpec, argument="file")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> int:
    """Compare the speed of files that take turns on one device.

    Each FILE is faster, slower or not measurably different from the first.

    Files are loaded again for each group of turns, the first one twice: the difference between its
    two loads is the noise. Exit code 3: not valid.

    \b
    Examples:
      trtq compare out/model.fp32.onnx out/model.qdq.onnx
      trtq compare monday/bench.json friday/bench.json
    """
    merged = collect(CompareSpec, values)
    require(merged, ("file",), "compare", "file")
    from trtq.bench.compare import compare

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(compare(CompareSpec.make(merged), progress))
    print_record(record, as_json=as_json)
    return 0 if record.valid else 3
