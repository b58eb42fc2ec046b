"""``trtq export``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import ExportSpec


@click.command("export", cls=Sectioned)
@spec_options(ExportSpec, argument="model", required=("encodings", "target", "data", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Export MODEL with one set of encodings as ONNX for several targets.

    The files are OUT/TARGET.onnx, with the same scales in each.

    \b
    Examples:
      trtq export timm:resnet18 --checkpoint resnet18.safetensors \\
        --encodings out/encodings.safetensors --data images/train \\
        --target xavier@8.5 --target orin@10.3 --target rtx4090 --out profiles
      trtq export model.onnx --encodings out/encodings.safetensors --data images \\
        --target rtx4090 --precision fp16 --out profiles
    """
    merged = collect(ExportSpec, values)
    require(merged, ("model", "encodings", "target", "data", "out"), "export", "model")
    spec = ExportSpec.make(merged)
    from trtq.commands.export import export_profiles

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(export_profiles(spec, progress))
    print_record(record, as_json=as_json, lines=[p.line for p in record.profiles])
