"""``trtq audit``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import AuditSpec
from trtq.terminal import say


@click.command("audit", cls=Sectioned)
@spec_options(AuditSpec, argument="file", required=("onnx",))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Report the requested and the actual precision of each module of FILE.

    FILE is an engine that trtq built with TensorRT-RTX (no GPU is needed), or TensorRT's own layer
    report. Exit code 1 when a module that asks for INT8 or FP8 computes in something else.

    \b
    Examples:
      trtq audit out/rtx4090.engine --onnx out/model.qdq.onnx
      trtq audit layers.json --onnx out/model.qdq.onnx --target xavier@8.5
    """
    merged = collect(AuditSpec, values)
    require(merged, ("file", "onnx"), "audit", "file")
    from trtq.commands.audit import audit

    record = done(audit(AuditSpec.make(merged)))
    if as_json:
        print_json(record)
    else:
        for m in record.modules:
            if m.requested not in ("float", m.actual):
                actual = m.actual or "no layer names it"
                say(f"{m.node}: asked for {m.requested}, {actual}{f'; {m.why}' if m.why else ''}")
        for line in record.notes:
            say(f"  {line}")
        say(record.summary)
    click.get_current_context().exit(0 if record.passed else 1)
