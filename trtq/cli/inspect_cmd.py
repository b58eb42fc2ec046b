"""``trtq inspect``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import PathText
from trtq.terminal import say

DEEPEST, MOST = 2, 3  # of what is shown without --json


@click.command("inspect")
@click.argument("path", metavar="PATH", type=PathText())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(path: str, as_json: bool) -> None:
    """Explain the contents of PATH.

    PATH is an ONNX file, encodings, an engine with its manifest, a record, a calibration cache
    entry, a recipe, or a folder of them.

    Long lists and deeply nested parts are only counted; --json prints everything.
    """
    from trtq.commands.inspect import inspect

    info = inspect(path)
    if as_json:
        print_json(info)
    else:
        _show(info, 0)


def _show(value: Any, indent: int) -> None:
    pad = "  " * indent
    for key, item in value.items():
        if isinstance(item, dict) and item:
            say(f"{pad}{key}:" if indent < DEEPEST else f"{pad}{key}: {len(item)} fields")
            if indent < DEEPEST:
                _show(item, indent + 1)
        elif (
            isinstance(item, list)
            and item
            and indent < DEEPEST
            and all(isinstance(e, dict) for e in item)
        ):
            for i, entry in enumerate(item[:MOST]):
                say(f"{pad}{key}, {i + 1} of {len(item)}:")
                _show(entry, indent + 1)
        elif isinstance(item, list) and (len(item) > 8 or any(isinstance(e, dict) for e in item)):
            first = "" if isinstance(item[0], (dict, list)) else f", first {item[0]}"
            say(f"{pad}{key}: {len(item)} entries{first}")
        elif item not in (None, [], {}, ""):
            say(f"{pad}{key}: {item}")
