"""The folder of a search: the chosen model's files, the frontier, the record, the report."""

from __future__ import annotations

import shutil
from pathlib import Path

from trtq.artifact import write_bytes, write_json
from trtq.files import (
    ALLOCATION_JSON,
    ANALYSIS_JSON,
    EVALUATE_JSON,
    FRONTIER_JSON,
    MODEL_FILES,
    QUANTIZE_JSON,
    REPORT_HTML,
)
from trtq.flow.search import Searched
from trtq.records.search import Frontier, SearchRecord
from trtq.workspace import Workspace

RESULT = (*MODEL_FILES, QUANTIZE_JSON, ALLOCATION_JSON, EVALUATE_JSON)


def save_search(searched: Searched, record: SearchRecord, work: Workspace) -> None:
    """Write what a search found into a folder that the caller has locked.

    Every try is kept below ``tries``; the chosen one's files are copied.

    Args:
        searched: a search that kept its tries below the folder.
        record: its record.
        work: the folder.
    """
    outcome, staging = searched.outcome, work.staging()
    chosen = outcome.best.folder
    assert chosen is not None
    for name in RESULT:
        shutil.copyfile(chosen / name, staging / name)
    write_json(staging / ANALYSIS_JSON, searched.analysis)
    frontier = outcome.frontier()
    write_json(staging / FRONTIER_JSON, frontier)
    pictures = _draw(frontier, outcome.axes, staging)
    work.publish((*RESULT, ANALYSIS_JSON, FRONTIER_JSON, *pictures), record)
    # matplotlib and the page are slow to import, and only this needs them.
    from trtq.report.page import write_page

    title = f"Search: {record.tries[0].model}"
    write_page(work.folder, work.folder / REPORT_HTML, title=title)


def _draw(frontier: Frontier, axes: list[str], folder: Path) -> list[str]:
    """Draw one picture for each cost, and return their names."""
    from trtq.report.figures import frontier_figure

    names = []
    for axis in axes:
        figure = frontier_figure(
            frontier.points,
            axis,
            measure=frontier.score,
            chosen=frontier.chosen,
            limit=frontier.limits.get(axis),
            unit=frontier.units[axis],
        )
        names.append(f"frontier.{axis.replace('@', '-')}.svg")
        write_bytes(folder / names[-1], figure.encode())
    return names
