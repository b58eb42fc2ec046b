"""Results in MLflow: what was asked for, the figures, and the files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trtq.errors import ArtifactError, MissingExtraError, first_line

T = TypeVar("T")
REFUSED = re.compile(r"[^\w./ -]")  # in the names of metrics
MOST = 500  # characters of a parameter
METRICS, PARAMS = 1000, 100  # that a server takes at once
NO_FIGURES = ("schema", "spec", "environment")  # parts of a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """Log entry of one run.

    Attributes:
        name: of the run.
        tags: texts by name.
        params: what was asked for, as texts by name.
        metrics: figures by name.
        text: content of a file, by its name, such as a record.
        files: of this machine.
    """

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    text: tuple[str, str] | None = None
    files: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment of an MLflow server or folder.

    Attributes:
        uri: of the server.
        client: of mlflow.
        id: of the experiment.
    """

    uri: str
    client: Any
    id: str

    def log(self, run: Tracked, *, known: str = "") -> bool:
        """Log a run, and return whether it was new.

        Args:
            run: what is logged; it counts as finished once all of it is there.
            known: a filter of MLflow for the runs that it would repeat; "" logs it in any case.

        Raises:
            ArtifactError: the server refuses.
        """
        try:
            return self._log(run, known)
        except Exception as exc:  # of mlflow's own kinds, which are not imported without it
            hint = "The results themselves are kept: give the same command again"
            raise _refused(self.uri, exc, hint) from exc

    def _log(self, run: Tracked, known: str) -> bool:
        finished = f"{known} and attributes.status = 'FINISHED'"
        if known and self.client.search_runs([self.id], finished, max_results=1):
            return False
        from mlflow.entities import Metric, Param

        mlflow_run = self.client.create_run(self.id, tags=dict(run.tags), run_name=run.name[:250])
        now, key = int(time.time() * 1000), mlflow_run.info.run_id
        metrics = [Metric(REFUSED.sub("_", n), v, now, 0) for n, v in run.metrics.items()]
        for some in _pieces(metrics, METRICS):
            self.client.log_batch(key, metrics=some)
        for some in _pieces([Param(n, v[:MOST]) for n, v in run.params.items()], PARAMS):
            self.client.log_batch(key, params=some)
        if run.text is not None:
            name, text = run.text
            self.client.log_text(key, text, name)
        for file in run.files:
            self.client.log_artifact(key, str(file))
        self.client.set_terminated(key)
        return True


def _pieces(items: Sequence[T], count: int) -> Iterator[list[T]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, count)), [])


def open_experiment(uri: str, name: str) -> Experiment:
    """Return an experiment, made where there is none.

    Args:
        uri: of an MLflow server, ``file:///...`` or ``sqlite:///...``.
        name: of the experiment.

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
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri="file:///nowhere")
        known = client.get_experiment_by_name(name)
        experiment_id = known.experiment_id if known is not None else client.create_experiment(name)
    except Exception as exc:  # of mlflow's own kinds
        raise _refused(uri, exc, "Check --mlflow, or leave it out") from exc
    return Experiment(uri, client, experiment_id)


def _refused(uri: str, exc: Exception, hint: str) -> ArtifactError:
    return ArtifactError(f"Cannot log to MLflow at {uri}", first_line(exc), hint)


def figures_of(record: object) -> dict[str, float]:
    """Return the numbers of a record by dotted name, without those of lists.

    >>> figures_of({"schema": 1, "total": {"macs": 5, "fast": True}, "rows": [1.0]})
    {'total.macs': 5.0}
    """
    values = msgspec.to_builtins(record)
    return dict(_numbers({k: v for k, v in values.items() if k not in NO_FIGURES}))


def _numbers(values: Mapping[str, object], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{above}{name}", float(value)
