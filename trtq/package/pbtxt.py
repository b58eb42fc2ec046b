"""Protobuf's text format, as Triton's configurations are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


class Word(str):
    """A value of an enumeration, which has no quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class Message:
    """A message: its fields in order. A field of several messages is repeated.

    Attributes:
        fields: name and value of each; a name can come several times.
    """

    fields: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, **fields: Value | None) -> Message:
        """Return a message of the fields that have a value."""
        return cls(tuple((k, v) for k, v in fields.items() if v is not None))


Value: TypeAlias = (
    "str | int | bool | Word | Message | Sequence[str] | Sequence[int] | Sequence[Message]"
)
PAD = "  "
ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_text(message: Message) -> str:
    """Return a message as text.

    >>> print(to_text(Message.of(name="a", dims=[3, -1], input=[Message.of(kind=Word("X"))])))
    name: "a"
    dims: [ 3, -1 ]
    input {
      kind: X
    }
    """
    return "\n".join(_lines(message, ""))


def _lines(message: Message, pad: str) -> Iterable[str]:
    for name, value in message.fields:
        many = _messages(value)
        if many is None:
            yield f"{pad}{name}: {_scalar(value)}"
            continue
        for each in many:
            yield f"{pad}{name} {{"
            yield from _lines(each, pad + PAD)
            yield f"{pad}}}"


def _messages(value: Value) -> Sequence[Message] | None:
    if isinstance(value, Message):
        return [value]
    if isinstance(value, str | int):
        return None
    messages = [v for v in value if isinstance(v, Message)]
    return messages or None


def _scalar(value: Value) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c, c) for c in value) + '"'
    assert not isinstance(value, Message)
    items = ", ".join(_scalar(v) for v in value)
    return f"[ {items} ]" if items else "[ ]"
