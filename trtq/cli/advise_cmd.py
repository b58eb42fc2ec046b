"""``trtq advise``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.specs import AdviseSpec
from trtq.terminal import say


@click.command("advise")
@spec_options(AdviseSpec, argument="model", required=("data",))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Recommend how to quantize MODEL for its data, labels, target and budgets.

    It also prints the command to type.

    \b
    Example:
      trtq advise timm:resnet18 --data images/train --target xavier \\
        --budget size=0.15 --min-accuracy -1.0
    """
    merged = collect(AdviseSpec, values)
    require(merged, ("model", "data"), "advise", "model")
    spec = AdviseSpec.make(merged)
    from trtq.commands.advise import advise

    record = advise(spec)
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for row in record.rows:
        say(
            f"  {'*' if row.applies else ' '} {row.scenario}: {row.strategy}, {row.precision}"
            + (f" ({row.why})" if row.why else "")
        )
    for note in record.notes:
        say(f"  {note}")
    for line in record.commands:
        say(f"  $ {line}")
