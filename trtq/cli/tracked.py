"""``--mlflow``: the record of a command, its figures and its files in MLflow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import msgspec

from trtq.artifact import FileRecord, spec_values
from trtq.files import FP32, MODEL_FILES, REPORT_HTML
from trtq.recipe import Recipe
from trtq.specs import Spec
from trtq.tracking import Experiment, Tracked, figures_of, open_experiment
from trtq.verbs import VERBS
from trtq.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
PLACE = "trtq.mlflow"  # in click's context
EMPTY: tuple[object, ...] = (None, "", [], (), {})
DEFAULT = "trtq"  # name of the experiment


def mlflow_option(function: F) -> F:
    """Add ``--mlflow URI`` to a command that makes a record.

    A server that is not there stops the command before its work.
    """

    @functools.wraps(function)
    def opened(*args: Any, mlflow: str | None, **values: Any) -> Any:
        if mlflow:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT
            click.get_current_context().meta[PLACE] = open_experiment(mlflow, name)
        return function(*args, **values)

    return click.option(
        "--mlflow",
        metavar="URI",
        help="Log the record, its figures and its files to this MLflow tracking URI; the "
        "experiment is $MLFLOW_EXPERIMENT_NAME, else trtq.  [default: off]",
    )(cast(F, opened))


def done(record: R, spec: Spec | None = None) -> R:
    """Return the record of a finished command, logged where ``--mlflow`` asks for it.

    Args:
        record: of the verb.
        spec: of the verb, for a record that does not have it.

    Raises:
        ArtifactError: the server refuses; the results themselves are kept.
    """
    context = click.get_current_context()
    experiment: Experiment | None = context.meta.get(PLACE)
    if experiment is not None:
        given = getattr(record, "spec", {}) if spec is None else spec_values(spec)
        verb = str(getattr(record, "verb", context.info_name))  # trtq fleet deploy makes a fleet
        experiment.log(_tracked(verb, record, given))
    return record


def log_run(recipe: Recipe, *, valid: bool) -> None:
    """Log the run of a recipe, with its page, where ``--mlflow`` asks for it.

    Args:
        recipe: that was run.
        valid: whether all of its figures may be used.

    Raises:
        ArtifactError: the server refuses; the results themselves are kept.
    """
    experiment: Experiment | None = click.get_current_context().meta.get(PLACE)
    if experiment is None:
        return
    from trtq.sweep.measured import measure
    from trtq.sweep.tracking import metrics_of

    out = Path(recipe.out)
    files = {n: FileRecord.of(out / n) for n in (*MODEL_FILES, FP32) if (out / n).is_file()}
    experiment.log(
        Tracked(
            name=recipe.title,
            tags={"trtq.verb": "run", "trtq.version": __version__},
            params=dict(_texts(msgspec.to_builtins(recipe))),
            metrics=metrics_of(measure(out, files, valid=valid)),
            files=[out / REPORT_HTML],
        )
    )


def _texts(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a recipe by dotted name."""
    from trtq.records.sweep import plain_words

    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _texts(value, f"{above}{name}.")
        elif value not in EMPTY:
            yield f"{above}{name}", plain_words(value)


def _tracked(verb: str, record: Any, given: Mapping[str, object]) -> Tracked:
    from trtq.records.sweep import plain_words

    spec = {k: v for k, v in given.items() if v not in EMPTY}
    name = VERBS[verb].file.removeprefix(".") if verb in VERBS else ""
    text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    return Tracked(
        name=f"{verb} {spec.get('model') or spec.get('onnx') or ''}".strip(),
        tags={"trtq.verb": verb, "trtq.version": __version__},
        params={k: plain_words(msgspec.to_builtins(v)) for k, v in spec.items()},
        metrics={**figures_of(record), **dict(_scores(record))},
        text=(name or f"{verb}.json", text),
        files=list(_files(record, Path(str(spec["out"])))) if "out" in spec else (),
    )


def _scores(record: object) -> Iterator[tuple[str, float]]:
    """Yield the scores of an evaluation by their names."""
    from trtq.records.evaluate import EvaluateRecord

    if not isinstance(record, EvaluateRecord):
        return
    for name, (own, theirs) in record.scores.items():
        for label, figure in ((name, own), (f"float {name}", theirs)):
            if figure is not None and figure.value is not None:
                yield label, float(figure.value)


def _files(record: Any, out: Path) -> Iterator[Path]:
    """Yield the files that a command wrote and its record names."""
    if out.is_file():
        yield out
        return
    yield from (out / n for n in getattr(record, "files", ()) if (out / n).is_file())
