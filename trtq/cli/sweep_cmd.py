"""``trtq sweep``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.files import SWEEP_HTML
from trtq.specs import SweepSpec
from trtq.terminal import say


@click.command("sweep", cls=Sectioned)
@spec_options(SweepSpec, argument="recipe")
@click.option(
    "--dry-run", is_flag=True, help="Say which runs there are and which are done; do nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(dry_run: bool, as_json: bool, **values: Any) -> int:
    """Run every combination of the lists in RECIPE (a TOML file), each once.

    Runs that are in the store are reused, also those of another sweep. Exit code 1: a run failed;
    3: the figures of a run are not valid.

    \b
    Examples:
      trtq sweep sweep.toml --dry-run
      trtq sweep sweep.toml --on ray --workers 4

    \b
    A recipe of six runs:
      [quantize]
      model = "timm:resnet18"
      data = "images/train"
      [evaluate]
      data = "images/val"
      [vary]
      "quantize.bits" = ["w8a8", "w4a8"]
      "quantize.calibrator" = ["max", "mse", "entropy"]
    """
    merged = collect(SweepSpec, values)
    require(merged, ("recipe",), "sweep", "recipe")
    spec = SweepSpec.make(merged)
    from trtq.sweep.command import sweep

    with ConsoleProgress(quiet=as_json) as progress:
        record = sweep(spec, progress, dry_run=dry_run)
    if dry_run and not as_json:
        say(f"{len(record.rows)} runs, {len(record.in_state('reused'))} of them in the store")
        for row in record.rows:
            say(f"  {row.line}")
        return 0
    print_record(record, as_json=as_json, lines=[f"Table: {record.out}/{SWEEP_HTML}"])
    return 1 if record.failed else 0 if record.valid else 3
