"""Bytes of small files in a package."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

BREAKS = str.maketrans(dict.fromkeys("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))


def as_json(value: msgspec.Struct) -> bytes:
    """Return a struct as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def labels_text(names: Sequence[str], end: str = "\n") -> bytes:
    r"""Return names as text, with a separator behind each; breaks in a name become spaces.

    Args:
        names: in index order.
        end: the separator.

    >>> labels_text(["red", "two\nlines"])
    b'red\ntwo lines\n'
    """
    return "".join(f"{name.translate(BREAKS)}{end}" for name in names).encode()
