"""Runs of a sweep in MLflow: settings, scores, sizes, and where their files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trtq.records.sweep import Measured, SweepRecord, SweepRow, plain_words
from trtq.tracking import Experiment, Tracked, open_experiment


def open_tracker(uri: str, recipe: Path) -> Experiment:
    """Return the experiment of a sweep's file, made where there is none.

    Args:
        uri: of an MLflow server, ``file:///...`` or ``sqlite:///...``.
        recipe: of the sweep; it names the experiment.

    Raises:
        MissingExtraError: mlflow is not installed.
        ArtifactError: the server does not answer, or refuses.
    """
    return open_experiment(uri, f"trtq sweep {recipe.stem}")


def log_sweep(experiment: Experiment, record: SweepRecord) -> int:
    """Log the finished runs that the experiment does not have, and return how many.

    A run is known by its key and its number; one whose logging was cut off is logged again.

    Args:
        experiment: of the sweep.
        record: of the sweep; rows without figures are left out.

    Raises:
        ArtifactError: the server refuses; what was logged before is kept.
    """
    finished = [r for r in record.rows if r.measured is not None]
    return sum(
        experiment.log(
            _tracked(row, record.store),
            known=f"tags.`trtq.key` = '{row.key}' and tags.`trtq.run` = '{row.name}'",
        )
        for row in finished
    )


def _tracked(row: SweepRow, store: str) -> Tracked:
    return Tracked(
        name=f"{row.name} {row.words}",
        tags={
            "trtq.key": row.key,
            "trtq.run": row.name,
            "trtq.state": row.state,
            "trtq.files": f"{store}/{row.files}",
        },
        params={n: plain_words(v) for n, v in row.settings.items()},
        metrics=metrics_of(row.measured or Measured(), row.seconds),
    )


def metrics_of(figures: Measured, seconds: float | None = None) -> dict[str, float]:
    """Return the figures of a run by name.

    Args:
        figures: of the run.
        seconds: that it took; None where that is not known.
    """
    groups: dict[str, Mapping[str, float | None]] = {
        "float ": {f.name: f.value for f in figures.reference},
        "bytes ": figures.sizes,
        "latency_ms ": figures.latency_ms,
        "": {"seconds": seconds, **{f.name: f.value for f in figures.scores}},
    }
    return {
        f"{group}{name}": float(value)
        for group, values in groups.items()
        for name, value in values.items()
        if value is not None
    }
