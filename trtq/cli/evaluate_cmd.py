"""``trtq evaluate``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import EvaluateSpec
from trtq.terminal import say


@click.command("evaluate", cls=Sectioned)
@spec_options(EvaluateSpec, argument="onnx", required=("data",))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Compute top-1, top-5, agreement with a reference, and SQNR of the logits of ONNX.

    ONNX is a file that ONNX Runtime runs, or an engine that runs on its GPU.

    A file that trtq wrote contains its preprocessing: the input options are only needed for other
    files.

    \b
    Examples:
      trtq evaluate out/model.qdq.onnx --reference out/model.fp32.onnx --data images/val
      trtq evaluate out/model.qdq.onnx --data coco:pages --exclude out/quantize.json --out out
    """
    merged = collect(EvaluateSpec, values)
    require(merged, ("onnx", "data"), "evaluate", "onnx")
    spec = EvaluateSpec.make(merged)
    from trtq.commands.evaluate import evaluate, pictures_folder

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(evaluate(spec, progress))
    if as_json:
        print_json(record)
    else:
        say(record.summary)
        if record.pictures:
            say(f"  {pictures_folder(spec)}/index.html")
    if not record.valid:
        raise SystemExit(3)
