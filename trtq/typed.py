"""Values and their types: plain values are read as types, one thread at a time.

msgspec builds its facts about a type when the type is first read; two threads that do so at once
crash the interpreter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_ALONE = threading.Lock()


def convert(value: Any, kind: type[T]) -> T:
    """Return plain values as a type.

    Args:
        value: as :func:`msgspec.to_builtins` returns them.
        kind: the struct, or any type that msgspec knows.

    Raises:
        msgspec.ValidationError: they do not fit it.
    """
    with _ALONE:
        return msgspec.convert(value, kind)


def json_as(raw: bytes, kind: type[T]) -> T:
    """Return JSON as a type.

    Raises:
        msgspec.DecodeError: it is not JSON, or does not fit the type.
    """
    with _ALONE:
        return msgspec.json.decode(raw, type=kind)


def toml_as(raw: bytes, kind: type[T]) -> T:
    """Return TOML as a type.

    Raises:
        msgspec.DecodeError: it is not TOML, or does not fit the type.
    """
    with _ALONE:
        return msgspec.toml.decode(raw, type=kind)


def present(values: Iterable[T | None]) -> list[T]:
    """Return the values that are not None."""
    return [v for v in values if v is not None]
