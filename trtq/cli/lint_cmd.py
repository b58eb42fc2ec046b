"""``trtq lint``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import LintSpec
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.export.lint_view import Finding


@click.command("lint", cls=Sectioned)
@spec_options(LintSpec, argument="onnx", required=("target",))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Say what TensorRT would refuse in ONNX, or accept and silently compute in float.

    Works on files of any tool. Exit code 1 when something would not build or not compute in INT8, 0
    otherwise.

    \b
    Examples:
      trtq lint model.onnx --target xavier@8.5 --fix repaired.onnx
      trtq lint out/model.qdq.onnx --target rtx4090@10.13
    """
    merged = collect(LintSpec, values)
    require(merged, ("onnx", "target"), "lint", "onnx")
    from trtq.commands.lint import run_lint

    record = done(run_lint(LintSpec.make(merged)))
    if as_json:
        print_json(record)
    else:
        for f in record.findings:
            say(f"{f.rule} {f.severity:5} {f.where}: {f.why}. {f.mend}{_repair(f)}")
        say(record.summary)
    click.get_current_context().exit(0 if record.passed else 1)


def _repair(finding: Finding) -> str:
    if finding.changes_values:
        return "  [--fix --allow-value-changes]"
    return "  [--fix]" if finding.repairable else ""
