"""``trtq blocks``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import BlocksSpec
from trtq.terminal import say


@click.command("blocks", cls=Sectioned)
@spec_options(BlocksSpec, argument="model")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """List the convolutional and the transformer parts of MODEL, and the family that makes it.

    \b
    Examples:
      trtq blocks timm:mobilevit_xxs
      trtq blocks yolo.onnx --json
    """
    merged = collect(BlocksSpec, values)
    require(merged, ("model",), "blocks", "model")
    spec = BlocksSpec.make(merged)
    from trtq.commands.blocks import blocks

    record = done(blocks(spec))
    if as_json:
        print_json(record)
        return
    say(f"{record.model}: {record.family} ({record.reason})")
    for note in record.notes:
        say(f"  {note}")
    for title, names in (("CNN", record.blocks.cnn), ("Transformer", record.blocks.transformer)):
        say(f"{title} ({len(names)})")
        for name in names:
            say(f"  {name}")
