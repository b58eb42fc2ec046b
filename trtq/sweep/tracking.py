"""Runs of a sweep in MLflow: settings, scores, sizes, and where their files are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq.errors import ArtifactError, MissingExtraError, first_line
from trtq.records.sweep import SweepRecord, SweepRow, plain_words

REFUSED = re.compile(r"[^\w./ -]")  # in the names of metrics
MOST = 500  # characters of a parameter


@dataclass(frozen=True, slots=True)
class Tracker:
    """One experiment of an MLflow server or folder.

    Attributes:
        uri: of the server.
        client: of mlflow.
        experiment: its id.
    """

    uri: str
    client: Any
    experiment: str

    def log(self, record: SweepRecord) -> int:
        """Log the finished runs that the experiment does not have, and return how many.

        A run is known by its key and its number; one whose logging was cut off is logged again.

        Args:
            record: of the sweep; rows without figures are left out.

        Raises:
            ArtifactError: the server refuses; what was logged before is kept.
        """
        finished = [r for r in record.rows if r.measured is not None]
        try:
            return sum(self._log_row(row, record.store) for row in finished)
        except Exception as exc:  # of mlflow's own kinds, which are not imported without it
            hint = "The sweep itself is kept: give the same command again"
            raise _refused(self.uri, exc, hint) from exc

    def _log_row(self, row: SweepRow, store: str) -> bool:
        known = (
            f"tags.`trtq.key` = '{row.key}' and tags.`trtq.run` = '{row.name}' and "
            "attributes.status = 'FINISHED'"  # one that was cut off has no figures
        )
        if self.client.search_runs([self.experiment], known, max_results=1):
            return False
        from mlflow.entities import Metric, Param

        tags = {
            "trtq.key": row.key,
            "trtq.run": row.name,
            "trtq.state": row.state,
            "trtq.files": f"{store}/{row.files}",
        }
        name = f"{row.name} {row.words}"[:250]
        run = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        now = int(time.time() * 1000)
        self.client.log_batch(
            run,
            metrics=[Metric(n, v, now, 0) for n, v in _metrics(row)],
            params=[Param(n, plain_words(v)[:MOST]) for n, v in row.settings.items()],
        )
        self.client.set_terminated(run)
        return True


def _metrics(row: SweepRow) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a run's figures."""
    assert row.measured is not None
    figures = row.measured
    groups: dict[str, Mapping[str, float | None]] = {
        "float ": {f.name: f.value for f in figures.reference},
        "bytes ": figures.sizes,
        "latency_ms ": figures.latency_ms,
        "": {"seconds": row.seconds, **{f.name: f.value for f in figures.scores}},
    }
    for group, values in groups.items():
        for name, value in values.items():
            if value is not None:
                yield REFUSED.sub("_", f"{group}{name}"), float(value)


def open_tracker(uri: str, recipe: Path) -> Tracker:
    """Return the experiment of a sweep's file, made where there is none.

    Args:
        uri: of an MLflow server, ``file:///...`` or ``sqlite:///...``.
        recipe: of the sweep; it names the experiment.

    Raises:
        MissingExtraError: mlflow is not installed.
        ArtifactError: the server does not answer, or refuses.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as exc:
        raise MissingExtraError(
            "Cannot use --mlflow", "mlflow is not installed", "pip install 'trtq[mlflow]'"
        ) from exc
    name = f"trtq sweep {recipe.stem}"
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri="file:///nowhere")
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else client.create_experiment(name)
    except Exception as exc:  # of mlflow's own kinds
        raise _refused(uri, exc, "Check --mlflow, or leave it out") from exc
    return Tracker(uri, client, experiment)


def _refused(uri: str, exc: Exception, hint: str) -> ArtifactError:
    return ArtifactError(f"Cannot log to MLflow at {uri}", first_line(exc), hint)
