"""Finds words of ``words.toml`` in all text that users read: ``python -m tests.docs.language``.

That is README, docs, the newest part of the changelog, ``--help``, errors and public docstrings.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from trtq.cli import cli
from trtq.error_codes import OR, entries
from trtq.recipe import read_toml
from trtq.verbs import public_names

ROOT = Path(__file__).parents[2]
WORDS = Path(__file__).with_name("words.toml")
# Fences and commands of a page, code within a line, addresses of links, headings.
CODE = re.compile(
    r"^```[\s\S]*?^```$|^ {4,}\S.*$|`[^`\n]*`|\]\([^)\n]*\)|^#.*$|<!--.*?-->", re.MULTILINE
)
START = r"(?:\A|\n\s*\n|(?:\A|\n)\s*(?:[-*]|\d+\.)\s|[.!?][\"')*_]*\s+|\*\*\s)\s*"


class Text(NamedTuple):
    """Text that users read, and where it is."""

    place: str
    text: str
    first_line: int = 0  # 0: the place has no lines


class Finding(NamedTuple):
    """A word that does not belong there."""

    place: str
    words: str
    advice: str


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    table = read_toml(WORDS)
    words = [(rf"\b({p})\b", advice) for p, advice in table["words"].items()]
    openings = [
        (rf"{START}({p})\b(?![^.?!]*\?)", advice) for p, advice in table["openings"].items()
    ]
    return [
        *((re.compile(p, re.IGNORECASE), advice) for p, advice in words),
        *((re.compile(p), advice) for p, advice in openings),
    ]


def without_code(text: str) -> str:
    """Return a page with blanks in place of code; lines keep their numbers."""
    return CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def findings(text: Text) -> Iterator[Finding]:
    for pattern, advice in _rules():
        for match in pattern.finditer(text.text):
            line = text.first_line + text.text.count("\n", 0, match.start(1))
            place = f"{text.place}:{line}" if text.first_line else text.place
            around = text.text[max(match.start(1) - 30, 0) : match.end() + 30]
            yield Finding(place, " ".join(around.split()), advice)


def texts() -> Iterator[Text]:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield Text(str(path.relative_to(ROOT)), without_code(path.read_text()), 1)
    yield Text("CHANGELOG.md", without_code(newest(ROOT / "CHANGELOG.md")), 1)
    yield from _helps(cli, "trtq")
    for entry in entries():
        if entry.row is not None:
            for part in (entry.row.message, entry.row.reason, entry.row.hint):
                yield from (Text(entry.code, re.sub(r"\{\w+\}", "_", t)) for t in part.split(OR))
    for module in sorted(set(public_names().values())):
        yield from _docstrings(module)


def newest(path: Path) -> str:
    """Return a changelog up to the second release in it."""
    text = path.read_text()
    releases = [match.start() for match in re.finditer(r"^## \[", text, re.MULTILINE)]
    return text[: releases[1]] if len(releases) > 1 else text


def _helps(command: click.Command, name: str) -> Iterator[Text]:
    yield Text(f"{name} --help", command.help or "")
    for param in command.params:
        if isinstance(param, click.Option) and param.help:
            yield Text(f"{name} {param.opts[0]}", param.help)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            other = command.get_command(context, sub)
            assert other is not None
            yield from _helps(other, f"{name} {sub}")


def _docstrings(module: str) -> Iterator[Text]:
    path = ROOT / f"{module.replace('.', '/')}.py"
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node, clean=False)
        if text and not getattr(node, "name", "").startswith("_"):
            text = re.sub(r"^ *>>> .*$|``.*?``", "", text, flags=re.MULTILINE)
            yield Text(str(path.relative_to(ROOT)), text, node.body[0].lineno)


def main() -> int:
    every = [finding for text in texts() for finding in findings(text)]
    for place, words, advice in every:
        sys.stdout.write(f"{place}: ... {words} ... (better: {advice})\n")
    return 1 if every else 0


if __name__ == "__main__":
    sys.exit(main())
