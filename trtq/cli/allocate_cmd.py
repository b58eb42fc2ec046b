"""``trtq allocate``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import AllocateSpec
from trtq.terminal import say


@click.command("allocate", cls=Sectioned)
@spec_options(AllocateSpec, argument="analysis", required=("out",))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Choose a width for every layer of ANALYSIS, what trtq analyze wrote.

    \b
    Examples:
      trtq allocate S.json --budget size=0.15 --budget energy=0.2 --out A.json
      trtq allocate S.json --bits w8a8,w4a8 --strategy milp --budget latency@rtx4090=0.5 \\
        --out A.json
    """
    merged = collect(AllocateSpec, values)
    require(merged, ("analysis", "out"), "allocate", "analysis")
    spec = AllocateSpec.make(merged)
    from trtq.commands.allocate import allocate
    from trtq.flow.allocate import shown

    record = done(allocate(spec))
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for name, limit in record.budgets.items():
        say(f"  {name}: {shown(name, record.costs[name])} of {shown(name, limit)} allowed")
    say(f"  {spec.out}")
