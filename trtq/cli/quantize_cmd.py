"""``trtq quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.artifact import size_words
from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import PathText, collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.files import QUANTIZE_JSON
from trtq.specs import QuantizeSpec
from trtq.terminal import say
from trtq.workers import Workers


@click.command("quantize", cls=Sectioned)
@spec_options(QuantizeSpec, argument="model", required=("data", "out"))
@click.option(
    "--recipe",
    default=None,
    type=PathText(),
    metavar="FILE",
    help="TOML file whose [quantize] table gives what is not typed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(recipe: str | None, as_json: bool, **values: Any) -> None:
    """Calibrate MODEL and export it as a Q/DQ ONNX file.

    Writes model.fp32.onnx, model.qdq.onnx, encodings.safetensors and quantize.json to OUT.

    MODEL is FILE.onnx, FILE.pt2, timm:NAME, torchvision:NAME, package.module:factory or
    path/to/file.py:factory.

    \b
    Examples:
      trtq quantize yolov8n.onnx --data images --preset yolo --out out
      trtq quantize timm:resnet18 --checkpoint resnet18.safetensors --data images/train --out out
    """
    merged = collect(QuantizeSpec, values, recipe=recipe, table="quantize")
    require(merged, ("model", "data", "out"), "quantize", "model")
    spec = QuantizeSpec.make(merged)
    from trtq.commands.quantize import quantize

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(quantize(spec, progress))
    if Workers.from_environment().rank:
        return  # of several processes the first speaks
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for left in record.left_in_float[:5]:
        say(f"  left in float: {left.name}: {left.reason}")
    if len(record.left_in_float) > 5:
        say(f"  ... and {len(record.left_in_float) - 5} more, see {Path(spec.out) / QUANTIZE_JSON}")
    for name, file in record.files.items():
        say(f"  {Path(spec.out) / name}  {size_words(file.bytes)}")
