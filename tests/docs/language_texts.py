"""All text of the project: pages, helps, errors, strings, templates, docstrings, comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from trtq.cli import cli
from trtq.error_codes import OR, entries
from trtq.recipe import read_toml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "trtq"
PAGES = ("README.md", "engines/README.md", "calib_cache/README.md", "jetson/README.md")
# Programs that stand in for those of others and speak as those do, and programs that packages hold.
OTHERS_PROGRAMS = ("testing", "templates")
# Fences and commands of a page, code within a line, addresses of links.
CODE = re.compile(r"^```[\s\S]*?^```$|^ {4,}\S.*$|`[^`\n]*`|\]\([^)\n]*\)|<!--.*?-->", re.MULTILINE)
# What is no text in a template of a report page.
MARKUP = re.compile(r"<style[\s\S]*?</style>|\{%.*?%\}|\{\{.*?\}\}|\{#[\s\S]*?#\}|<[^>]*>")
PROSE = re.compile(r"[A-Za-z]{2,}[,;:]?\s+[A-Za-z]")  # two words, not a name or a path
COMMENT = re.compile(r"(?<![\w:])//+\s*(.*)|/\*([\s\S]*?)\*/|(?:^|\s)#\s+(.*)", re.MULTILINE)
PROGRAM_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


class Text(NamedTuple):
    """Text that users read, and where it is."""

    place: str
    text: str
    first_line: int = 0  # 0: the place has no lines


def texts() -> Iterator[Text]:
    for path in (*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))):
        yield Text(_name(path), without_code(path.read_text()), 1)
    yield Text("CHANGELOG.md", without_code(newest(ROOT / "CHANGELOG.md")), 1)
    yield Text("mkdocs.yml", (ROOT / "mkdocs.yml").read_text(), 1)
    yield from _helps(cli, "trtq")
    yield from _errors()
    for path in sources():
        text = path.read_text()
        yield from strings(_name(path), text)
        yield from docstrings(_name(path), text)
        yield from comments(_name(path), text)
    for path in sorted(PACKAGE.rglob("*.j2")):
        yield Text(_name(path), without_markup(path.read_text()), 1)
    templates = (p for p in (PACKAGE / "package/templates").iterdir() if p.is_file())
    for path in (*templates, *PACKAGE.rglob("*.js")):
        yield from program(_name(path), path.read_text())
    for path in sorted((PACKAGE / "platform").glob("*.toml")):
        yield from (Text(_name(path), value) for value in _values(read_toml(path)))


def sources() -> list[Path]:
    """Return the modules of trtq."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [p for p in paths if not set(p.relative_to(PACKAGE).parts) & set(OTHERS_PROGRAMS)]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """Return a page with blanks in place of code; lines keep their numbers."""
    return CODE.sub(_blank, text)


def without_markup(text: str) -> str:
    """Return a template of a report page with blanks in place of tags and code."""
    return MARKUP.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


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


def _errors() -> Iterator[Text]:
    for entry in entries():
        if entry.row is not None:
            for part in (entry.row.message, entry.row.reason, entry.row.hint):
                yield from (Text(entry.code, re.sub(r"\{\w+\}", "_", t)) for t in part.split(OR))


def strings(place: str, source: str) -> Iterator[Text]:
    """Return the strings of a source that are text: messages, notes, reasons, titles.

    Values in a string become ``_``. Docstrings are not among them.
    """
    tree = ast.parse(source)
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in (*node.values, *(p.format_spec for p in _fields(node) if p.format_spec))
    }
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inner or id(node) in docs:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(p.value) if isinstance(p, ast.Constant) else "_" for p in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if PROSE.search(text):
            yield Text(place, text, node.lineno)


def _fields(node: ast.JoinedStr) -> list[ast.FormattedValue]:
    return [part for part in node.values if isinstance(part, ast.FormattedValue)]


def docstrings(place: str, source: str) -> Iterator[Text]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        text = ast.get_docstring(node, clean=False)
        if text:
            text = re.sub(r"^ *>>> .*$|``.*?``", "", text, flags=re.MULTILINE)
            yield Text(place, text, node.body[0].lineno)


def comments(place: str, source: str) -> Iterator[Text]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(place, token.string.lstrip("# "), token.start[0])


def program(place: str, source: str) -> Iterator[Text]:
    """Return comments and strings of a program in any language."""
    for match in (*COMMENT.finditer(source), *PROGRAM_STRING.finditer(source)):
        text = next((part for part in match.groups() if part), "")
        if PROSE.search(text):
            yield Text(place, text, 1 + source.count("\n", 0, match.start()))


def _values(table: Any) -> Iterator[str]:
    if isinstance(table, dict):
        table = list(table.values())
    if isinstance(table, list):
        for value in table:
            yield from _values(value)
    elif isinstance(table, str):
        yield table
