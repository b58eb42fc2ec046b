"""``trtq targets``."""

from __future__ import annotations

import click

from trtq.cli.completing import offer
from trtq.cli.display import print_json
from trtq.terminal import say


@click.command("targets")
@click.argument("target", metavar="[TARGET]", required=False, shell_complete=offer("target"))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(target: str | None, as_json: bool) -> None:
    """List the devices that --target knows, or show what is known about one.

    TARGET is a device such as nano, xavier@8.5 or rtx3080@11.4.

    \b
    Examples:
      trtq targets orin@10.3
      trtq targets
    """
    from trtq.engine.target_table import board_lines, list_targets, reads

    rows = list_targets(target)
    if as_json:
        print_json(rows)
        return
    if target is not None:
        (row,) = rows
        say(f"{row.device}, compute capability {row.capability}")
        say(
            f"  multiplies in FP32, {', '.join(row.formats)}" + (", and has DLA" if row.dla else "")
        )
        say(
            f"  {reads(row)}"
            + (f"; {row.last} is the last release with kernels for it" if row.last else "")
        )
        if row.features:
            say(f"  this release has: {', '.join(row.features)}")
        for line in board_lines(row.name):
            say(f"  {line}")
        say(
            "  built "
            f"{'here, without that GPU (TensorRT-RTX), or there' if row.here else 'on that device'}"
        )
        return
    width = max(len(r.name) for r in rows)
    say(f"{'target':{width}}  {'SM':>5}  {'TensorRT':8}  {'formats':25}  device")
    for row in rows:
        formats = ", ".join(row.formats)
        say(
            f"{row.name:{width}}  {row.capability:>5}  {row.tensorrt or 'any':8}  {formats:25}  "
            f"{row.device}"
        )
    from trtq.cost.devices import devices

    say(
        "latencies are predicted for (trtq cost --device NAME, --budget latency@NAME=3ms): "
        f"{', '.join(devices())}"
    )
