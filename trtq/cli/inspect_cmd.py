"""``trtq inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import PathText
from trtq.terminal import say

DEEPEST, MOST, LONG = 2, 3, 8  # of what is shown without --json
PAD = "  "


@click.command("inspect")
@click.argument("path", metavar="PATH", type=PathText())
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(path: str, as_json: bool) -> None:
    """Explain the contents of PATH.

    PATH is an ONNX file, encodings, an engine with its manifest, a record, a calibration cache of
    TensorRT or an entry of trtq's own, a recipe, a package, or a folder of them.

    Long lists and deeply nested parts are only counted; --json prints everything.

    \b
    Examples:
      trtq inspect out/model.qdq.onnx
      trtq inspect out/quantize.json --json
    """
    from trtq.commands.inspect import inspect

    info = inspect(path)
    if as_json:
        print_json(info)
    else:
        _show(info, 0)


def _show(value: Mapping[str, Any], indent: int) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            _show_fields(key, item, indent)
        elif isinstance(item, list) and item:
            _show_list(key, item, indent)
        elif item not in (None, [], {}, ""):
            say(f"{PAD * indent}{key}: {item}")


def _show_fields(key: str, fields: Mapping[str, Any], indent: int) -> None:
    if indent >= DEEPEST:
        say(f"{PAD * indent}{key}: {len(fields)} fields")
        return
    say(f"{PAD * indent}{key}:")
    _show(fields, indent + 1)


def _show_list(key: str, items: list[Any], indent: int) -> None:
    pad = PAD * indent
    if indent < DEEPEST and all(isinstance(e, dict) for e in items):
        for i, entry in enumerate(items[:MOST]):
            say(f"{pad}{key}, {i + 1} of {len(items)}:")
            _show(entry, indent + 1)
    elif len(items) > LONG or any(isinstance(e, dict) for e in items):
        first = "" if isinstance(items[0], (dict, list)) else f", first {items[0]}"
        say(f"{pad}{key}: {len(items)} entries{first}")
    else:
        say(f"{pad}{key}: {items}")
