"""``trtq run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtq.cli.display import ConsoleProgress, print_json, print_record
from trtq.cli.options import PathText
from trtq.cli.tracked import done, log_run, mlflow_option
from trtq.errors import UsageError
from trtq.files import REPORT_HTML
from trtq.one_verb import RESULT, OneVerb, read_one_verb
from trtq.recipe import read_toml, recipe_of
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.pipeline import StageResult


@click.command("run")
@click.argument("recipe", metavar="RECIPE", type=PathText())
@click.option("--dry-run", is_flag=True, help="Say which stages would run, and why; do nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print what happened to each stage as JSON; no progress.",
)
@mlflow_option
def command(recipe: str, dry_run: bool, as_json: bool) -> int:
    """Run quantize, finetune, evaluate, build, bench and report as RECIPE (a TOML file) says.

    A stage whose inputs and files have not changed is skipped; an interrupted run continues where
    it stopped. A file with the table of one other verb ([search], [fleet]) does that verb. Exit
    code 3: the figures of a stage are not valid.

    \b
    Examples:
      trtq run recipe.toml --dry-run
      trtq run recipe.toml

    \b
    A recipe:
      out = "runs/resnet18"
      [quantize]
      model = "timm:resnet18"
      checkpoint = "resnet18.safetensors"
      data = "images/train"
      [evaluate]
      data = "images/val"
      [[build]]
      target = "rtx4090"
      [bench]
    """
    return run_recipe(Path(recipe), dry_run=dry_run, as_json=as_json)


def run_recipe(recipe: Path, *, dry_run: bool = False, as_json: bool = False) -> int:
    """Run the chain of a recipe file and return the exit code.

    Prints what happened, the tables and the path of the report.

    Args:
        recipe: the TOML file.
        dry_run: only say which stages would run, and why.
        as_json: print what happened to each stage as JSON alone.

    Returns:
        0, or 3 where the figures of a stage are not valid.

    Raises:
        TrtqError: a stage failed.
    """
    tables = read_toml(recipe)
    alone = read_one_verb(tables, recipe)
    if alone is not None:
        return _run_alone(alone, recipe, dry_run=dry_run, as_json=as_json)
    parsed = recipe_of(tables, recipe)
    from trtq.pipeline import run

    with ConsoleProgress(quiet=as_json) as progress:
        results = run(parsed, progress, dry_run=dry_run)
    code = 0 if all(r.valid for r in results) else 3
    if not dry_run:
        log_run(parsed, valid=code == 0)
    if as_json:
        print_json([_row(r) for r in results])
        return code
    for result in results:
        _show(result, dry_run=dry_run)
    if not dry_run:
        from trtq.report.tables import print_tables

        print_tables(Path(parsed.out))
        say(f"Report: {(Path(parsed.out) / REPORT_HTML).resolve()}")
    return code


def _run_alone(alone: OneVerb, file: Path, *, dry_run: bool, as_json: bool) -> int:
    """Do the one verb of a file and return the exit code of that verb."""
    if dry_run:
        raise UsageError(
            f"Cannot say what {file} would do",
            f"it has no stages, only [{alone.verb.name}]",
            f"Leave --dry-run out, or look at trtq {alone.verb.name} --help",
        )
    with ConsoleProgress(quiet=as_json) as progress:
        record = done(alone.run(progress))
    if not as_json:
        say(RESULT)
    print_record(record, as_json=as_json)
    good = getattr(record, "valid", True) and getattr(record, "met", True)
    return 1 if getattr(record, "failed", None) else 0 if good else 3


def _row(result: StageResult) -> dict[str, str | bool]:
    return {
        "stage": result.name,
        "ran": result.ran,
        "why": result.why,
        "summary": result.summary,
        "valid": result.valid,
    }


def _show(result: StageResult, *, dry_run: bool) -> None:
    verb = "skipped" if not result.ran else "would run" if dry_run else "ran"
    again = "" if result.ran else ": remove its files to run it again"
    doubt = "" if result.valid else f"; NOT VALID{again}"
    say(f"{result.name}: {verb} ({result.why}){doubt}")
    if result.name != "report":
        for line in result.summary.splitlines():
            say(f"    {line}")
