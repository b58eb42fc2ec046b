"""The page of a fleet: one table of models and boards. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtq.artifact import write_bytes
from trtq.deploy.record import FleetRecord, FleetRow
from trtq.report.render import command_of, render
from trtq.version import __version__


def write_fleet_page(record: FleetRecord, page: Path) -> Path:
    """Write the table of a fleet to ``page`` and return it.

    Args:
        record: of the fleet.
        page: the HTML file.

    Raises:
        ArtifactError: it cannot be written.
    """
    text = render(
        "fleet.html.j2",
        title="Boards",
        rows=record.rows,
        verdict=_fleet_verdict(record.rows),
        command=command_of(record, f"fleet {'deploy' if record.spec['model'] else 'bench'}"),
        made=record.environment.time,
        version=__version__,
    )
    return write_bytes(page, text)


def _fleet_verdict(rows: Sequence[FleetRow]) -> str:
    measured = [r for r in rows if r.latency_ms is not None]
    counts = {"device": {r.device for r in measured}, "model": {r.model for r in measured}}
    verdict = ", ".join(f"{len(n)} {w}{'' if len(n) == 1 else 's'}" for w, n in counts.items())
    failed = len(rows) - len(measured)
    if failed:
        return f"{verdict}; {failed} without a latency: the reason is below"
    return verdict if all(r.valid for r in rows) else f"{verdict}; not every figure is valid"
