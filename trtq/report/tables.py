"""The summary of a run as a table on the terminal."""

from __future__ import annotations

from pathlib import Path

from trtq.report.summary import summarize_run


def print_tables(folder: Path) -> None:
    """Print FP32 against INT8, and the engines, of the run in ``folder``."""
    from rich.console import Console
    from rich.table import Table

    run = summarize_run(folder)
    table = Table(title=run.verdict, title_justify="left")
    table.add_column("")
    table.add_column("FP32", justify="right")
    table.add_column(run.width, justify="right")
    table.add_column("how measured", overflow="fold")
    for row in run.rows:
        table.add_row(*row)
    Console(soft_wrap=False).print(table)
