"""click options made from a spec's fields, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
import msgspec
from click.shell_completion import CompletionItem

from trtq.cli.completing import Completion, files, offer
from trtq.cli.sections import Documented
from trtq.cli.tracked import mlflow_option
from trtq.errors import UsageError, suggest
from trtq.paths import expand_home
from trtq.recipe import read_toml
from trtq.specs import Spec, option_name, plain_type
from trtq.specs.base import choice_of, require_choice

METAVARS = {
    "method": "NAME",
    "bits": "WIDTH",
    "budget": "NAME=VALUE",
    "dynamic": "NAME=AXES",
    "input": "NAME=SIZES",
    "outputs": "NAME",
    "measured": "RECORD",
    "candidates": "MODEL[=CHECKPOINT]",
    "correct": "DEVICE=FACTOR",
    "target": "DEVICE",
    "for_": "CONSUMER",
}  # of options that repeat
FORMS = {"input_size": "CxHxW", "batch": "MIN:OPT:MAX"}  # of tuples of numbers; else R,G,B

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

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete a file."""
        return files(ctx, param, incomplete)


class _Choice(click.Choice[str]):
    """A choice whose error names the option, what is known and the nearest.

    Args:
        field: of the spec.
        names: what is known.
        kind: of extensions that are taken, too; "" for none.
    """

    def __init__(self, field: str, names: Sequence[str], kind: str = "") -> None:
        super().__init__(names)
        self.field, self.kind = field, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value, one of the names or that of an extension."""
        if value in self.choices:
            return super().convert(value, param, ctx)
        text, option = str(value), option_name(self.field)
        if self.kind:
            require_choice(option, text, self.kind, tuple(self.choices))
            return text
        raise UsageError(
            f"Cannot use {option} {text}",
            f"known are {', '.join(self.choices)}",
            HINTS.get((self.field, text)) or suggest(text, self.choices),
        )


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a spec, and the option or argument it makes.

    Attributes:
        hint: its type, with metadata.
        default: ``msgspec.NODEFAULT`` where it has none.
        required: the command needs it, wherever it comes from.
    """

    name: str
    hint: Any
    default: Any
    required: bool

    @property
    def plain(self) -> Any:
        """Its type without metadata and None."""
        return plain_type(self.hint)

    @property
    def help(self) -> str:
        """The description, with the default."""
        text = _description(self.hint)
        if self.required:
            return f"{text}  [required]"
        shown = self._default()
        return f"{text}  [default: {shown}]" if shown else text

    def _default(self) -> str:
        default = self.default
        if self.plain is bool:
            return "on" if default else "off"
        if isinstance(default, (int, float, str)):
            return str(default)
        if isinstance(default, tuple) and Ellipsis in get_args(self.plain):
            return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
        return ""

    @property
    def names(self) -> tuple[str, Sequence[str]] | None:
        """Kind of extensions and names of a choice, None for other fields."""
        if get_origin(self.plain) is Literal:
            return "", [str(v) for v in get_args(self.plain)]
        return choice_of(self.hint)

    def option(self) -> Callable[[F], F]:
        """Return the decorator that adds it as an option; what is not typed is None or ()."""
        option = option_name(self.name)
        if self.plain is bool:
            option = f"{option}/--no-{self.name.replace('_', '-')}"
        settings: dict[str, Any] = {"default": None, **self._form()}
        return click.option(option, self.name, help=self.help, **settings)

    def _form(self) -> dict[str, object]:
        """Return what click must know of the type."""
        origin, args = get_origin(self.plain), get_args(self.plain)
        if self.names is not None:
            kind, names = self.names
            return {"type": _Choice(self.name, names, kind)}
        if self.plain in (int, float):
            return {"type": self.plain}
        if origin is dict:
            return {"multiple": True, "default": (), "metavar": "K=V"}
        if origin is not tuple:
            return {"shell_complete": offer(self.name)}
        if str in args:
            metavar = METAVARS.get(self.name, "PATTERN")
            repeated = {"multiple": True, "default": (), "metavar": metavar}
            return {**repeated, "shell_complete": offer(self.name)}
        many = Ellipsis in args and self.name not in ("mean", "std")
        return {"metavar": "N,N,..." if many else FORMS.get(self.name, "R,G,B")}

    def argument(self, complete: Completion = files) -> Callable[[F], F]:
        """Return the decorator that adds it as a positional argument.

        Args:
            complete: offers values to the shell.
        """
        many = get_origin(self.plain) is tuple
        shown = self.name.upper()
        metavar = shown if self.default is msgspec.NODEFAULT else f"[{shown}]"
        return click.argument(
            self.name,
            cls=Documented,
            about=self.help,
            metavar=f"{metavar}{'...' if many else ''}",
            required=False,
            nargs=-1 if many else 1,
            shell_complete=complete,
        )


def _description(kind: Any) -> str:
    metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    texts = (m.description for m in metas if isinstance(m, msgspec.Meta) and m.description)
    return next(texts, "")


def spec_options(
    spec: type[Spec], *, argument: str, required: tuple[str, ...] = (), first: str | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds one option per field of a spec to a command.

    Omitted options remain out of the values, so that a recipe file or the default of the spec can
    fill them.

    Args:
        spec: its fields, their types and descriptions.
        argument: the field that is the positional argument.
        required: fields that the help calls required; :func:`require` refuses a command without.
        first: a field in front of ``argument``, the name of a board; None for none.
    """
    hints = get_type_hints(spec, include_extras=True)
    fields = {
        f.name: _Field(f.name, hints[f.name], f.default, f.name in required)
        for f in msgspec.structs.fields(spec)
    }

    def add(function: F) -> F:
        function = function if "mlflow" in fields else mlflow_option(function)
        for name in reversed(fields):
            if name not in (argument, first):
                function = fields[name].option()(function)
        function = fields[argument].argument()(function)
        return function if first is None else fields[first].argument(offer("board"))(function)

    return add


def collect(
    spec: type[Spec], values: Mapping[str, Any], *, recipe: str | None = None, table: str = ""
) -> dict[str, Any]:
    """Return the values of a spec: the recipe file's table, overridden by the command line.

    Args:
        spec: names the fields.
        values: as click parsed them; None and () are not typed.
        recipe: path of a TOML file; None for none.
        table: of the recipe.

    Returns:
        Values by field, not yet checked.

    Raises:
        UsageError: a K=V option without ``=``, or a recipe without the table.
    """
    merged = {} if recipe is None else _table(recipe, table)
    hints = get_type_hints(spec, include_extras=True)
    for name in spec.__struct_fields__:
        value = values.get(name)
        if value is None or value == ():
            continue
        is_pairs = get_origin(plain_type(hints[name])) is dict
        merged[name] = _pairs(name, value) if is_pairs else value
    return merged


def _table(recipe: str, table: str) -> dict[str, Any]:
    """Return one table of a recipe file, with the recipe's own ``out``."""
    tables = read_toml(Path(recipe))
    if table not in tables:
        raise UsageError(
            f"The recipe {recipe} has no [{table}] table",
            f"it has {', '.join(tables) or 'nothing'}",
        )
    default = {"out": tables["out"]} if "out" in tables else {}
    return {**default, **tables[table]}


def _pairs(name: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the pairs of an option that is repeated as K=V."""
    pairs = [text.partition("=") for text in texts]
    wrong = next((key for key, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise UsageError(
            f"Cannot read {option_name(name)} {wrong!r}",
            "expected K=V",
            "Write it like num_classes=10",
        )
    return {key: value for key, _, value in pairs}


def require(values: Mapping[str, Any], names: tuple[str, ...], command: str, argument: str) -> None:
    """Refuse a request that lacks something, before any work.

    Args:
        values: as :func:`collect` returned them.
        names: of the fields that must be there.
        command: for the message, such as ``fleet deploy``.
        argument: the field that is the positional argument.

    Raises:
        UsageError: names what is missing.
    """
    missing = [n for n in names if not values.get(n)]
    if missing:
        shown = ", ".join(argument.upper() if n == argument else option_name(n) for n in missing)
        raise UsageError(f"trtq {command} needs {shown}", hint=f"See trtq {command} --help")
