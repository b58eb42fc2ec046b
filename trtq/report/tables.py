"""The summary of a run as a table on the terminal."""

from __future__ import annotations

from pathlib import Path

from trtq.report.summary import summarize_run
from trtq.terminal import new_table, say_table


def print_tables(folder: Path) -> None:
    """Print FP32 against INT8, and the engines, of the run in ``folder``.

    Args:
        folder: as for :func:`trtq.report.contents.read_run`.

    Raises:
        ArtifactError: there is no quantize.json, or a record is damaged.
        ClosedOutputError: the reader of standard output has exited.
    """
    run = summarize_run(folder)
    table = new_table(run.verdict, ["", "FP32", run.width])
    table.add_column("how measured", overflow="fold")
    say_table(table, run.rows)
