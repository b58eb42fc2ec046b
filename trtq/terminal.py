"""Terminal output: the only module that writes text for people.

Names from files, boards and users cannot move the cursor or hide.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from trtq.errors import SystemRefusalError, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

KEPT = {"\t"}
HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, lone surrogate, separators
# Letters and marks that a terminal draws as nothing.
HIDDEN_RANGES = (
    (0x34F, 0x34F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0000, 0xE0FFF),
)


class Lines(str):
    """A text with intended line breaks, made by :func:`stack` and printed as several lines."""

    __slots__ = ()


def stack(lines: Iterable[object]) -> Lines:
    """Join items as one line each; line breaks inside an item are escaped."""
    return Lines("\n".join(visible(line) for line in lines))


class ClosedOutputError(Exception):
    """The reader of standard output has exited, as ``head`` does; the command ends silently."""


def visible(text: object, *, lines: bool = False) -> str:
    r"""Escape each character that a terminal would interpret or hide.

    Characters from U+007F on are escaped as in JSON, so JSON text keeps its meaning.

    Args:
        text: anything with a ``str``.
        lines: keep line breaks.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    >>> visible("evil\u202egnp.exe")
    'evil\\u202egnp.exe'
    """
    plain = str(text)
    inside = plain.replace("\n", "") if lines else plain
    if inside.isascii() and inside.isprintable():
        return plain
    return "".join(
        c if c in KEPT or (lines and c == "\n") or not _is_hidden(c) else _escape(c) for c in plain
    )


def _is_hidden(char: str) -> bool:
    if unicodedata.category(char) in HIDDEN_CATEGORIES:
        return True
    code = ord(char)
    return code >= HIDDEN_RANGES[0][0] and any(low <= code <= high for low, high in HIDDEN_RANGES)


def _escape(char: str) -> str:
    named = {"\n": r"\n", "\r": r"\r"}.get(char)
    if named is not None or ord(char) < 0x20:
        return named or f"\\x{ord(char):02x}"
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def say(text: object = "", *, err: bool = False, lines: bool = False, end: str = "\n") -> None:
    """Print one line.

    Characters that the terminal would interpret, or that its encoding lacks, are escaped.

    Args:
        text: to print.
        err: print to standard error; a closed or full standard error is ignored.
        lines: the text may have several lines.
        end: after the text.

    Raises:
        ClosedOutputError: the reader of standard output has exited.
        SystemRefusalError: standard output cannot be written to, such as a file on a full disk.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    try:
        _write(stream, visible(text, lines=lines or isinstance(text, Lines)) + end)
    except BrokenPipeError as exc:
        if not err:
            raise ClosedOutputError from exc
    except (OSError, ValueError) as exc:  # ValueError: closed in this process
        if not err:
            raise SystemRefusalError("Cannot write to standard output", reason(exc)) from exc


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def rich_text(text: object) -> Text:
    """Return a text for rich tables and bars; markup in it is plain text."""
    from rich.text import Text

    return Text(visible(text))


def new_table(title: str, columns: Iterable[str]) -> Table:
    """Return an empty table; the first column is aligned left, the others right.

    Args:
        title: above the table.
        columns: their headings.
    """
    from rich.table import Table

    table = Table(title=rich_text(title), title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(rich_text(name), justify="right" if i else "left", overflow="fold")
    return table


def say_table(table: Table, rows: Iterable[Sequence[object]]) -> None:
    """Print a table of :func:`new_table` with these rows.

    Args:
        table: changed: the rows are added.
        rows: a value for each column.

    Raises:
        ClosedOutputError: the reader of standard output has exited.
    """
    from rich.console import Console

    for row in rows:
        table.add_row(*(rich_text(cell) for cell in row))
    if sys.stdout is None:
        return
    try:
        Console(soft_wrap=False).print(table)
    except BrokenPipeError as exc:
        raise ClosedOutputError from exc


def prepare_streams_() -> None:
    """Prepare the standard streams for output.

    Characters that the encoding lacks are escaped. Closed standard streams are opened on the null
    device, so that the next opened file does not take their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Flush standard output.

    Raises:
        ClosedOutputError: its reader has exited.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError as exc:
        raise ClosedOutputError from exc


def drop_output_() -> None:
    """Discard pending standard output, so that the interpreter exits silently."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
