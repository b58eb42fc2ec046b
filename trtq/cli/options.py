"""click options made from a spec's fields, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
import msgspec

from trtq.errors import UsageError, suggest
from trtq.paths import expand_home
from trtq.recipe import read_toml
from trtq.specs import Spec, option_name, plain_type

METAVARS = {
    "method": "NAME",
    "bits": "WIDTH",
    "budget": "NAME=VALUE",
    "candidates": "MODEL[=CHECKPOINT]",
    "correct": "DEVICE=FACTOR",
    "target": "DEVICE",
}  # of options that repeat

HINTS = {
    (
        "precision",
        "int8",
    ): "It is for what has no Q/DQ pairs; INT8 comes from a Q/DQ file: trtq quantize MODEL "
    "--data DIR --out DIR"
}

F = TypeVar("F", bound=Callable[..., Any])


class PathText(click.ParamType[str]):
    """A file or a folder, for arguments that no spec has: ``~`` is the home."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path with the home expanded."""
        del ctx  # click fixes the signature
        return expand_home(str(value), param.opts[0] if param is not None else "the path")


class _Known(click.Choice[str]):
    """A choice whose error names the option, what is known and the nearest."""

    def __init__(self, name: str, values: list[str]) -> None:
        super().__init__(values)
        self.field = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            mend = HINTS.get((self.field, str(value))) or suggest(str(value), self.choices)
            raise UsageError(
                f"Cannot use {option_name(self.field)} {value}",
                f"known are {', '.join(self.choices)}",
                mend,
            )
        return super().convert(value, param, ctx)


def _description(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        for extra in get_args(kind)[1:]:
            if isinstance(extra, msgspec.Meta) and extra.description:
                return extra.description
    return ""


def spec_options(
    spec: type[Spec], *, argument: str, required: tuple[str, ...] = (), first: str | None = None
) -> Callable[[F], F]:
    """Add one option per field of ``spec``.

    ``argument`` becomes the positional argument, after ``first`` if there is one.

    Omitted options stay out of the values, so that a recipe file or the default of the spec can
    fill them.
    """

    def add(function: F) -> F:
        hints = get_type_hints(spec, include_extras=True)
        defaults = {f.name: f.default for f in msgspec.structs.fields(spec)}
        for name in reversed(spec.__struct_fields__):
            if name in (argument, first):
                continue
            plain, text = plain_type(hints[name]), _description(hints[name])
            default = defaults[name]
            settings: dict[str, Any] = {"help": text, "default": None}
            if name in required:
                settings["help"] = f"{text}  [required]"
            elif isinstance(default, (int, float, str)) and default != "":
                settings["help"] = f"{text}  [default: {default}]"
            elif isinstance(default, tuple) and default and Ellipsis in get_args(plain):
                settings["help"] = (
                    f"{text}  [default: "
                    f"{','.join(f'{v:g}' if isinstance(v, float) else str(v) for v in default)}]"
                )
            if get_origin(plain) is Literal:
                settings["type"] = _Known(name, [str(v) for v in get_args(plain)])
            elif plain in (int, float):
                settings["type"] = plain
            elif get_origin(plain) is dict or (
                get_origin(plain) is tuple and str in get_args(plain)
            ):
                shown = "K=V" if get_origin(plain) is dict else METAVARS.get(name, "PATTERN")
                settings.update(multiple=True, default=(), metavar=shown)
            elif get_origin(plain) is tuple:
                many = name not in ("mean", "std") and Ellipsis in get_args(plain)
                usual = "N,N,..." if many else "MIN:OPT:MAX" if name == "batch" else "R,G,B"
                settings["metavar"] = {"input_size": "CxHxW"}.get(name, usual)
            if plain is bool:
                shown = f"{option_name(name)}/--no-{name.replace('_', '-')}"
                settings["help"] = f"{text}  [default: {'on' if default else 'off'}]"
                function = click.option(shown, name, **settings)(function)
                continue
            function = click.option(option_name(name), name, **settings)(function)
        needed, many = (
            defaults[argument] is msgspec.NODEFAULT,
            get_origin(plain_type(hints[argument])) is tuple,
        )
        shown = (
            f"{argument.upper()}{'...' if many else ''}"
            if needed
            else f"[{argument.upper()}]{'...' if many else ''}"
        )
        function = click.argument(argument, metavar=shown, required=False, nargs=-1 if many else 1)(
            function
        )
        return (
            function
            if first is None
            else click.argument(first, metavar=first.upper(), required=False)(function)
        )

    return add


def collect(
    spec: type[Spec], values: Mapping[str, Any], *, recipe: str | None = None, table: str = ""
) -> dict[str, Any]:
    """Return the values of a spec: the recipe file's table, overridden by the command line.

    Raises:
        UsageError: a K=V option without ``=``, or a recipe without the table.
    """
    merged: dict[str, Any] = {}
    if recipe is not None:
        tables = read_toml(Path(recipe))
        if table not in tables:
            raise UsageError(
                f"The recipe {recipe} has no [{table}] table",
                f"it has {', '.join(tables) or 'nothing'}",
            )
        merged.update(tables[table])
        if "out" in tables:
            merged.setdefault("out", tables["out"])
    hints = get_type_hints(spec, include_extras=True)
    for name in spec.__struct_fields__:
        value = values.get(name)
        if value is None or value == ():
            continue
        if get_origin(plain_type(hints[name])) is dict:
            pairs = [v.partition("=") for v in value]
            wrong = next((k for k, eq, _ in pairs if not eq), None)
            if wrong is not None:
                raise UsageError(
                    f"Cannot read {option_name(name)} {wrong!r}",
                    "expected K=V",
                    "Write it like num_classes=10",
                )
            value = {k: v for k, _, v in pairs}
        merged[name] = value
    return merged


def require(values: Mapping[str, Any], names: tuple[str, ...], command: str, argument: str) -> None:
    """Refuse a request that lacks something, before any work.

    Raises:
        UsageError: names what is missing.
    """
    missing = [n for n in names if not values.get(n)]
    if missing:
        shown = ", ".join(argument.upper() if n == argument else option_name(n) for n in missing)
        raise UsageError(f"trtq {command} needs {shown}", hint=f"See trtq {command} --help")
