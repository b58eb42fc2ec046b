"""``trtq report``: one self-contained HTML page about a run, or about several side by side."""

from __future__ import annotations

import shlex
from pathlib import Path

from trtq.artifact import (
    Environment,
    Record,
    ensure_writable_dir,
    ensure_writable_file,
    environment,
    header,
    read_json,
)
from trtq.errors import UsageError
from trtq.files import FINETUNE_FOLDER, FINETUNE_JSON, QUANTIZE_JSON, REPORT_HTML
from trtq.report.page import write_page, write_runs_page
from trtq.report.summary import summarize_run
from trtq.specs import ReportSpec


class ReportRecord(Record, frozen=True, kw_only=True):
    """The page, and the sentence at its head.

    Attributes:
        page: path of the HTML file.
        bytes: its size.
        verdict: the sentence.
        environment: software and machine.
    """

    page: str
    bytes: int
    verdict: str
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        return f"{self.verdict} {self.page}, {self.bytes / 1e3:.0f} kB"


def write_report(spec: ReportSpec) -> ReportRecord:
    """Write the page.

    Args:
        spec: one run, or several that are compared.

    Raises:
        UsageError: no run is named, one twice, or one that is no folder of a run.
        ArtifactError: a record is damaged, or the page cannot be written.
    """
    folders = _folders(spec)
    alone = folders[0] if len(folders) == 1 else None
    default = Path("runs") / REPORT_HTML if alone is None else alone / REPORT_HTML
    page = Path(spec.out) if spec.out else default
    ensure_writable_file(page)
    ensure_writable_dir(page.parent)
    if alone is not None:
        verdict = summarize_run(alone).verdict
        write_page(alone, page, title=spec.title or alone.resolve().name)
    else:
        verdict = write_runs_page(folders, page, title=spec.title or f"{len(folders)} runs")
    return ReportRecord(
        **header("report", spec),
        page=str(page),
        bytes=page.stat().st_size,
        verdict=verdict,
        environment=environment(),
    )


def _folders(spec: ReportSpec) -> list[Path]:
    """Return the folders of the runs.

    Raises:
        UsageError: no run is named, one twice, or one that is no folder of a run.
    """
    folders = [Path(r) for r in spec.run]
    if not folders:
        raise UsageError(
            "There is nothing to report",
            "no run is named",
            "Name the folder that trtq run or trtq quantize wrote",
        )
    places = [f.resolve() for f in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"{folder} is named twice")
    for folder in folders:
        _require_run(folder)
    return folders


def _require_run(folder: Path) -> None:
    if (folder / QUANTIZE_JSON).is_file():
        return
    if (folder / FINETUNE_JSON).is_file():
        raise UsageError(
            f"Cannot report on {folder}",
            f"it holds a training and no {QUANTIZE_JSON}",
            _report_of_training(folder),
        )
    why = f"it holds no {QUANTIZE_JSON}" if folder.is_dir() else "there is no such folder"
    hint = "Name a folder that trtq run, quantize or search wrote"
    raise UsageError(f"Cannot report on {folder}", why, hint)


def _report_of_training(folder: Path) -> str:
    """Return what to type: a report shows a training below the folder that it started from."""
    if (folder.parent / QUANTIZE_JSON).is_file():
        return f"Type {shlex.join(['trtq', 'report', str(folder.parent)])}"
    spec = read_json(folder / FINETUNE_JSON).get("spec") or {}
    encodings = spec.get("encodings") if isinstance(spec, dict) else None
    start = Path(encodings).parent if isinstance(encodings, str) else None
    if start is None or not (start / QUANTIZE_JSON).is_file():
        return "Copy it to RUN/finetune, where RUN has the encodings it started from, and name RUN"
    copy = shlex.join(["cp", "-r", str(folder), str(start / FINETUNE_FOLDER)])
    return f"Type {copy} && {shlex.join(['trtq', 'report', str(start)])}"
