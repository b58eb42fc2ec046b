"""The only place that writes for a person: names from files, boards and users cannot move the cursor or hide."""

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
    """A text whose line breaks are its own: made by :func:`stack`, printed as several lines."""

    __slots__ = ()


def stack(lines: Iterable[object]) -> Lines:
    """Return a text of one line each; line breaks inside one are written out."""
    return Lines("\n".join(visible(line) for line in lines))


class ClosedOutputError(Exception):
    """Whoever reads standard output has gone, as ``head`` does: the command ends without a word."""


def visible(text: object, *, lines: bool = False) -> str:
    r"""Return a text in which each character that a terminal would obey or hide is written out.

    The escapes of characters from U+007F on are those of JSON, so JSON stays the same JSON.

    Args:
        text: anything with a ``str``.
        lines: line breaks stay line breaks.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    >>> visible("evil\u202egnp.exe")
    'evil\\u202egnp.exe'
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
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
    """Print one line; what the terminal would obey is written out, what its encoding lacks is replaced.

    Args:
        text: to print.
        err: to standard error; a standard error that is closed or full is no error.
        lines: the text may have several lines.
        end: after the text.

    Raises:
        ClosedOutputError: nobody reads standard output any more.
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
    """Return a text for rich tables and bars, whose markup is plain text."""
    from rich.text import Text

    return Text(visible(text))


def new_table(title: str, columns: Iterable[str]) -> Table:
    """Return an empty table; the first column is aligned left, the others right."""
    from rich.table import Table

    table = Table(title=rich_text(title), title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(rich_text(name), justify="right" if i else "left", overflow="fold")
    return table


def say_table(table: Table, rows: Iterable[Sequence[object]]) -> None:
    """Print a table of :func:`new_table` with these rows.

    Raises:
        ClosedOutputError: nobody reads standard output any more.
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
    """Let standard output replace what its encoding lacks; closed standard streams lead nowhere, not into the next open file."""
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
    """Write out what standard output still holds.

    Raises:
        ClosedOutputError: nobody reads it any more.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError as exc:
        raise ClosedOutputError from exc


def drop_output_() -> None:
    """Send what is still to be written to standard output nowhere, so that the interpreter ends without a word."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
