"""``trtq deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.progress import Progress
from trtq.recipe import load_recipe
from trtq.specs import DeploySpec


@click.command("deploy", cls=Sectioned)
@spec_options(DeploySpec, argument="model", first="device")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> int:
    """Build MODEL on DEVICE, measure it there, and keep the engine there with its manifest.

    Nothing unchanged is sent, built or measured again. Exit code 3:
    measured, but not valid.

    \b
    Examples:
      trtq deploy nano recipe.toml
      trtq deploy orin out/model.qdq.onnx --power-mode MAXN --lock-clocks --energy --data images/val
    """
    merged = collect(DeploySpec, values)
    require(merged, ("device", "model"), "deploy", "model")
    spec = DeploySpec.make(merged)
    from trtq.commands.deploy import deploy
    from trtq.deploy.devices import find_device

    with ConsoleProgress(quiet=as_json) as progress:
        find_device(spec.device)  # before minutes of quantizing
        if spec.model.endswith(".toml"):
            from trtq.pipeline import deploy_recipe

            record = deploy_recipe(load_recipe(Path(spec.model)), spec, progress)
        else:
            record = done(deploy(spec, progress))
    missing = {
        f"n/a: {name}: {why}" for row in record.rows for name, why in row.unavailable.items()
    }
    notes = [n for row in record.rows for n in row.notes]
    print_record(
        record,
        as_json=as_json,
        lines=[
            *dict.fromkeys(notes),
            *sorted(missing),
            f"{record.sent} bytes sent, {record.received} received",
        ],
    )
    return 0 if record.valid else 3


def onnx_of(model: str, progress: Progress) -> str:
    """Return an ONNX file: of a recipe, the Q/DQ file that its chain makes.

    Args:
        model: an ONNX file or a recipe.
        progress: receives what the chain reports.

    Raises:
        TrtqError: the recipe cannot be read, or a stage of it fails.
    """
    if not model.endswith(".toml"):
        return model
    recipe = load_recipe(Path(model))
    from trtq.pipeline import ready

    return str(ready(recipe, progress))
