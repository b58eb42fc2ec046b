"""``trtq import-calib``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import ImportCalibSpec


@click.command("import-calib", cls=Sectioned)
@spec_options(ImportCalibSpec, argument="cache", required=("onnx", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Make a Q/DQ file, which TensorRT 11 reads, from an old calibration CACHE and its float ONNX.

    \b
    Examples:
      trtq import-calib calibration.cache --onnx model.onnx --out out
      trtq import-calib yolo.cache --onnx yolo.onnx --json --out yolo
    """
    merged = collect(ImportCalibSpec, values)
    require(merged, ("cache", "onnx", "out"), "import-calib", "cache")
    spec = ImportCalibSpec.make(merged)
    from trtq.commands.calibration import import_calib

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(import_calib(spec, progress))
    print_record(record, as_json=as_json, lines=record.leftovers)
