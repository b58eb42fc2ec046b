"""``trtq doctor``."""

from __future__ import annotations

import click

from trtq.cli.display import print_json
from trtq.terminal import say


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def command(as_json: bool) -> None:
    """Show the versions, devices and sensors found here.

    Missing parts are listed with their use and how to get them.

    \b
    Examples:
      trtq doctor
      trtq doctor --json
    """
    from trtq.commands.doctor import doctor

    checks = doctor()
    if as_json:
        print_json(checks)
        return
    width = max(len(c.name) for c in checks)
    for check in checks:
        state = check.found or f"missing: needed for {check.needed_for}; {check.mend}"
        say(f"{check.name:<{width}}  {state}{f'; {check.note}' if check.note else ''}")
