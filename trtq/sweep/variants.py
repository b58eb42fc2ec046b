"""The file of a sweep: a recipe with lists, and the runs that they stand for."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from trtq.errors import TrtqError, UsageError, suggest
from trtq.jobs.toml_text import toml_text
from trtq.recipe import BuildStage, Recipe, read_toml, recipe_of
from trtq.records.sweep import settings_words
from trtq.specs import Spec, plain_type
from trtq.specs.sweep import Slots, SweepTable

Settings = dict[str, Any]  # values by dotted name, as TOML has them
OWN = ("vary", "sweep")  # the tables that a recipe does not have
FIXED = {
    "out": "every run has a folder of its own",
    "title": "every run is titled by its settings",
    "quantize.out": "every run has a folder of its own",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """One list of ``[vary]``.

    Attributes:
        name: as it is written.
        choices: the settings that each item stands for.
    """

    name: str
    choices: tuple[Settings, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One run.

    Attributes:
        number: from 1 on.
        settings: those that differ between runs.
        tables: of its recipe, without a folder.
        recipe: the same, read.
    """

    number: int
    settings: Settings
    tables: dict[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """Its number as a file name."""
        return f"{self.number:05d}"

    def text(self, out: str) -> str:
        """Return its recipe as TOML.

        Args:
            out: folder for its results.
        """
        return toml_text({"out": out, **self.tables})


@dataclass(frozen=True, slots=True)
class SweepFile:
    """A sweep as it is written.

    Attributes:
        path: of the file.
        base: the recipe's tables.
        table: ``[sweep]``.
        axes: ``[vary]``.
    """

    path: Path
    base: dict[str, Any]
    table: SweepTable
    axes: tuple[Axis, ...]

    @property
    def count(self) -> int:
        """How many runs there are."""
        return math.prod(len(a.choices) for a in self.axes)

    @property
    def out(self) -> str:
        """The folder that the file names."""
        return str(self.base.get("out") or f"runs/{self.path.stem}")

    def variants(self) -> Iterator[Variant]:
        """Yield the runs: the last list changes fastest.

        Raises:
            UsageError: the recipe of a run is wrong; the error names its settings.
        """
        for number, chosen in enumerate(itertools.product(*(a.choices for a in self.axes)), 1):
            settings = {k: v for choice in chosen for k, v in choice.items()}
            yield self._variant(number, settings)

    def _variant(self, number: int, settings: Settings) -> Variant:
        tables = copy.deepcopy(self.base)
        for name, value in settings.items():
            _set(tables, name, value)
        tables["title"] = f"{self.base.get('title', self.path.stem)}: {settings_words(settings)}"
        tables.pop("out", None)
        tables["quantize"].pop("out", None)
        with run_named(number, settings):
            recipe = recipe_of(tables, self.path)
        return Variant(number=number, settings=settings, tables=tables, recipe=recipe)


@contextlib.contextmanager
def run_named(number: int, settings: Settings) -> Iterator[None]:
    """Say in errors which run they are about.

    Args:
        number: of the run, from 1 on.
        settings: those that differ between runs.

    Raises:
        UsageError: the error, with the run's name.
    """
    try:
        yield
    except TrtqError as exc:
        where = f"Cannot sweep: run {number:05d} ({settings_words(settings)})"
        error = UsageError(f"{where}: {exc.message}", exc.reason, exc.hint)
        raise error.with_code_of(exc) from exc


def read_sweep(path: Path) -> SweepFile:
    """Return the sweep in a TOML file.

    Args:
        path: of a recipe with a ``[vary]`` table and, if wanted, a ``[sweep]`` table.

    Raises:
        UsageError: not TOML, nothing varies, an unknown setting (the nearest is suggested), or more
            runs than the limit.
    """
    tables = read_toml(path)
    base = {k: v for k, v in tables.items() if k not in OWN}
    if isinstance(base.get("build"), dict):
        base["build"] = [base["build"]]
    if not isinstance(base.get("quantize", {}), dict) or "quantize" not in base:
        raise UsageError(f"The sweep {path} has no [quantize] table", hint="It is a recipe, too")
    sweep = SweepFile(path, base, _table(tables, path), _axes(tables, path))
    for axis in sweep.axes:
        for choice in axis.choices:
            for name in choice:
                _require_setting(name, base, path)
    _require_once(sweep)
    _require_few(sweep)
    return sweep


def _table(tables: Mapping[str, Any], path: Path) -> SweepTable:
    """Return the ``[sweep]`` table."""
    given = tables.get("sweep", {})
    if not isinstance(given, dict):
        raise UsageError(f"sweep in {path} must be a table", f"found {given!r}", "Write [sweep]")
    given = dict(given)
    if isinstance(given.get("slots"), dict):
        slots = Slots.make(given["slots"], where=f"[sweep.slots] of {path}")
        given["slots"] = msgspec.to_builtins(slots)
    return SweepTable.make(given, where=f"[sweep] of {path}")


def _axes(tables: Mapping[str, Any], path: Path) -> tuple[Axis, ...]:
    vary = tables.get("vary")
    if not isinstance(vary, dict) or not vary:
        raise UsageError(
            f"Nothing varies in {path}",
            "it has no [vary] table" if vary is None else "[vary] has no list",
            'Write [vary] with lines such as "quantize.bits" = ["w8a8", "w4a8"], or use trtq run',
        )
    return tuple(_axis(name, value, path) for name, value in _flat(vary))


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; ``quantize.bits`` without quotes is a table in a table."""
    for name, value in table.items():
        dotted = f"{above}{name}"
        if isinstance(value, dict):
            yield from _flat(value, f"{dotted}.")
        else:
            yield dotted, value


def _axis(name: str, items: Any, path: Path) -> Axis:
    """Return one list; a list of tables under a name without a dot is a group.

    Raises:
        UsageError: no list, or an empty one.
    """
    if not isinstance(items, list) or not items:
        raise UsageError(
            f"Cannot vary {name} in {path}",
            f"found {items!r}, expected a list with at least one item",
            f'Write "{name}" = [...]',
        )
    if "." in name:
        return Axis(name, tuple({name: item} for item in items))
    wrong = next((i for i in items if not isinstance(i, dict) or not i), None)
    if wrong is not None:
        raise UsageError(
            f"Cannot vary {name} in {path}",
            f"it is no dotted setting, and {wrong!r} is no table of settings that go together",
            f'Write "quantize.{name}" = [...], or [[vary.{name}]] with settings below it',
        )
    return Axis(name, tuple(dict(_flat_settings(i)) for i in items))


def _flat_settings(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a group's item; a table at a setting's place is its value."""
    for name, value in table.items():
        if "." not in name and isinstance(value, dict):
            yield from ((f"{name}.{k}", v) for k, v in value.items())
        else:
            yield name, value


def _sections() -> dict[str, type[Spec]]:
    """Return the tables of a recipe and the specs that name their settings."""
    hints = get_type_hints(Recipe)
    kinds = {
        name: plain_type(hints[name]) for name in ("quantize", "finetune", "evaluate", "bench")
    }
    return {**{n: next(iter(get_args(k)), k) for n, k in kinds.items()}, "build": BuildStage}


def _require_setting(name: str, base: Mapping[str, Any], path: Path) -> None:
    """Refuse what is no setting of a recipe, or none that can vary.

    Raises:
        UsageError: the nearest is suggested.
    """
    if name in FIXED:
        raise UsageError(f"Cannot vary {name} in {path}", FIXED[name], "Leave it out of [vary]")
    known = [f"{t}.{f}" for t, spec in _sections().items() for f in spec.__struct_fields__]
    if name not in known:
        raise UsageError(f"Unknown setting {name!r} in [vary] of {path}", hint=suggest(name, known))
    builds = base.get("build", [])
    if name.startswith("build.") and len(builds) > 1:
        raise UsageError(
            f"Cannot vary {name} in {path}",
            f"the recipe has {len(builds)} [[build]] tables",
            "Leave one, or write several sweeps",
        )


def _require_once(sweep: SweepFile) -> None:
    """Refuse a setting that two lists vary.

    Raises:
        UsageError: names it.
    """
    names = [n for a in sweep.axes for n in dict.fromkeys(k for c in a.choices for k in c)]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"Two lists of [vary] in {sweep.path} set {twice}",
            "the last would win",
            "Leave it in one of them",
        )


def _require_few(sweep: SweepFile) -> None:
    """Refuse more runs than the limit.

    Raises:
        UsageError: with the count.
    """
    limit = sweep.table.limit
    if sweep.count > limit:
        lists = " x ".join(f"{len(a.choices)} {a.name}" for a in sweep.axes)
        raise UsageError(
            f"{sweep.path} describes {sweep.count:,} runs",
            f"{lists}; the limit is {limit:,}",
            f"Shorten a list, or set limit = {sweep.count} under [sweep]",
        )


def _set(tables: dict[str, Any], name: str, value: object) -> None:
    """Set one dotted setting in the tables of a recipe."""
    table, _, setting = name.partition(".")
    if table == "build":
        tables.setdefault("build", [{}])[0][setting] = value
    else:
        tables.setdefault(table, {})[setting] = value
