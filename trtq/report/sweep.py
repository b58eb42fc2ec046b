"""The page of a sweep."""

from __future__ import annotations

from pathlib import Path

from trtq.artifact import write_bytes
from trtq.records.sweep import SweepRecord
from trtq.report.render import command_of, render
from trtq.version import __version__


def write_sweep_page(record: SweepRecord, page: Path) -> Path:
    """Write the page of a sweep to ``page`` and return it."""
    text = render(
        "sweep.html.j2",
        title="Sweep",
        record=record,
        command=command_of(record, "sweep"),
        made=record.environment.time,
        version=__version__,
    )
    return write_bytes(page, text)
