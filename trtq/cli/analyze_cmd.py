"""``trtq analyze``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import AnalyzeSpec
from trtq.terminal import say


@click.command("analyze", cls=Sectioned)
@spec_options(AnalyzeSpec, argument="model", required=("data", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Measure the quantization sensitivity of each layer of MODEL at each width.

    \b
    Examples:
      trtq analyze timm:resnet18 --checkpoint resnet18.safetensors \\
        --data images/train --metric jsd --out S.json
      trtq analyze model.onnx --data images --calib-images 64 --out S.json
    """
    merged = collect(AnalyzeSpec, values)
    require(merged, ("model", "data", "out"), "analyze", "model")
    spec = AnalyzeSpec.make(merged)
    from trtq.commands.analyze import analyze

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(analyze(spec, progress))
    if as_json:
        print_json(record)
        return
    say(record.summary)
    widest = max(len(layer.name) for layer in record.layers)
    say(
        f"{'layer':{widest}}"
        + "".join(f"{o:>12}" for o in record.bits if o != "fp16")
        + f"{'weights':>12}{'MACs':>14}"
    )
    for layer in record.layers:
        losses = "".join(f"{layer.loss[o]:>12.4g}" for o in record.bits if o != "fp16")
        say(f"{layer.name:{widest}}{losses}{layer.cost.weights:>12,}{layer.cost.macs:>14,}")
    say(f"  {spec.out}, plot beside it as .svg")
