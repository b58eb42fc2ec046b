"""The chain as one TOML file: a table for each stage, read into the specs of the verbs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from trtq.errors import UsageError, reason, suggest
from trtq.files import ENCODINGS, FINETUNE_FOLDER
from trtq.specs import BuildOptions, FinetuneSpec, InputSpec, ModelInputSpec, QuantizeSpec, Spec
from trtq.specs.base import PathDoc
from trtq.specs.fields import IgnoreIndex, Masks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class EvaluateStage(InputSpec, frozen=True, kw_only=True):
    """The ``[evaluate]`` table of a recipe: which images; the model files come from the chain.

    Attributes:
        limit: most images, drawn evenly; None for all.
        held_out: leave out the images of calibration, and refuse those of training.
        masks: of the images, for segmentation.
        ignore_index: pixels of this class do not count.
    """

    limit: Annotated[int, Meta(ge=1)] | None = None
    held_out: bool = True
    masks: Masks = None
    ignore_index: IgnoreIndex = 255


class BuildStage(BuildOptions, frozen=True, kw_only=True):
    """One ``[[build]]`` table of a recipe.

    Attributes:
        target: such as ``rtx4090`` or ``xavier@8.5``.
        source: which file is built: the quantized or the float one.
    """

    target: str
    source: Literal["qdq", "fp32"] = "qdq"


class BenchStage(Spec, frozen=True, kw_only=True):
    """The ``[bench]`` table of a recipe.

    Attributes:
        device: as ``trtq bench --device`` takes it.
        batch: samples in a call.
        duration: seconds of measuring at least.
        min_samples: calls at least.
        max_duration: seconds at most.
        verdict: whether INT8 is compared with float.
    """

    device: str = "cpu"
    batch: Annotated[int, Meta(ge=1)] = 1
    duration: Annotated[float, Meta(gt=0)] = 3.0
    min_samples: Annotated[int, Meta(ge=10)] = 100
    max_duration: Annotated[float, Meta(gt=0)] = 30.0
    verdict: bool = True


class Recipe(Spec, frozen=True, kw_only=True):
    """The whole chain: quantize, finetune, evaluate, build for each target, bench, report.

    Attributes:
        out: folder for the results.
        title: of the report.
    """

    out: Annotated[str, PathDoc(description="Folder for the results.")]
    quantize: QuantizeSpec
    finetune: FinetuneSpec | None = None
    evaluate: EvaluateStage | None = None
    build: tuple[BuildStage, ...] = ()
    bench: BenchStage | None = None
    title: str = ""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UsageError: missing or not TOML, with line and column.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return tables
    except FileNotFoundError as exc:
        raise UsageError(f"Cannot read the recipe {path}", "there is no such file") from exc
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as exc:  # TOMLDecodeError and UnicodeDecodeError are values that are wrong
        raise UsageError(f"Cannot read the recipe {path}", reason(exc)) from exc


def _finetune_of(base: QuantizeSpec, table: Mapping[str, Any], *, where: str) -> FinetuneSpec:
    """Return the spec of ``[finetune]``.

    The defaults for model, images and preprocessing are the settings of ``[quantize]``.
    """
    fixed = {"out": f"{base.out}/{FINETUNE_FOLDER}", "encodings": f"{base.out}/{ENCODINGS}"}
    wrong = next((k for k in (*fixed, "model", "checkpoint", "checkpoint_key") if k in table), None)
    if wrong is not None:
        raise UsageError(
            f"[finetune] cannot set {wrong}",
            "the chain sets it: training starts from the result of [quantize]",
            "Leave it out",
        )
    own = ("seed", "opset", "target", "parity_images", "weight_storage", "masks")
    same = {
        n: getattr(base, n)
        for n in (*ModelInputSpec.__struct_fields__, *own)
        if n not in ("class_index", "masks") or "data" not in table
    }
    return FinetuneSpec.make({**same, **table, **fixed}, where=where)


STAGES: dict[str, type[Spec]] = {"evaluate": EvaluateStage, "bench": BenchStage}
FORMS = {
    **dict.fromkeys(("quantize", "finetune", *STAGES), (dict, "a table", "[{}]")),
    **dict.fromkeys(("out", "title"), (str, "a text", '{} = "..."')),
    "build": (list, "a list of tables", "[[{}]]"),
}  # of each key: type, what that is in words, and how it is written


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file; relative paths remain relative to the current folder.

    Args:
        path: of the file; its stem is the default for title and folder.

    Raises:
        UsageError: not TOML, an unknown table or setting (the nearest is suggested), or a value out
            of range.
    """
    return recipe_of(read_toml(path), path)


def recipe_of(given: Mapping[str, Any], path: Path) -> Recipe:
    """Return the recipe in the tables of the TOML file ``path``.

    Args:
        given: tables by name.
        path: of the file, for messages and defaults; it is not read.

    Raises:
        UsageError: an unknown table or setting (the nearest is suggested), or a value out of range.
    """
    tables = dict(given)
    if isinstance(tables.get("build"), dict):
        tables["build"] = [tables["build"]]
    _require_forms(tables, path)
    if "quantize" not in tables:
        raise UsageError(
            f"The recipe {path} has no [quantize] table", hint="It names the model and the images"
        )
    out = str(tables.get("out") or tables["quantize"].get("out") or f"runs/{path.stem}")
    settings = {**tables["quantize"], "out": out}
    quantize = QuantizeSpec.make(settings, where=f"[quantize] of {path}")
    builds = [BuildStage.make(b, where=f"[[build]] of {path}") for b in tables.get("build", [])]
    stages: dict[str, Any] = {}
    if "finetune" in tables:
        where = f"[finetune] of {path}"
        stages["finetune"] = _finetune_of(quantize, tables["finetune"], where=where)
    for name, stage in STAGES.items():
        if name in tables:
            stages[name] = stage.make(tables[name], where=f"[{name}] of {path}")
    title = str(tables.get("title", path.stem))
    return Recipe(out=out, title=title, quantize=quantize, build=tuple(builds), **stages)


def _require_forms(tables: Mapping[str, Any], path: Path) -> None:
    """Refuse unknown keys, and values that are not what their key takes.

    Raises:
        UsageError: the nearest known key is suggested, or the right form shown.
    """
    for key in tables:
        if key not in FORMS:
            raise UsageError(
                f"Unknown table or setting {key!r} in {path}", hint=suggest(key, FORMS)
            )
    for key, (kind, what, written) in FORMS.items():
        value = tables.get(key)
        fits = isinstance(value, kind)
        if key == "build" and fits:
            fits = all(isinstance(b, dict) for b in value or ())
        if key in tables and not fits:
            raise UsageError(
                f"{key} in {path} must be {what}",
                f"found {value!r}",
                f"Write {written.format(key)}",
            )
