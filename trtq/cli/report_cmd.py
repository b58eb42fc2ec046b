"""``trtq report``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import ReportSpec


@click.command("report", cls=Sectioned)
@spec_options(ReportSpec, argument="run")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Write one HTML page about each RUN.

    The page has the verdict, trade-offs, every layer, the machines, what was left out and why, and
    the commands.

    A RUN is a folder that trtq run, quantize or search wrote. Several runs are compared. The page
    needs no network.

    \b
    Examples:
      trtq report runs/demo
      trtq report runs/int8 runs/mixed runs/qat --out compare.html
    """
    merged = collect(ReportSpec, values)
    require(merged, ("run",), "report", "run")
    from trtq.commands.report import write_report

    print_record(done(write_report(ReportSpec.make(merged))), as_json=as_json)
