"""``trtq package``."""

from __future__ import annotations

from typing import Any

import click

from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import PathText, collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.errors import UsageError
from trtq.specs import PackageSpec
from trtq.terminal import say


@click.command("package", cls=Sectioned)
@spec_options(PackageSpec, argument="file", required=("for_", "out"))
@click.option(
    "--check",
    "check",
    type=PathText(),
    metavar="FOLDER",
    help="Only compare a package with its record; exit code 1 where a file was altered, is missing "
    "or was added.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, check: str | None, **values: Any) -> None:
    """Write a folder that a consumer of FILE starts from.

    FILE is an engine with its manifest, or an ONNX file. Inputs, outputs, preprocessing, classes
    and the batch follow from it.

    \b
    Examples:
      trtq package out/rtx4090.engine --for python --for onnxruntime --out package
      trtq package out/model.qdq.onnx --for triton --for deepstream --out serve
      trtq package --check serve
    """
    merged = collect(PackageSpec, values)
    if check is not None:
        _check(check, merged, as_json=as_json)
        return
    require(merged, ("file", "for_", "out"), "package", "file")
    from trtq.commands.package import package

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(package(PackageSpec.make(merged), progress))
    if as_json:
        print_json(record)
    else:
        say(f"{merged['out']}: {record.summary}")


def _check(folder: str, other: dict[str, Any], *, as_json: bool) -> None:
    """Print what is wrong with a package."""
    if other:
        raise UsageError(
            "trtq package --check takes nothing else",
            f"{', '.join(other)} is given, too",
            f"trtq package --check {folder}",
        )
    from pathlib import Path

    from trtq.package.check import check_package

    checked = check_package(Path(folder))
    if as_json:
        print_json({"whole": checked.whole, "wrong": checked.lines})
    else:
        for line in checked.lines:
            say(line)
        wrong = len(checked.lines)
        state = (
            f"{wrong} file{' is' if wrong == 1 else 's are'} not as recorded" if wrong else "whole"
        )
        say(f"{folder}: {checked.record.summary}; {state}")
    click.get_current_context().exit(0 if checked.whole else 1)
