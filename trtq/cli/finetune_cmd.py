"""``trtq finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.artifact import size_words
from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import FinetuneSpec
from trtq.workers import Workers


@click.command("finetune", cls=Sectioned)
@spec_options(FinetuneSpec, argument="model", required=("encodings", "data", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Train MODEL with its encodings in place and export it as trtq quantize does.

    After a stop (Ctrl-C, SIGTERM or a crash), the same command resumes from OUT/checkpoint.

    \b
    Examples:
      trtq finetune timm:resnet18 --checkpoint resnet18.safetensors \\
        --encodings ptq/encodings.safetensors \\
        --data images/train --val images/val --epochs 3 --out qat
      trtq finetune trtq:fcn_resnet18 --model-arg num_classes=11 \\
        --checkpoint fcn.safetensors --input-size 3x240x320 \\
        --encodings ptq/encodings.safetensors --data camvid.zip/train \\
        --masks camvid.zip/trainannot --val camvid.zip/val \\
        --val-masks camvid.zip/valannot --ignore-index 11 \\
        --class-weights median --out qat
      torchrun --nproc_per_node 4 -m trtq finetune ...
    """
    merged = collect(FinetuneSpec, values)
    require(merged, ("model", "encodings", "data", "out"), "finetune", "model")
    spec = FinetuneSpec.make(merged)
    from trtq.commands.finetune import finetune

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(finetune(spec, progress))
    if Workers.from_environment().rank:
        return  # of several processes the first speaks
    files = (
        f"{Path(spec.out) / name}  {size_words(file.bytes)}" for name, file in record.files.items()
    )
    print_record(record, as_json=as_json, lines=files)
