"""Plain tables as TOML text; Python reads TOML and does not write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from trtq.errors import UsageError

BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(tables: Mapping[str, Any]) -> str:
    """Return tables as TOML.

    Args:
        tables: values, tables and lists of tables by name; None is left out.

    Raises:
        UsageError: a value that TOML has no form for.

    >>> print(toml_text({"out": "a", "quantize": {"bits": "w8a8"}, "build": [{"target": "t4"}]}))
    out = "a"
    <BLANKLINE>
    [quantize]
    bits = "w8a8"
    <BLANKLINE>
    [[build]]
    target = "t4"
    <BLANKLINE>
    """
    lines = _settings({k: v for k, v in tables.items() if not _is_table(v)})
    for name, value in tables.items():
        if _is_table(value):
            many = isinstance(value, list)
            head = f"[[{_key(name)}]]" if many else f"[{_key(name)}]"
            for table in value if many else [value]:
                lines += ["", head, *_settings(table)]
    return "\n".join([*lines, ""])


def _is_table(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, dict) for v in value)
    return isinstance(value, dict)


def _settings(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(k)} = {_value(v, k)}" for k, v in table.items() if v is not None]


def _key(name: str) -> str:
    return name if BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    """Return a basic string: the escapes of JSON are TOML's, but for U+007F."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _value(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(v, name) for v in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(k)} = {_value(v, name)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise UsageError(
        f"Cannot write the setting {name} = {value!r}",
        f"a {type(value).__name__} is no setting of a recipe",
        "Write a text, a number, true or false, a list or a table",
    )
