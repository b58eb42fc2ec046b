"""``trtq import-checkpoint``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import ImportCheckpointSpec


@click.command("import-checkpoint", cls=Sectioned)
@spec_options(ImportCheckpointSpec, argument="model", required=("ranges", "data", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Import ranges of MODEL from another tool and export as trtq quantize does.

    The tools are pytorch-quantization, ModelOpt and AIMET.

    \b
    Examples:
      trtq import-checkpoint timm:resnet18 --ranges resnet18_int8.pth --data images/val --out out
      trtq import-checkpoint model.py:factory --ranges modelopt.pth --data calib.npz --out out
    """
    merged = collect(ImportCheckpointSpec, values)
    require(merged, ("model", "ranges", "data", "out"), "import-checkpoint", "model")
    spec = ImportCheckpointSpec.make(merged)
    from trtq.commands.import_checkpoint import import_checkpoint

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(import_checkpoint(spec, progress))
    unused = (f"unused {name}: {why}" for name, why in list(record.unused.items())[:10])
    print_record(record, as_json=as_json, lines=unused)
