"""The templates of pages, and the command lines that pages show."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from trtq.artifact import Record, size_words
from trtq.data.answers import percent_words
from trtq.specs import option_words
from trtq.terminal import visible

ARGUMENTS = {
    "evaluate": "onnx",
    "build": "onnx",
    "bench": "file",
    "sweep": "recipe",
}  # positional; else the model


def render(template: str, **values: Any) -> bytes:
    """Return a page as UTF-8.

    Args:
        template: file in this folder.
        values: what it shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=_plain
    )
    environment.filters["size"] = size_words
    environment.filters["percent"] = percent_words
    return environment.get_template(template).render(**values).encode()


def _plain(value: Any) -> Any:
    """Return a value as the page shows it.

    Characters that would reorder or hide a line are written out.
    """
    return visible(value, lines=True) if type(value) is str else value


def command_of(record: Record, words: str) -> str:
    """Return the command that makes a record again.

    Args:
        record: its spec gives the options.
        words: of the command, such as ``fleet bench``.
    """
    spec = dict(record.spec)
    given = spec.pop(ARGUMENTS.get(record.verb, "model"))
    arguments = given if isinstance(given, list) else [str(given)] if given else []
    options = [w for name, value in spec.items() for w in option_words(name, value)]
    return shlex.join(["trtq", *words.split(), *arguments, *options])
