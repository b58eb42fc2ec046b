"""Stable codes of errors, such as DATA-017: the table, and which row an error is.

A raise site does not name its code. The table has the texts of every raise site as templates, with
``{name}`` in place of values, and an error has the code of the row that fits it best. Texts that
only repeat another program have the general code of their class, such as DATA-000.
``make errors`` writes the table from the source.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

TABLE = Path(__file__).with_name("error_codes.json")
PLACEHOLDER = re.compile(r"\{\w+\}")
OR = " | "  # between the alternatives of one text
CODE = re.compile(r"\[?([A-Z]+)-?(\d+)\]?", re.IGNORECASE)
VARIES = "the error itself has it, since it depends on the case"
LEAST_FIXED = 12  # characters that a row of another class must share with an error


class Row(msgspec.Struct, array_like=True, frozen=True):
    """One error: its number in the group, and its texts as templates.

    Attributes:
        number: from 1 on.
        message, reason, hint: with ``{name}`` in place of values, and `` | `` between alternatives.
    """

    number: int
    message: str
    reason: str
    hint: str


class Closed(msgspec.Struct, array_like=True, frozen=True):
    """A number that is not used any more, and never again.

    Attributes:
        number: from 1 on.
        message, reason, hint: as in :class:`Row`.
        replaced_by: the code of the same error today, "" for none.
    """

    number: int
    message: str
    reason: str
    hint: str
    replaced_by: str = ""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one class.

    Attributes:
        prefix: of its codes.
        page: in ``docs``, about what fails with it.
        rows: in use.
        closed: not in use any more.
    """

    prefix: str
    page: str
    rows: list[Row]
    closed: list[Closed]

    def code(self, number: int) -> str:
        """Return the code of a row; 0 is the general one of the class."""
        return f"{self.prefix}-{number:03d}"


class Entry(NamedTuple):
    """Meaning of a code.

    Attributes:
        kind: name of the class of errors.
        code: such as ``DATA-017``.
        group: of the class.
        row: None for the general code of the class.
    """

    kind: str
    code: str
    group: Group
    row: Row | Closed | None


@functools.cache
def groups() -> dict[str, Group]:
    """Return the table: a group for each class of errors."""
    return msgspec.json.decode(TABLE.read_bytes(), type=dict[str, Group])


def entries() -> Iterator[Entry]:
    """Yield every code, also those that are closed."""
    for kind, group in groups().items():
        yield Entry(kind, group.code(0), group, None)
        rows: list[Row | Closed] = [*group.rows, *group.closed]
        for row in rows:
            yield Entry(kind, group.code(row.number), group, row)


def forms(text: str) -> list[str]:
    """Return the alternatives of a text, those that are a value alone in words.

    >>> forms("Give the file with the weights | {hint}")
    ['Give the file with the weights', 'the error itself has it, since it depends on the case']
    """
    return [VARIES if PLACEHOLDER.fullmatch(f) else f for f in text.split(OR)] if text else []


def normalize(text: str) -> str:
    """Return a code as it is printed.

    >>> normalize("[data-17]")
    'DATA-017'
    """
    match = CODE.fullmatch(text.strip())
    return f"{match[1].upper()}-{int(match[2]):03d}" if match else text.upper()


def code_of(kinds: Iterable[str], message: str, reason: str, hint: str) -> str:
    """Return the code of an error.

    Args:
        kinds: its class, then the classes that this one is derived from.
        message: its text.
        reason: why it failed.
        hint: what to do.

    Returns:
        The code of the row that shares the most fixed characters with the error: of its own class
            or
        one above it, else of another class where at least 12 are shared; else the general code.
    """
    known = [groups()[kind] for kind in kinds if kind in groups()]
    for group in known:
        fitting, row = _best(group, message, reason, hint)
        if row is not None and fitting:
            return group.code(row.number)
    others = [(*_best(g, message, reason, hint), g) for g in groups().values() if g not in known]
    fitting, row, group = max(others, key=lambda candidate: candidate[0])
    if row is not None and fitting >= LEAST_FIXED:  # an error in the words of another one
        return group.code(row.number)
    return known[0].code(0) if known else ""


def _best(group: Group, message: str, reason: str, hint: str) -> tuple[int, Row | None]:
    """Return the row with the longest text in common, and its length."""
    best: tuple[int, Row | None] = (0, None)
    for row in group.rows:
        shared = fixed_length(row.message, message)
        if shared < 0:
            continue
        why = fixed_length(row.reason, reason) if reason or not row.reason else 0
        if why < 0:
            continue
        fitting = shared + why + max(fixed_length(row.hint, hint), 0)
        if fitting > best[0]:
            best = fitting, row
    return best


def fixed_length(template: str, text: str) -> int:
    """Return how many fixed characters of a template a text has, -1 where it does not fit.

    Args:
        template: with ``{name}`` for any text, and `` | `` between alternatives; the best one
            counts.
        text: of an error.

    >>> fixed_length("Cannot read {path}", "Cannot read a.png")
    12
    >>> fixed_length("Cannot read {path}", "Cannot write a.png")
    -1
    """
    return max(_fixed_length(PLACEHOLDER.split(form), text) for form in template.split(OR))


def _fixed_length(parts: list[str], text: str) -> int:
    first, *middle = parts
    if not middle:
        return len(first) if text == first else -1
    last = middle.pop()
    if not text.startswith(first) or not text.endswith(last):
        return -1
    position = len(first)
    for part in middle:
        position = text.find(part, position)
        if position < 0:
            return -1
        position += len(part)
    return sum(map(len, parts)) if position + len(last) <= len(text) else -1
