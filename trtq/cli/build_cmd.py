"""``trtq build``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, counted, print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import BuildSpec
from trtq.terminal import say


@click.command("build", cls=Sectioned)
@spec_options(BuildSpec, argument="onnx", required=("out",))
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the one command line (trtexec) or the Python that would build it; build nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(as_json: bool, dry_run: bool, **values: Any) -> None:
    """Build a TensorRT engine from ONNX for a device, on this machine.

    Some backends do not need that device.

    \b
    Examples:
      trtq build out/model.qdq.onnx --target rtx4090 --out engines/rtx4090.engine
      trtq build out/model.qdq.onnx --target xavier@8.5 --backend trtexec \\
        --dry-run --out xavier.engine
    """
    merged = collect(BuildSpec, values)
    require(merged, ("onnx", "out"), "build", "onnx")
    spec = BuildSpec.make(merged)
    if not dry_run:
        from trtq.engine.worker_process import start_early

        start_early(spec)
    from trtq.engine import build as builder

    with ConsoleProgress(quiet=as_json) as progress:
        if dry_run:
            say(builder.dry_run(spec, progress), lines=True)
            return
        manifest = done(builder.build(spec, progress), spec)
    if as_json:
        print_json(manifest)
    else:
        say(f"{spec.out}: {manifest.summary}")
        for row in manifest.coverage.short[:5] if manifest.coverage is not None else ():
            say(f"  in float: {row.node}{f' ({row.why})' if row.why else ''}")
        for line in counted(manifest.builder_log)[:5]:
            say(f"  builder: {line}")
