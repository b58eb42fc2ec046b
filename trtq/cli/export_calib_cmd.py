"""``trtq export-calib``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_record
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import ExportCalibSpec


@click.command("export-calib", cls=Sectioned)
@spec_options(ExportCalibSpec, argument="onnx", required=("target", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> None:
    """Write the ranges of the Q/DQ file ONNX as a calibration cache.

    The cache is for implicit INT8 on TensorRT up to 10.16.

    \b
    Examples:
      trtq export-calib out/model.qdq.onnx --target xavier@8.5 --out out/calibration.cache
      trtq export-calib out/model.qdq.onnx --target xavier@8.5 --release-number 8502 \\
        --out out/calibration.cache
    """
    merged = collect(ExportCalibSpec, values)
    require(merged, ("onnx", "target", "out"), "export-calib", "onnx")
    spec = ExportCalibSpec.make(merged)
    from trtq.commands.calibration import export_calib

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(export_calib(spec, progress))
    print_record(record, as_json=as_json, lines=record.leftovers)
