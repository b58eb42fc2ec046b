"""The base of every spec.

A spec is checked when it is made, and made from the texts of a command line or of a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from trtq import extensions
from trtq.errors import UsageError, suggest
from trtq.paths import expand_home

T = TypeVar("T", bound="Spec")
FORMS = {
    "input_size": "3x224x224",
    "batch": "1:8:32",
    "mean": "0.5,0.5,0.5",
    "std": "0.5,0.5,0.5",
}  # of texts that encode numbers
Doc = Meta


def PathDoc(description: str) -> Meta:  # noqa: N802 - beside Doc, in annotations
    """Describe a field that names a file or a folder: ``~`` in it is the home."""
    return Meta(description=description, extra={"path": True})


def open_choice(kind: str, *names: str) -> Meta:
    """Describe a field that takes one of ``names``, or an extension of a kind."""
    return Meta(extra={"kind": kind, "names": names})


def require_choice(option: str, value: str, kind: str, names: Sequence[str]) -> None:
    """Refuse a value that is neither one of ``names`` nor an extension.

    A name may have an argument behind a colon.

    Raises:
        UsageError: the nearest are suggested.
    """
    if value.partition(":")[0] not in names and not extensions.is_known(kind, value):
        known = (*names, *extensions.installed(kind))
        raise UsageError(
            f"Cannot use {option} {value}",
            f"known are {', '.join(known)}",
            suggest(value, known),
        )


def choice_of(hint: Any) -> tuple[str, tuple[str, ...]] | None:
    """Return kind and names of a field made with :func:`open_choice`, None for other fields."""
    if get_origin(hint) is not Annotated:
        return None
    inner, *metas = get_args(hint)
    extras = (m.extra for m in metas if isinstance(m, Meta) and m.extra and "kind" in m.extra)
    extra = next(extras, None)
    return choice_of(inner) if extra is None else (extra["kind"], extra["names"])


AUTO_TASK = "auto"  # the same as no task: what is known decides


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: values are checked when a spec is made, unknown fields are refused."""

    def __post_init__(self) -> None:
        if getattr(self, "task", None) == AUTO_TASK:
            msgspec.structs.force_setattr(self, "task", None)
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if is_path(kind):
                value = _expanded(value, option_name(name))
                msgspec.structs.force_setattr(self, name, value)
            if not _is_offered(kind, value):
                what = f"Cannot use {option_name(name)} {value!r}"
                raise UsageError(what, *_refused(kind, value, f"Invalid enum value {value!r}"))
            if isinstance(value, Spec) or (
                isinstance(value, (tuple, list)) and any(isinstance(v, Spec) for v in value)
            ):
                continue
            try:
                msgspec.convert(msgspec.to_builtins(value), kind, strict=True)
            except msgspec.ValidationError as exc:
                what = f"Cannot use {option_name(name)} {_show(value)}"
                raise UsageError(what, *_refused(kind, value, str(exc))) from exc

    @classmethod
    def make(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
        """Return a spec from plain values.

        Texts such as ``3x224x224`` or ``0.5,0.5,0.5`` become tuples.

        Args:
            values: by field.
            where: the source of the values, for errors; default: the spec's name.

        Raises:
            UsageError: an unknown field (the nearest is suggested), a missing one, or a value out
                of range.
        """
        fields = cls.__struct_fields__
        hints = get_type_hints(cls, include_extras=True)
        for name in values:
            if name not in fields:
                raise UsageError(
                    f"Unknown setting {name!r} {'in ' + where if where else 'for ' + cls.__name__}",
                    hint=suggest(name, fields),
                )
        parsed = {k: parse_text(v, hints[k], k) for k, v in values.items() if v is not None}
        wrong = next((k for k, v in parsed.items() if not _is_offered(hints[k], v)), None)
        if wrong is not None:
            what, given = _setting(wrong, parsed[wrong], where), parsed[wrong]
            why = f"Invalid enum value {given!r}"
            raise UsageError(f"Cannot use {what}", *_refused(hints[wrong], given, why))
        try:
            return msgspec.convert(parsed, cls, strict=False)
        except msgspec.ValidationError as exc:
            why, _, place = str(exc).partition(" - at `$.")
            name = re.split(r"\W", place)[0]
            if name not in values:  # a field is missing
                raise UsageError(
                    f"Cannot use {where or 'these settings for ' + cls.__name__}", str(exc)
                ) from exc
            form = _form(name, hints[name])
            what = _setting(name, values[name], where)
            why, hint = _refused(hints[name], values[name], why)
            hint = f"Write it like {form}" if form else hint
            raise UsageError(f"Cannot use {what}", why, hint) from exc


def _is_offered(kind: Any, value: Any) -> bool:
    """Whether a value is one of its field's names or an extension, where the field has names."""
    choice = choice_of(kind)
    if choice is None or not isinstance(value, str):
        return True
    return value in choice[1] or extensions.is_known(choice[0], value)


def _refused(kind: Any, value: object, why: str) -> tuple[str, str]:
    """Return why a value is refused, with the values that are allowed, and the nearest of them.

    Args:
        kind: of the field.
        value: that was given.
        why: in msgspec's words.
    """
    if "regex" not in why and "enum value" not in why:
        return why, ""
    allowed = list(dict.fromkeys(_allowed(kind)))
    if not allowed:
        return why, ""
    given, listed = str(value), ", ".join(allowed)
    if "regex" in why:
        return f"found {given!r}, expected a value such as {listed}", ""
    return f"found {given!r}, expected one of {listed}", suggest(given, allowed)


def _allowed(kind: Any) -> Iterator[str]:
    """Yield the values of a field's choice, or examples of its pattern."""
    choice = choice_of(kind)
    if choice is not None:
        yield from choice[1]
    elif get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    else:
        metas = (m for m in getattr(kind, "__metadata__", ()) if isinstance(m, Meta))
        yield from (str(e) for m in metas for e in m.examples or ())
        for part in get_args(kind):
            yield from _allowed(part)


def _setting(name: str, value: object, where: str) -> str:
    """Return a setting with its value, as its source spells it."""
    if where:
        return f"{name} = {_show(value)} in {where}"
    return f"{option_name(name)} {_show(value)}"


def is_path(kind: Any) -> bool:
    """Whether a field's type says that its texts name files or folders."""
    if get_origin(kind) is Annotated and any(
        isinstance(m, Meta) and (m.extra or {}).get("path") for m in get_args(kind)[1:]
    ):
        return True
    return any(is_path(part) for part in get_args(kind) if get_origin(kind) is not Literal)


def _expanded(value: Any, option: str) -> Any:
    if isinstance(value, str):
        _require_unicode(value, option)
        return expand_home(value, option)
    return tuple(_expanded(v, option) for v in value) if isinstance(value, (tuple, list)) else value


def _require_unicode(value: str, option: str) -> None:
    """Refuse a path that no record could hold, before any work."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise UsageError(
            f"Cannot use {option} {value!r}",
            "its bytes are not UTF-8",
            "Rename the file or the folder",
        ) from exc


def _show(value: object) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    numbers = all(isinstance(v, (int, float)) for v in value)
    return ("x" if numbers else " ").join(map(str, value))


def _form(name: str, kind: Any) -> str | None:
    """Return the form of a text that encodes numbers; None for a field that has no such text."""
    args = get_args(plain_type(kind))
    if get_origin(plain_type(kind)) is not tuple or str in args:
        return None
    return "1,8,32" if Ellipsis in args and name not in ("mean", "std") else FORMS.get(name)


def option_name(field: str) -> str:
    """Return the command-line option of a field; a word of Python's has ``_`` behind it.

    >>> option_name("opt_level"), option_name("for_")
    ('--opt-level', '--for')
    """
    return f"--{field.rstrip('_').replace('_', '-')}"


def option_words(field: str, value: Any) -> list[str]:
    """Return the command-line words that set a field to a plain value, as in a record.

    There are none for an empty value.
    """
    if value is None or value in ({}, [], ""):
        return []
    option = option_name(field)
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, dict):
        return [w for k, v in value.items() for w in (option, f"{k}={v}")]
    if not isinstance(value, (list, tuple)):
        return [option, str(value)]
    if all(isinstance(v, str) for v in value):
        return [w for v in value for w in (option, v)]
    separator = {"input_size": "x", "batch": ":"}.get(field, ",")
    return [option, separator.join(map(_number_text, value))]


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def changed_words(spec: Spec, *without: str) -> list[str]:
    """Return the command-line words for what differs from the spec's defaults.

    ``without`` are its positional arguments.
    """
    defaults = {f.name: f.default for f in msgspec.structs.fields(spec)}
    plain = {
        n: v
        for n, v in msgspec.to_builtins(spec).items()
        if n not in without and getattr(spec, n) != defaults[n]
    }
    return [w for n, v in plain.items() for w in option_words(n, v)]


def plain_type(kind: Any) -> Any:
    """Return a field's type without its metadata and without None."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    args = [a for a in get_args(kind) if a is not type(None)]
    if (
        get_origin(kind) not in (tuple, dict, Literal, None)
        and type(None) in get_args(kind)
        and len(args) == 1
    ):
        return plain_type(args[0])
    return kind


def parse_text(value: Any, kind: Any, name: str) -> Any:
    """Split a text that encodes a tuple of numbers.

    Examples are ``3x224x224``, ``0.5,0.5,0.5`` and ``1:8:32``.
    """
    plain = plain_type(kind)
    if not isinstance(value, str) or get_origin(plain) is not tuple or str in get_args(plain):
        return value
    parts = value.replace("x", ",").replace(":", ",").split(",")
    number = float if float in {plain_type(a) for a in get_args(plain)} else int
    try:
        return [number(p) for p in parts]
    except ValueError as exc:
        raise UsageError(
            f"Cannot read {option_name(name)} {value!r}",
            "expected numbers",
            f"Write it like {_form(name, kind)}",
        ) from exc


def require_alone(spec: Spec, others: object) -> None:
    """Refuse arguments beside a spec, which has them itself.

    Args:
        spec: that was given.
        others: true where there are such arguments.

    Raises:
        UsageError: there are.
    """
    if others:
        kind = type(spec).__name__
        raise UsageError(
            f"Cannot use other arguments beside a {kind}", "it has them", "Leave them out"
        )
