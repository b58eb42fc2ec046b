"""The page of a sweep: accuracy against size, the best run for each target, and all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.artifact import write_bytes
from trtq.files import QDQ
from trtq.records.sweep import WEIGHTS, Measured, SweepRecord, SweepRow, plain_words
from trtq.report.render import command_of, render
from trtq.search.frontier import dominated
from trtq.tasks import Figure
from trtq.version import __version__

AXES = {WEIGHTS: "MB of packed codes, computed", QDQ: "MB, file size"}
DRAWN = 400  # beaten runs in a figure
NO_TARGET = "no engine was built"


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A run with a score and a size; see :class:`trtq.report.figures.Point`.

    Attributes:
        label: its number; "" where another run beats it.
        accuracy: its score, in the score's own unit.
        costs: MB by axis.
        dominated: whether another run beats it, by axis.
    """

    label: str
    accuracy: float | None
    costs: dict[str, float]
    dominated: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Best:
    """The run with the best score among those for one target.

    Attributes:
        target: device, or that there is none.
        row: of the run.
        score: as a person reads it.
        size: bytes of the engine for the target, else of the axis.
    """

    target: str
    row: SweepRow
    score: str
    size: int | None


@dataclass(frozen=True, slots=True)
class _Run:
    """A row that has figures."""

    row: SweepRow
    measured: Measured


def write_sweep_page(record: SweepRecord, page: Path) -> Path:
    """Write the page of a sweep to ``page`` and return it.

    Args:
        record: of the sweep; runs without figures are in the table alone.
        page: the HTML file.

    Raises:
        ArtifactError: it cannot be written.
    """
    runs = [_Run(r, r.measured) for r in record.rows if r.measured is not None]
    measure, axis = _measure(runs), _axis(runs)
    points = _points(runs, measure, axis)
    settings = list(dict.fromkeys(n for r in record.rows for n in r.settings))
    text = render(
        "sweep.html.j2",
        title=f"Sweep: {Path(record.spec['recipe']).name}",
        record=record,
        measure=measure,
        axis=axis,
        figure=_figure(points, measure, axis),
        best=_best(runs, measure, axis),
        undrawn=max(0, sum(not p.label for p in points) - DRAWN),
        front={p.label for p in points if p.label},
        label=short_name,
        settings=settings,
        choices={n: _choices(record.rows, n) for n in settings},
        shown={r.name: {n: plain_words(v) for n, v in r.settings.items()} for r in record.rows},
        command=command_of(record, "sweep"),
        made=record.environment.time,
        version=__version__,
    )
    return write_bytes(page, text)


def short_name(row: SweepRow) -> str:
    """Return the number of a run as figures show it."""
    return row.name.lstrip("0")


def _measure(runs: Sequence[_Run]) -> Figure | None:
    """Return the first score that every run has, None without one."""
    if not runs:
        return None
    first = runs[0].measured.scores
    return next((f for f in first if all(r.measured.score(f.name) for r in runs)), None)


def _axis(runs: Sequence[_Run]) -> str:
    """Return the size that every run has."""
    return next((a for a in AXES if all(a in r.measured.sizes for r in runs)), WEIGHTS)


def _points(runs: Sequence[_Run], measure: Figure | None, axis: str) -> list[SweepPoint]:
    """Return the runs as points; those that nothing beats are labelled."""
    if measure is None:
        return []
    known = [(r, r.measured.score(measure.name)) for r in runs if axis in r.measured.sizes]
    scored = [(r, f) for r, f in known if f is not None and f.value is not None]
    places = [(float(r.measured.sizes[axis]), f.gain(0.0)) for r, f in scored]
    return [
        SweepPoint(
            label="" if beaten else short_name(run.row),
            accuracy=figure.value,
            costs={axis: run.measured.sizes[axis] / 1e6},
            dominated={axis: beaten},
        )
        for (run, figure), beaten in zip(scored, dominated(places), strict=True)
    ]


def _figure(points: Sequence[SweepPoint], measure: Figure | None, axis: str) -> str:
    """Return accuracy against size, "" where fewer than two runs have both."""
    if measure is None or len(points) < 2:
        return ""
    from trtq.report.figures import frontier_figure

    title = f"{measure.name}, {measure.unit}" if measure.unit else measure.name
    front, beaten = [p for p in points if p.label], [p for p in points if not p.label]
    step = -(-len(beaten) // DRAWN) or 1
    return frontier_figure([*front, *beaten[::step]], axis, measure=title, unit=AXES[axis])


def _best(runs: Sequence[_Run], measure: Figure | None, axis: str) -> list[Best]:
    """Return the best run of each target; of equal ones the smallest."""
    if measure is None:
        return []
    by_target: dict[str, list[_Run]] = {}
    for run in runs:
        for target in run.measured.targets or [NO_TARGET]:
            by_target.setdefault(target, []).append(run)
    return [_best_of(t, of, measure.name, axis) for t, of in sorted(by_target.items())]


def _best_of(target: str, runs: Sequence[_Run], name: str, axis: str) -> Best:
    def rank(run: _Run) -> tuple[float, float]:
        figure, size = run.measured.score(name), _size(run.measured, target, axis)
        assert figure is not None
        return figure.gain(0.0), -float(size or 0)

    run = max(runs, key=rank)
    figure = run.measured.score(name)
    assert figure is not None
    return Best(target, run.row, figure.words, _size(run.measured, target, axis))


def _size(measured: Measured, target: str, axis: str) -> int | None:
    return measured.sizes.get(f"engine {target} int8", measured.sizes.get(axis))


def _choices(rows: Sequence[SweepRow], name: str) -> list[str]:
    """Return the values of a setting, in the order of the runs."""
    return list(dict.fromkeys(plain_words(r.settings[name]) for r in rows if name in r.settings))
