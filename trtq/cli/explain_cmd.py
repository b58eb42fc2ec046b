"""``trtq explain``."""

from __future__ import annotations

from collections.abc import Iterator

import click
import msgspec

from trtq import error_codes, errors
from trtq.cli.completing import offer
from trtq.cli.display import print_json
from trtq.error_codes import OR, Closed, Entry, Group, Row, forms
from trtq.terminal import say

BRACES = "{name} is a value of the run; {cause} is what the system or another program reported."
GENERAL = "This code has no text of its own: another program or library gave the text."


@click.command("explain")
@click.argument("code", metavar="[CODE]", required=False, shell_complete=offer("code"))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(code: str | None, as_json: bool) -> None:
    """Explain an error by its code: the message, its reasons and what to do.

    CODE is in brackets at the end of an error, such as DATA-017. The name of a group, such as DATA,
    lists its errors. Without CODE the groups are listed.

    \b
    Examples:
      trtq explain DATA-017
      trtq explain ENGINE
    """
    if code is None:
        rows = list(error_codes.groups().items())
        lines = _groups(rows)
        shown: object = [_group(*row) for row in rows]
    else:
        entries = _find(code)
        lines = _entry(entries[0]) if len(entries) == 1 else _list(entries)
        shown = [_row(entry) for entry in entries]
    if as_json:
        print_json(shown)
        return
    for line in lines:
        say(line)


def _find(text: str) -> list[Entry]:
    """Return the entry of a code, or all open entries of a group.

    Raises:
        UsageError: there is no such code; the nearest ones are named.
    """
    code, every = error_codes.normalize(text), list(error_codes.entries())
    with_code = [e for e in every if e.code == code]
    if with_code:
        return with_code
    in_group = [
        e
        for e in every
        if text.upper() in (e.group.prefix, e.kind.upper()) and not isinstance(e.row, Closed)
    ]
    if in_group:
        return in_group
    prefix, dash, _ = code.partition("-")
    if any(e.group.prefix == prefix for e in every):
        hint = f"List the codes of the group: trtq explain {prefix}"
    else:
        known = [g.prefix for g in error_codes.groups().values()]
        hint = errors.suggest(prefix if dash else code, known, count=1)
    raise errors.UsageError(f"Unknown error code {text!r}", hint=hint)


def meaning(kind: str) -> str:
    """Return the first line of the class's documentation."""
    text: str = getattr(errors, kind).__doc__ or ""
    return text.splitlines()[0].rstrip(".")


def _groups(rows: list[tuple[str, Group]]) -> Iterator[str]:
    for kind, group in rows:
        yield f"{group.prefix:9} {len(group.rows):4}  {kind}: {meaning(kind)}"
    yield "List a group: trtq explain GROUP. Explain one error: trtq explain CODE."


def _list(entries: list[Entry]) -> Iterator[str]:
    yield f"{entries[0].kind}: {meaning(entries[0].kind)}"
    for entry in entries:
        row = entry.row
        text = (
            GENERAL
            if row is None
            else ": ".join(filter(None, (row.message, row.reason))).replace(OR, " or ")
        )
        yield f"  {entry.code:12} {text}"
    yield BRACES


def _entry(entry: Entry) -> Iterator[str]:
    yield f"{entry.code}  {entry.kind}: {meaning(entry.kind)}"
    if entry.row is None:
        yield f"  {GENERAL}"
    else:
        yield from _texts(entry.row)
    yield f"  Docs     docs/{entry.group.page}, docs/errors.md#{entry.code.lower()}"
    if entry.row is not None and "{" in "".join((entry.row.message, entry.row.reason)):
        yield BRACES


def _texts(row: Row | Closed) -> Iterator[str]:
    if isinstance(row, Closed):
        yield "  This code is closed: trtq does not print it any more."
        if row.replaced_by:
            yield f"  Replaced by {row.replaced_by}"
    for name, text in (("Message", row.message), ("Reason", row.reason), ("Hint", row.hint)):
        for i, form in enumerate(forms(text)):
            yield f"  {'   or' if i else name:8} {form}"


def _group(kind: str, group: Group) -> dict[str, object]:
    return {
        "prefix": group.prefix,
        "class": kind,
        "meaning": meaning(kind),
        "page": f"docs/{group.page}",
        "codes": [group.code(row.number) for row in group.rows],
    }


def _row(entry: Entry) -> dict[str, object]:
    texts = msgspec.to_builtins(msgspec.structs.asdict(entry.row)) if entry.row else {}
    texts.pop("number", None)
    return {
        "code": entry.code,
        "class": entry.kind,
        "meaning": meaning(entry.kind),
        "closed": isinstance(entry.row, Closed),
        **texts,
        "page": f"docs/{entry.group.page}",
    }
