"""Finds words of ``words.toml`` in all text of the project: ``python -m tests.docs.language``.

That is README, docs, the newest part of the changelog, ``--help``, errors, every string of the
program that is prose, report pages, and docstrings and comments of the package.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.docs.language_texts import Text, texts
from trtq.recipe import read_toml

WORDS = Path(__file__).with_name("words.toml")
# Where a sentence opens: a text, a paragraph, an entry of a list, a heading, behind a full stop.
START = (
    r"(?:\A|\n\s*\n|(?:\A|\n)\s*(?:[-*]|\d+\.|\#+)\s+(?:\d+\.\s)?"
    r"|[.!?:][\"')*_]*\s+|\*\*\s|\|\s)\s*"
)


class Finding(NamedTuple):
    """A word that does not belong there."""

    place: str
    words: str
    advice: str


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], str]]:
    table = {
        kind: {pattern.replace(" ", r"\s+"): advice for pattern, advice in rows.items()}
        for kind, rows in read_toml(WORDS).items()
    }
    words = [(rf"(?<!\w)({p})(?!\w)", advice) for p, advice in table["words"].items()]
    openings = [
        (rf"{START}({p})\b(?![^.?!\n]*\?)", advice) for p, advice in table["openings"].items()
    ]
    return [
        *((re.compile(p, re.IGNORECASE), advice) for p, advice in words),
        *((re.compile(p), advice) for p, advice in openings),
    ]


def findings(text: Text) -> Iterator[Finding]:
    for pattern, advice in _rules():
        for match in pattern.finditer(text.text):
            line = text.first_line + text.text.count("\n", 0, match.start(1))
            place = f"{text.place}:{line}" if text.first_line else text.place
            around = text.text[max(match.start(1) - 30, 0) : match.end() + 30]
            yield Finding(place, " ".join(around.split()), advice)


def main() -> int:
    bad = list(dict.fromkeys(finding for text in texts() for finding in findings(text)))
    for place, words, advice in bad:
        sys.stdout.write(f"{place}: ... {words} ... (better: {advice})\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
