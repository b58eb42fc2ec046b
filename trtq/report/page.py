"""One self-contained HTML page for one run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import size_words, write_bytes
from trtq.data.answers import percent_words
from trtq.deploy.record import DeployRecord, FleetRow, fleet_rows
from trtq.errors import ArtifactError, listed
from trtq.files import DEPLOYED
from trtq.known_records import read_known
from trtq.report.figures import (
    frontier_figure,
    histogram_figure,
    predicted_figure,
    sensitivity_figure,
    sqnr_figure,
    training_figure,
)
from trtq.report.layers import layers_of
from trtq.report.run_comparison import compare_runs
from trtq.report.summary import RunSummary, summarize_run
from trtq.specs import option_words
from trtq.terminal import visible
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


def _render(template: str, **values: Any) -> bytes:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=_plain
    )
    environment.filters["size"] = size_words
    environment.filters["percent"] = percent_words
    return environment.get_template(template).render(**values).encode()


def _plain(value: Any) -> Any:
    """Return a value as the page shows it.

    Characters that would reorder or hide a line are written out.
    """
    return visible(value, lines=True) if type(value) is str else value


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
    quantizers = run.quantize["quantizers"]
    text = _render(
        TEMPLATE,
        title=title,
        run=run,
        version=__version__,
        sqnr=sqnr_figure(quantizers),
        worst=_worst(quantizers),
        commands=_commands(run),
        labels=LABELS,
        search=_search(run.search) if run.search else None,
        training=_training(run.training) if run.training else None,
        boards=_boards(folder),
        layers=layers,
        strip_data=[
            [r.name, f"{r.precision}, computes in {r.runs}", r.sqnr_db, r.loss, r.share]
            for r in layers.rows
        ],
        histograms={
            q["name"]: [q["histogram"], q["histogram_limit"], q["amax"]]
            for q in quantizers
            if q["histogram"]
        },
        skipped=_skipped(run),
        notes=list(dict.fromkeys(n for record in _records(run) for n in record.get("notes", []))),
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
    found = compare_runs(folders, runs)
    text = _render(
        "runs.html.j2",
        title=title,
        c=found,
        version=__version__,
        repeat=[(row.label, _commands(run)) for row, run in zip(found.rows, runs, strict=False)],
    )
    write_bytes(page, text)
    return found.verdict


def write_fleet_page(record: dict[str, Any], page: Path) -> Path:
    """Write the table of a fleet to ``page`` and return it.

    Args:
        record: fleet.json.
        page: the HTML file.
    """
    rows = record["rows"]
    measured = [r for r in rows if r["latency_ms"] is not None]
    failed = len(rows) - len(measured)
    counts = {what: len({r[what] for r in measured}) for what in ("device", "model")}
    verdict = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts.items())
    if failed:
        verdict += f"; {failed} gave nothing: the reason stands below it"
    elif not all(r["valid"] for r in rows):
        verdict += "; not every figure is valid"
    spec = dict(record["spec"])
    kind = "deploy" if spec["model"] else "bench"
    words = [
        "trtq",
        "fleet",
        kind,
        *spec.pop("model"),
        *(w for k, v in spec.items() for w in option_words(k, v)),
    ]
    text = _render(
        "fleet.html.j2",
        title="Boards",
        rows=rows,
        verdict=verdict,
        command=shlex.join(words),
        made=record["environment"]["time"],
        version=__version__,
    )
    return write_bytes(page, text)


def _records(run: RunSummary) -> list[dict[str, Any]]:
    """The records of a run in the order of the chain."""
    held = (run.quantize, run.training, run.evaluate, *run.engines, *run.bench.values())
    return [r for r in held if r is not None]


def _skipped(run: RunSummary) -> list[tuple[str, str]]:
    """Return what has no figure or no codes, each with the reason.

    This covers figures that could not be had, layers an engine keeps in float, and fallbacks.
    """
    rows = [row for b in run.bench.values() for row in b["rows"]]
    found = [
        (f"{figure} of {row['file']}", why)
        for row in rows
        for figure, why in row["unavailable"].items()
    ]
    for m in run.engines:
        device = m["target"]["device"]
        if m.get("fallback"):
            found.append((f"the engine for {device}", m["fallback"]))
        short = (m.get("coverage") or {}).get("short", [])
        found += [
            (f"INT8 for {s['node']} on {device}", s.get("why") or "no reason is known")
            for s in short
        ]
    reasons: dict[str, list[str]] = {}
    for f in run.quantize["left_in_float"]:
        reasons.setdefault(f["reason"], []).append(f["name"])
    found += [(f"{listed(names, 1)} stay in float", why) for why, names in reasons.items()]
    return list(dict.fromkeys(found))


def _cards(run: RunSummary) -> list[tuple[str, list[tuple[str, str]]]]:
    """The machines: where the files were made, and where each was measured."""
    environment = run.quantize["environment"]
    made = [
        ("CPU", f"{environment['cpu']}, {environment['cores']} cores"),
        ("system", environment["system"]),
        ("Python", environment["python"]),
        *environment["packages"].items(),
        ("when", environment["time"]),
    ]
    cards = [("Where the files were made", made)]
    for record in run.bench.values():
        told = [
            (name.replace("_", " "), text)
            for name, value in record["card"].items()
            if (text := _said(value))
        ]
        if ("Where they were measured", told) not in cards:
            cards.append(("Where they were measured", told))
    for m in run.engines[:1]:
        built = [
            ("builder", f"{m['builder']['backend']} {m['builder']['version']}"),
            ("when", m["environment"]["time"]),
        ]
        cards.append(("What built the engines", built))
    return cards


def _said(value: Any) -> str:
    """A value of a machine card in a line, "" for nothing."""
    if isinstance(value, dict):
        return ", ".join(
            f"{k.replace('_', ' ')} {text}" for k, v in value.items() if (text := _said(v))
        )
    if isinstance(value, list):
        return ", ".join(filter(None, map(_said, value)))
    return "" if value in (None, "") else str(value)


def _boards(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of what was deployed from a run: records below its folder ``deploy``."""
    rows: list[FleetRow] = []
    for path in sorted(folder.glob(DEPLOYED)):
        try:
            record: DeployRecord = read_known(path, "deploy")
        except ArtifactError:
            why = f"{path.name} is of another version of trtq: deploy again"
            rows.append(FleetRow(device=path.parent.name, board="", model=folder.name, why=why))
            continue
        rows += fleet_rows(
            record.device,
            str(record.board["model"]),
            folder.name,
            record.manifest,
            record.rows,
            doubt=record.disagreement,
        )
    return [msgspec.to_builtins(r) for r in rows]


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """The section of a training: curves, what learned, how it was run."""
    spec = record["spec"]
    changed = [
        w
        for name, value in spec.items()
        if name in TRAINING_SETTINGS
        for w in option_words(name, value)
    ]
    return {
        **record,
        "figure": training_figure(record["history"], record["measure"]),
        "settings": shlex.join(changed),
    }


def _search(records: dict[str, Any]) -> dict[str, Any]:
    """The section of a search: constraints, frontiers, and why each layer has its width."""
    search, frontier, allocation, analysis = (
        records[k] for k in ("search", "frontier", "allocation", "analysis")
    )
    full = search["reference"]["costs"]
    figures = [
        frontier_figure(
            frontier["points"],
            axis,
            measure=frontier["measure"],
            chosen=frontier["chosen"],
            limit=frontier["limits"].get(axis),
            unit=unit,
        )
        for axis, unit in frontier["units"].items()
    ]
    predicted = frontier["predicted"]
    return {
        **search,
        "figures": figures,
        "layers": [_why(layer, full) for layer in allocation["layers"]],
        "metric": allocation["metric"],
        "predicted": predicted_figure(
            predicted["front"],
            predicted["axis"],
            at=predicted["at"],
            metric=predicted["metric"],
            unit="MB of parameters",
        ),
        "sensitivity": sensitivity_figure(analysis["layers"], analysis["bits"], analysis["metric"]),
    }


def _why(layer: dict[str, Any], full: dict[str, float]) -> dict[str, Any]:
    """One row: the width, and what the next ones would change."""

    def said(other: dict[str, Any] | None) -> str:
        if other is None:
            return "none on offer"
        energy = 100 * other["costs"]["energy"] / full["energy"]
        return (
            f"{other['option']}: loss {other['loss']:+.3g}, {other['costs']['size'] / 1e3:+.2f} "
            f"kB, {energy:+.2f} % of the energy"
        )

    shared = [n for n in layer["group"] if n != layer["name"]]
    return {
        **layer,
        "shared": shared,
        "narrower": said(layer["narrower"]),
        "wider": said(layer["wider"]),
    }


def _worst(quantizers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The activations with the lowest SQNR, each tensor once, with its figure."""
    seen: set[tuple[float, float, float]] = set()
    found = []
    for q in sorted(
        (q for q in quantizers if q["histogram"] and q["sqnr_db"] is not None),
        key=lambda q: q["sqnr_db"],
    ):
        key = (q["amax"], q["low"], q["high"])
        if key in seen:
            continue
        seen.add(key)
        found.append({**q, "figure": histogram_figure(q)})
        if len(found) == WORST:
            break
    return found


def _commands(run: RunSummary) -> list[str]:
    """The commands that repeat the run, one per stage."""
    commands = []
    records = (
        (run.search["search"],)
        if run.search
        else (run.quantize, run.training, run.evaluate, *run.engines, *run.bench.values())
    )
    for record in records:
        if record is None:
            continue
        spec = dict(record["spec"])
        first = {
            "search": "model",
            "quantize": "model",
            "finetune": "model",
            "evaluate": "onnx",
            "build": "onnx",
            "bench": "file",
        }[record["verb"]]
        given = spec.pop(first)  # a search of candidates names no model
        words = [
            "trtq",
            record["verb"],
            *(given if isinstance(given, list) else [str(given)] if given else []),
        ]
        for name, value in spec.items():
            words += option_words(name, value)
        commands.append(shlex.join(words))
    return commands
