"""The content address of a run: all that its results depend on, and nothing of where it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trtq.artifact import SCHEMA, digest_of
from trtq.files import FINETUNE_FOLDER
from trtq.progress import Progress
from trtq.recipe import Recipe
from trtq.stages import Stage, plan
from trtq.version import __version__

NOWHERE = Path(os.devnull) / "run"  # below a file: no result of an earlier run can be there
LOCAL = ("machine",)  # parts that are the machine's, not the run's
NAMED_BY_CONTENT = ("checkpoint", "allocation", "tokenizer", "sensitivity")  # digested elsewhere
UNSEEN = ("settings", *LOCAL)  # parts of a stage that depend on its folder or machine


@dataclass(frozen=True, slots=True)
class Address:
    """A run's key, and the digests of what it reads.

    Attributes:
        key: 64 hex digits.
        parts: digest of each thing that a stage reads, by stage and name.
    """

    key: str
    parts: dict[str, dict[str, str]]


def address_of(recipe: Recipe, progress: Progress) -> Address:
    """Return the address of a recipe's run, once its stages are known to be right.

    Two recipes that differ in their folder, title or the paths of equal files have one address.

    Args:
        recipe: of the run; it is planned in a folder that cannot exist, so that no result of an
            earlier run counts.
        progress: receives lines about digests from caches.

    Raises:
        TrtqError: the recipe cannot end well.
    """
    stages = plan(moved(recipe, str(NOWHERE)), NOWHERE, progress)[:-1]  # the last is the report
    known = [(stage, stage.inputs()) for stage in stages]
    content = [[s.name, _content(inputs)] for s, inputs in known]
    key = digest_of({"stages": content, "trtq": __version__, "schema": SCHEMA})
    return Address(key, {s.slug: read_parts(s, inputs) for s, inputs in known})


def moved(recipe: Recipe, out: str) -> Recipe:
    """Return a recipe whose results are in another folder.

    The title, which no result depends on, becomes "".

    Args:
        recipe: the paths of its stages are in its own folder.
        out: the other folder; ``finetune`` gets its usual folder below it.
    """
    change = msgspec.structs.replace
    trained = recipe.finetune
    if trained is not None:
        below = trained.encodings.removeprefix(recipe.quantize.out)
        trained = change(trained, out=f"{out}/{FINETUNE_FOLDER}", encodings=f"{out}{below}")
    quantize = change(recipe.quantize, out=out)
    return change(recipe, out=out, title="", quantize=quantize, finetune=trained)


def _content(inputs: Mapping[str, object]) -> dict[str, object]:
    """Return the inputs of a stage without what names a place or a machine."""
    kept = {k: v for k, v in inputs.items() if k not in LOCAL}
    settings = kept.get("settings")
    if isinstance(settings, dict):
        same = {k: v for k, v in settings.items() if k not in NAMED_BY_CONTENT}
        if isinstance(same.get("model"), str):
            same["model"] = same["model"].rpartition("/")[2]
        kept["settings"] = same
    return kept


def read_parts(stage: Stage, inputs: Mapping[str, object]) -> dict[str, str]:
    """Return the digest of everything that a stage reads from outside of its run.

    Results of earlier stages are left out, and so are settings and the machine.

    Args:
        stage: names its outputs.
        inputs: what :attr:`trtq.stages.Stage.inputs` returned.

    Returns:
        A SHA-256 of 64 hex digits by the name of the part, such as ``images``.
    """
    files = {p.name for p in stage.outputs}
    return {
        k: digest_of(v)
        for k, v in inputs.items()
        if k not in UNSEEN and v is not None and k not in files
    }
