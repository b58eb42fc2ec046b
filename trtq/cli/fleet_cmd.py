"""``trtq fleet``."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from trtq.cli.deploy_cmd import onnx_of
from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.files import FLEET_HTML
from trtq.specs import FleetSpec


@click.group("fleet")
def command() -> None:
    """Deploy to several boards and tabulate their figures.

    The table has load time, latency and memory per model and device.

    \b
    Examples:
      trtq fleet deploy recipe.toml --devices nano,xavier,orin
      trtq fleet bench
    """


def _run(values: dict[str, Any], *, as_json: bool, needs_model: bool) -> int:
    merged = collect(FleetSpec, values)
    if needs_model:
        require(merged, ("model",), "fleet deploy", "model")
    spec = FleetSpec.make(merged)
    from trtq.commands.fleet import fleet

    with ConsoleProgress(quiet=as_json) as progress:
        onnx_files = tuple(onnx_of(m, progress) for m in spec.model)
        record = done(fleet(msgspec.structs.replace(spec, model=onnx_files), progress))
    print_record(record, as_json=as_json, lines=[f"Table: {spec.out}/{FLEET_HTML}"])
    return 1 if record.failed else 0 if record.valid else 3


@command.command("deploy", cls=Sectioned)
@spec_options(FleetSpec, argument="model")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def deploy(as_json: bool, **values: Any) -> int:
    """Build and measure each MODEL on all devices at once.

    A failure on one device does not affect the others. Exit code 1: one failed.

    \b
    Examples:
      trtq fleet deploy out/model.qdq.onnx --devices nano,orin
      trtq fleet deploy recipe.toml --power-mode MAXN --energy
    """
    return _run(values, as_json=as_json, needs_model=True)


@command.command("bench", cls=Sectioned)
@spec_options(FleetSpec, argument="model")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def bench(as_json: bool, **values: Any) -> int:
    """Print the table for the available devices.

    Without MODEL, it covers every engine on them.

    \b
    Examples:
      trtq fleet bench
      trtq fleet bench out/model.qdq.onnx --devices orin --duration 10
    """
    return _run(values, as_json=as_json, needs_model=False)
