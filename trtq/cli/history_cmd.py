"""``trtq history``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import PathText
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.bench.history import Entry


@click.command("history")
@click.option("--file", metavar="PATTERN", help="Of the file's name, with * and ?.")
@click.option("--device", metavar="PATTERN", help="As records label it, such as 'CPU*'.")
@click.option("--mode", help="latency, throughput, paced, cold or compare.")
@click.option("--since", metavar="DATE", help="Such as 2026-11-01.")
@click.option("--valid", is_flag=True, help="Leave out what is not valid.")
@click.option(
    "--plot",
    type=PathText(),
    metavar="FILE",
    help="Draw the medians over time: .png, .svg or .pdf.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(plot: str | None, as_json: bool, **given: Any) -> None:
    """List the records of trtq bench, compare and deploy on this account, the oldest first.

    They are in one SQLite file: $TRTQ_HISTORY, else trtq/history.sqlite in the user's data folder.

    \b
    Examples:
      trtq history --file 'model.qdq.onnx' --since 2026-11-01 --plot latency.png
      trtq history --device 'CPU*' --mode latency --valid --json
    """
    from trtq.bench import history

    entries = history.recall(**given)
    if plot is not None:
        history.plot(entries, Path(plot))
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        say(_line(entry))
    if not entries:
        say(f"nothing yet in {history.history_path()}")


def _line(e: Entry) -> str:
    figures = [
        f"{e.median_ms:.3f} ms" if e.median_ms is not None else "",
        f"{e.images_per_s:.1f} images/s" if e.images_per_s else "",
        f"{1e3 * e.joule:.3g} mJ" if e.joule else "",
        f"{e.process_bytes / 1e6:.0f} MB" if e.process_bytes else "",
    ]
    what = f"{e.file}  {e.device}, {e.mode}, batch {e.batch}"
    valid = "VALID" if e.valid else "NOT VALID"
    return f"{e.time}  {what}: {', '.join(filter(None, figures))}  {valid}  {e.machine}"
