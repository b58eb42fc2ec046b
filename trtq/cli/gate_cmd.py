"""``trtq gate``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_record
from trtq.cli.options import collect, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import GateSpec


@click.command("gate", cls=Sectioned)
@spec_options(GateSpec, argument="record")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> int:
    """Compare RECORD with a baseline, for a CI runner, and print a Markdown table.

    Exit code 0: within the limits; 1: surely not; 3: these records cannot tell (not valid, other
    machines, or an interval over the limit). Accuracy alone needs no RECORD and no quiet machine.

    \b
    Examples:
      trtq gate bench/bench.json --baseline main/bench.json --max-slowdown 3%
      trtq gate --accuracy out/evaluate.json --max-accuracy-drop 0.5
    """
    merged = collect(GateSpec, values)
    from trtq.bench.gate import gate

    record = done(gate(GateSpec.make(merged)))
    print_record(record, as_json=as_json)
    return record.exit_code
