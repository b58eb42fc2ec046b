"""``trtq search``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trtq.artifact import size_words
from trtq.cli.display import ConsoleProgress, print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import SearchSpec
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.records.search import SearchRecord


@click.command("search", cls=Sectioned)
@spec_options(SearchSpec, argument="model", required=("data", "out"))
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON; no progress.")
def command(as_json: bool, **values: Any) -> int:
    """Find widths of MODEL that meet every budget and keep its accuracy.

    Both are verified on the exported file.

    Analyzes, allocates, quantizes and evaluates, then tightens or loosens. OUT holds the chosen
    model with its records, search.json, frontier.json and report.html. Exit code 3: finished, and a
    constraint does not hold; the record says how far it was missed.

    \b
    Examples:
      trtq search timm:resnet18 --checkpoint r18.safetensors --data images/train --val images/val \\
        --budget size=0.15 --budget latency@xavier=6ms --min-accuracy -1.0 --out out
      trtq search --candidates timm:mobilevitv2_050=a.pt,timm:mobilevitv2_075=b.pt \\
        --data images --budget size=2MB --out out
    """
    merged = collect(SearchSpec, values)
    require(merged, ("data", "out"), "search", "model")
    spec = SearchSpec.make(merged)
    from trtq.commands.search import search

    with ConsoleProgress(quiet=as_json) as progress:
        record = done(search(spec, progress))
    if as_json:
        print_json(record)
    else:
        _show(record)
        say(f"  {spec.out}")
    return 0 if record.met else 3


def _show(record: SearchRecord) -> None:
    say(record.summary)
    for c in record.constraints:
        state = "holds" if c.met else "DOES NOT HOLD"
        needed = f"; needs {c.needed}" if c.needed and not c.met else ""
        say(f"  {c.name}: {c.got}; asked for {c.allowed}: {state}{needed}")
    widest = max(len(t.label) for t in record.tries)
    say(f"{'':{widest}}{'size':>9}{'energy':>9}{'accuracy':>11}{'points':>9}  widths")
    full = record.reference.costs
    for t in record.tries:
        ratios = "".join(f"{t.costs[name] / full[name]:>9.4f}" for name in ("size", "energy"))
        widths = " ".join(f"{n}x{w}" for w, n in t.widths.items())
        say(f"{t.label:{widest}}{ratios}{t.accuracy:>11.2f}{t.change:>+9.2f}  {widths}")
    say(
        "  sizes count packed codes; the ONNX file stores float weights or 8-bit codes: "
        f"{size_words(record.best.onnx_bytes)}"
    )
