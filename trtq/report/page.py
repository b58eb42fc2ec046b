"""One self-contained HTML page for one run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.artifact import write_bytes
from trtq.bench.record import BenchRecord
from trtq.deploy.record import DeployRecord, FleetRow
from trtq.engine.manifest import EngineManifest
from trtq.errors import ArtifactError, listed
from trtq.files import DEPLOYED
from trtq.known_records import read_known
from trtq.records.allocate import AllocatedLayer, Alternative
from trtq.records.evaluate import EvaluateRecord
from trtq.records.finetune import FinetuneRecord
from trtq.records.quantize import QuantizeRecord, QuantizerRecord
from trtq.records.search import SearchRecord
from trtq.report.answers import answers_of
from trtq.report.contents import SearchFolder
from trtq.report.figures import (
    frontier_figure,
    histogram_figure,
    predicted_figure,
    sensitivity_figure,
    sqnr_figure,
    training_figure,
)
from trtq.report.layers import layers_of
from trtq.report.next_steps import next_steps
from trtq.report.render import command_of, render
from trtq.report.run_comparison import compare_runs
from trtq.report.summary import RunSummary, summarize_run
from trtq.specs import option_words
from trtq.typed import present
from trtq.version import __version__

LABELS = {
    "engine": "a kernel of the engine",
    "folded": "folded into the numbers: nothing more runs",
    "ops": "extra float operations",
    "simulated": "simulation only: no kernel anywhere",
}
WORST = 6
TRAINING_SETTINGS = (
    "epochs",
    "limit",
    "batch_size",
    "lr",
    "lr_amax",
    "schedule",
    "distill",
    "batch_norm",
    "augment",
    "class_weights",
)
TEMPLATE = "page.html.j2"
Stage = QuantizeRecord | FinetuneRecord | EvaluateRecord | EngineManifest | BenchRecord


def write_page(folder: Path, page: Path, *, title: str) -> Path:
    """Write the report of the run in ``folder`` to ``page`` and return it.

    Args:
        folder: holds quantize.json and the other records.
        page: the HTML file.
        title: its heading.

    Raises:
        ArtifactError: a record is missing or damaged, or the page cannot be written.
    """
    run = summarize_run(folder)
    layers = layers_of(run)
    quantizers = run.quantize.quantizers
    text = render(
        TEMPLATE,
        title=title,
        run=run,
        version=__version__,
        sqnr=sqnr_figure(quantizers),
        worst=_worst(quantizers),
        steps=next_steps(run, folder),
        commands=_commands(run),
        labels=LABELS,
        search=_search(run.search) if run.search else None,
        training=_training(run.training) if run.training else None,
        boards=_boards(folder),
        answers=answers_of(run.evaluate, folder, run.width),
        layers=layers,
        strip_data=[
            [r.name, f"{r.precision}, computes in {r.runs}", r.sqnr_db, r.loss, r.share]
            for r in layers.rows
        ],
        histograms={
            q.name: [q.histogram, q.histogram_limit, q.amax] for q in quantizers if q.histogram
        },
        skipped=_skipped(run),
        notes=list(dict.fromkeys(n for record in _records(run) for n in record.notes)),
        cards=_cards(run),
    )
    return write_bytes(page, text)


def write_runs_page(folders: Sequence[Path], page: Path, *, title: str) -> str:
    """Write the comparison of several runs to ``page`` and return its verdict.

    Args:
        folders: each holds quantize.json and the other records.
        page: the HTML file.
        title: its heading.

    Raises:
        ArtifactError: a record is missing or damaged, or the page cannot be written.
    """
    runs = [summarize_run(f) for f in folders]
    comparison = compare_runs(folders, runs)
    text = render(
        "runs.html.j2",
        title=title,
        c=comparison,
        version=__version__,
        repeat=[
            (row.label, _commands(run)) for row, run in zip(comparison.rows, runs, strict=False)
        ],
    )
    write_bytes(page, text)
    return comparison.verdict


def _records(run: RunSummary) -> list[Stage]:
    """The records of a run in the order of the chain."""
    stages = (run.quantize, run.training, run.evaluate, *run.engines.values(), *run.bench.values())
    return present(stages)


def _skipped(run: RunSummary) -> list[tuple[str, str]]:
    """Return what has no figure or no codes, each with the reason.

    This covers figures that could not be had, layers an engine keeps in float, and fallbacks.
    """
    rows = [row for b in run.bench.values() for row in b.rows]
    skipped = [
        (f"{figure} of {row.file}", why) for row in rows for figure, why in row.unavailable.items()
    ]
    for m in run.engines.values():
        if m.fallback:
            skipped.append((f"the engine for {m.device}", m.fallback))
        skipped += [
            (f"INT8 for {s.node} on {m.device}", s.why or "no reason is known")
            for s in (m.coverage.short if m.coverage is not None else ())
        ]
    names: dict[str, list[str]] = {}
    for f in run.quantize.left_in_float:
        names.setdefault(f.reason, []).append(f.name)
    skipped += [(f"{listed(floats, 1)} remain in float", why) for why, floats in names.items()]
    return list(dict.fromkeys(skipped))


def _cards(run: RunSummary) -> list[tuple[str, list[tuple[str, str]]]]:
    """The machines: where the files were made, and where each was measured."""
    environment = run.quantize.environment
    software = [
        ("CPU", f"{environment.cpu}, {environment.cores} cores"),
        ("system", environment.system),
        ("Python", environment.python),
        *environment.packages.items(),
        ("when", environment.time),
    ]
    cards = [("Where the files were made", software)]
    for record in run.bench.values():
        lines = [
            (k.replace("_", " "), text)
            for k, v in msgspec.to_builtins(record.card).items()
            if (text := _said(v))
        ]
        if ("Where they were measured", lines) not in cards:
            cards.append(("Where they were measured", lines))
    for m in list(run.engines.values())[:1]:
        built = [("builder", m.built_with), ("when", m.environment.time)]
        cards.append(("Builder of the engines", built))
    return cards


def _said(value: object) -> str:
    """A value of a machine card in a line, "" for nothing."""
    if isinstance(value, dict):
        return ", ".join(
            f"{k.replace('_', ' ')} {text}" for k, v in value.items() if (text := _said(v))
        )
    if isinstance(value, list):
        return ", ".join(filter(None, map(_said, value)))
    return "" if value in (None, "") else str(value)


def _boards(folder: Path) -> list[FleetRow]:
    """Return the rows of what was deployed from a run: records below its folder ``deploy``."""
    rows: list[FleetRow] = []
    for path in sorted(folder.glob(DEPLOYED)):
        try:
            record: DeployRecord = read_known(path, "deploy")
        except ArtifactError:
            why = f"{path.name} is of another version of trtq: deploy again"
            rows.append(FleetRow(device=path.parent.name, board="", model=folder.name, why=why))
            continue
        rows += record.table(folder.name)
    return rows


class _Training(NamedTuple):
    """The section of a training: its record, curves, and how it was run."""

    record: FinetuneRecord
    figure: str
    settings: str


def _training(record: FinetuneRecord) -> _Training:
    changed = [
        w for n, v in record.spec.items() if n in TRAINING_SETTINGS for w in option_words(n, v)
    ]
    return _Training(record, training_figure(record.history, record.measure), shlex.join(changed))


class _Width(NamedTuple):
    """One row of a search's layers: the width, and what the next ones would change."""

    layer: AllocatedLayer
    narrower: str
    wider: str
    shared: list[str]


class _Search(NamedTuple):
    """The section of a search: constraints, frontiers, and why each layer has its width."""

    record: SearchRecord
    metric: str
    figures: list[str]
    predicted: str
    sensitivity: str
    layers: list[_Width]


def _search(search: SearchFolder) -> _Search:
    frontier, analysis = search.frontier, search.analysis
    full = search.record.reference.costs["energy"]
    figures = [
        frontier_figure(
            frontier.points,
            axis,
            measure=frontier.score,
            unit=unit,
            chosen=frontier.chosen,
            limit=frontier.limits.get(axis),
        )
        for axis, unit in frontier.units.items()
    ]
    return _Search(
        record=search.record,
        metric=search.allocation.metric,
        figures=figures,
        predicted=predicted_figure(frontier.predicted, unit="MB of parameters"),
        sensitivity=sensitivity_figure(analysis.layers, analysis.bits, analysis.metric),
        layers=[
            _Width(
                layer,
                narrower=_next_width(layer.narrower, full),
                wider=_next_width(layer.wider, full),
                shared=[n for n in layer.group if n != layer.name],
            )
            for layer in search.allocation.layers
        ],
    )


def _next_width(other: Alternative | None, full_energy: float) -> str:
    if other is None:
        return "no other candidate"
    energy = 100 * other.costs["energy"] / full_energy
    return (
        f"{other.option}: loss {other.loss:+.3g}, {other.costs['size'] / 1e3:+.2f} "
        f"kB, {energy:+.2f} % of the energy"
    )


def _worst(quantizers: Sequence[QuantizerRecord]) -> list[tuple[QuantizerRecord, str]]:
    """The activations with the lowest SQNR, each tensor once, with its figure."""
    tensors: dict[tuple[float, float, float], QuantizerRecord] = {}
    lossy = [(q.sqnr_db, q) for q in quantizers if q.histogram and q.sqnr_db is not None]
    for _, q in sorted(lossy, key=lambda pair: pair[0]):
        tensors.setdefault((q.amax, q.low, q.high), q)
    return [(q, histogram_figure(q)) for q in list(tensors.values())[:WORST]]


def _commands(run: RunSummary) -> list[str]:
    """The commands that repeat the run, one per stage."""
    records = [run.search.record] if run.search is not None else _records(run)
    return [command_of(record, record.verb) for record in records]
