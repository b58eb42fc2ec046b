"""Writes the lists of errors and of releases from the program's tables, and draws the pictures."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby

from pictures import draw  # mkdocs finds modules beside a hook

from trtq.cli.explain_cmd import meaning
from trtq.error_codes import Closed, Entry, entries, forms
from trtq.platform.releases import shown, sources

PICTURE = re.compile(r"<!-- picture: (\w+) -->")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return the text of a page with its lists and pictures in place of their marks."""
    markdown = PICTURE.sub(lambda mark: draw(mark[1]), markdown)
    for mark, written in (("<!-- errors -->", _errors), ("<!-- releases -->", _releases)):
        if mark in markdown:
            markdown = markdown.replace(mark, written())
    return markdown


def _releases() -> str:
    rows = [f"| {shown(r.version)} | {r.fact} | {r.source} |" for r in sources()]
    return "\n".join(["| TensorRT | fact | read in |", "|---|---|---|", *rows])


def _errors() -> str:
    parts = []
    for kind, found in groupby(entries(), key=lambda e: e.kind):
        rows = list(found)
        group = rows[0].group
        parts.append(
            f"## {group.prefix}: {kind}\n\n{meaning(kind)}. See [{group.page}]({group.page})."
        )
        lines = "\n".join(_entry(e) for e in rows if e.row is not None)
        parts.append(f"<dl>\n{lines}\n</dl>")
    return "\n\n".join(parts)


def _entry(entry: Entry) -> str:
    row = entry.row
    assert row is not None
    closed = "(closed) " if isinstance(row, Closed) else ""
    lines = [_forms(row.reason), f"Hint: {_forms(row.hint)}" if row.hint else ""]
    if isinstance(row, Closed) and row.replaced_by:
        lines.append(f"Replaced by {row.replaced_by}")
    text = "<br>".join(filter(None, lines))
    code = f'<dt id="{entry.code.lower()}"><code>{entry.code}</code>'
    return f"{code} {closed}{_forms(row.message)}</dt>\n<dd>{text}</dd>"


def _forms(text: str) -> str:
    return " <em>or</em> ".join(escape(form) for form in forms(text))
