"""A TOML file with the table of one verb, such as ``[search]``: what ``trtq run`` does alone."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trtq import specs
from trtq.errors import UsageError
from trtq.progress import Progress
from trtq.recipe import FORMS
from trtq.verbs import VERBS, Verb

RESULT = "Result:"  # the line that its output ends with, before the summary
ONE_VERB = {n: v for n, v in VERBS.items() if v.file and v.spec and n not in FORMS and n != "sweep"}


class OneVerb(NamedTuple):
    """A verb and what it is asked for.

    Attributes:
        verb: that is done.
        spec: of the verb.
    """

    verb: Verb
    spec: specs.Spec

    def run(self, progress: Progress) -> Any:
        """Do the verb and return its record.

        Args:
            progress: receives what happens.

        Raises:
            TrtqError: it failed.
        """
        module, _, name = self.verb.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        alone = len(inspect.signature(function).parameters) == 1  # quick verbs have no progress
        return function(self.spec) if alone else function(self.spec, progress)


def read_one_verb(tables: Mapping[str, Any], path: Path) -> OneVerb | None:
    """Return the verb of a file; None where it is a recipe.

    Args:
        tables: of the file; ``out`` may be above the table.
        path: of the file, for messages.

    Raises:
        UsageError: several verbs, a verb beside a recipe, or a wrong setting.
    """
    named = [n for n in tables if n in ONE_VERB]
    if not named:
        return None
    name, *others = [*named, *(n for n in tables if n not in (*named, "out"))]
    if others:
        raise UsageError(
            f"Cannot run {path}",
            f"it has [{name}] and also {', '.join(others)}",
            f"Write one file for [{name}] alone, and a recipe for the rest",
        )
    table = tables[name]
    if not isinstance(table, Mapping):
        raise UsageError(f"{name} in {path} must be a table", f"found {table!r}", f"Write [{name}]")
    spec: type[specs.Spec] = getattr(specs, ONE_VERB[name].spec)
    given = {"out": tables["out"], **table} if "out" in tables else table
    return OneVerb(ONE_VERB[name], spec.make(given, where=f"[{name}] of {path}"))
