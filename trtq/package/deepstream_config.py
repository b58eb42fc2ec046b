"""The configuration file of nvinfer: keys that it knows, and values as it reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from trtq.errors import UsageError
from trtq.typed import toml_as

FILE = Path(__file__).with_name("deepstream_keys.toml")
PROPERTY, CLASS_ATTRS, ALL = "property", "class-attrs", "class-attrs-all"
Value = str | int | float | Sequence[int] | Sequence[float] | Sequence[str]


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The keys of each group; the file names its sources."""

    property: frozenset[str]
    class_attrs: frozenset[str]


@cache
def known_keys() -> Keys:
    """Return the keys that nvinfer documents."""
    return toml_as(FILE.read_bytes(), Keys)


def config_text(properties: Mapping[str, Value], classes: Mapping[str, Value]) -> bytes:
    """Return a configuration file.

    Args:
        properties: of the group ``property``; sequences are written with semicolons, floats with
            nine digits.
        classes: of the group ``class-attrs-all``; empty leaves it out.

    Raises:
        ValueError: nvinfer has no such key.
        UsageError: a text has a character that the file cannot hold.
    """
    keys, lines = known_keys(), [f"[{PROPERTY}]"]
    lines += _lines(properties, keys.property)
    if classes:
        lines += ["", f"[{ALL}]", *_lines(classes, keys.class_attrs)]
    return ("\n".join(lines) + "\n").encode()


def _lines(values: Mapping[str, Value], known: frozenset[str]) -> list[str]:
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"nvinfer has no key {', '.join(unknown)}")
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _text(value: Value) -> str:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, int):
        return str(value)
    return ";".join(_text(v) for v in value)


def _plain(text: str) -> str:
    """Return a text that needs no escape in GLib's key files."""
    wrong = next((c for c in text if c in ";\\" or not c.isprintable()), None)
    if wrong is not None or text != text.strip():
        raise UsageError(
            f"Cannot write {text!r} into the configuration of nvinfer",
            f"it has {wrong!r}" if wrong is not None else "it begins or ends with a space",
            "Rename the output or the file",
        )
    return text
