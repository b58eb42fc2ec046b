"""Demonstrations, and how one is run."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtq.artifact import write_bytes
from trtq.errors import MissingExtraError
from trtq.files import RECIPE_TOML, REPORT_HTML
from trtq.terminal import say

NOT_VALID = 3  # exit code of trtq run


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One model with its samples.

    Attributes:
        model: in a few words.
        find: returns the path of the model's file, which a package brings.
        draw: writes the samples into a folder and returns what they are, in words; samples that
            are there are kept.
        folder: name of the folder of samples.
        recipe: of ``trtq run``, with places for ``path``, ``out``, ``file`` and ``samples``.
    """

    model: str
    find: Callable[[], Path]
    draw: Callable[[Path], str]
    folder: str
    recipe: str

    def run(self, out: Path) -> int:
        """Run the demonstration in ``out``, open its page on a terminal, return the exit code.

        Raises:
            MissingExtraError: a package is not installed.
        """
        from trtq.cli.run_cmd import run_recipe

        file, samples, recipe = self.find(), out / self.folder, out / RECIPE_TOML
        drawn = self.draw(samples)
        text = self.recipe.format(path=recipe, out=out, file=file, samples=samples)
        write_bytes(recipe, text.encode())
        say(f"{self.model}; {drawn} in {samples}")
        say(f"trtq run {recipe}")
        code = run_recipe(recipe)
        if code == NOT_VALID:  # a busy machine is no failure of a demonstration
            say(
                "Some figures are not valid, as marked above: this machine was busy. trtq run ends "
                "with 3 then."
            )
            code = 0
        if sys.stdout.isatty():
            webbrowser.open((out / REPORT_HTML).resolve().as_uri())
        return code


def missing(package: str, command: str) -> MissingExtraError:
    """Return the error about a package that a demonstration needs."""
    return MissingExtraError(f"The demo needs {package}", hint=f"Install it: {command}")
