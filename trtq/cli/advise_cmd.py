"""``trtq advise``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import AdviseSpec
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.records.advise import AdviseRecord

SHOWN = 10  # regions


@click.command("advise", cls=Sectioned)
@spec_options(AdviseSpec, argument="model")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Recommend how to quantize MODEL for its data, labels, target and budgets.

    It also prints the command to type. For a quantized MODEL it names the regions that lose from
    INT8, predicted or measured, and writes a file that leaves them in FP16.

    \b
    Examples:
      trtq advise timm:resnet18 --data images/train --target xavier \\
        --budget size=0.15 --min-accuracy -1.0
      trtq advise out/model.qdq.onnx --target rtx3080 --keep-winners --out winners
      trtq advise out --measured bench/bench.json --keep-winners --out winners
    """
    merged = collect(AdviseSpec, values)
    require(merged, ("model",), "advise", "model")
    spec = AdviseSpec.make(merged)
    from trtq.commands.advise import advise

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(advise(spec, progress))
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for line in (*_matrix(record), *_regions(record), *record.notes):
        say(f"  {line}")
    for line in record.commands:
        say(f"  $ {line}")


def _matrix(record: AdviseRecord) -> list[str]:
    """Return the lines of the decision matrix."""
    return [
        f"{'*' if row.applies else ' '} {row.scenario}: {row.strategy}, {row.precision}"
        + (f" ({row.why})" if row.why else "")
        for row in record.rows
    ]


def _regions(record: AdviseRecord) -> list[str]:
    """Return the regions that lose from INT8."""
    if record.int8 is None:
        return []
    losing = record.int8.losing
    lines = [f"FP16 ({record.int8.basis}): {r.words}: {r.why}" for r in losing[:SHOWN]]
    more = len(losing) - SHOWN
    return [*lines, f"... and {more} more (--json)"] if more > 0 else lines
