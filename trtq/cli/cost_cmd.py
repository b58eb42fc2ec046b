"""``trtq cost``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trtq.cli.display import print_json
from trtq.cli.options import collect, require, spec_options
from trtq.cli.sections import Sectioned
from trtq.cli.tracked import done
from trtq.specs import CostSpec
from trtq.terminal import say

if TYPE_CHECKING:
    from trtq.commands.cost import CostRecord, LatencyRecord


@click.command("cost", cls=Sectioned)
@spec_options(CostSpec, argument="model")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def command(as_json: bool, **values: Any) -> None:
    """Count the cost of MODEL for one image, layer by layer.

    Energy and latency are predicted by models of a chip, never measured.

    MODEL is a model as for trtq quantize, or an ONNX file, whose Q/DQ pairs give the widths.

    \b
    Examples:
      trtq cost timm:resnet18 --bits w8a8
      trtq cost out/model.qdq.onnx --device rtx3080 --engine out/rtx3080-int8.engine
    """
    merged = collect(CostSpec, values)
    require(merged, ("model",), "cost", "model")
    spec = CostSpec.make(merged)
    from trtq.commands.cost import cost

    record = done(cost(spec))
    if as_json:
        print_json(record)
        return
    say(record.summary)
    for note in record.notes:
        say(f"  {note}")
    _show_layers(record)
    for what, prediction in (("kernel", record.latency), ("kernel of the plan", record.engine)):
        if prediction is not None:
            _show_kernels(what, prediction)


def _show_layers(record: CostRecord) -> None:
    widest = max([len(r.layer.name) for r in record.rows] or [5])
    say(
        f"{'layer':{widest}}  "
        f"{'kind':8}{'width':>8}{'MACs':>16}{'weights':>12}{'bytes moved':>14}{'energy %':>10}"
    )
    for r in record.rows:
        share = 100 * r.energy / (record.total.energy or 1.0)
        width = f"w{r.weight_bits}a{r.input_bits}"
        counts = f"{r.layer.macs:>16,}{r.layer.weights:>12,}{r.bytes_moved:>14,.0f}"
        say(f"{r.layer.name:{widest}}  {r.layer.kind:8}{width:>8}{counts}{share:>10.2f}")


def _show_kernels(what: str, prediction: LatencyRecord) -> None:
    kernels = prediction.kernels
    widest = max(len(name) for name in (what, *(k.name for k in kernels)))
    say()
    say(f"{what:{widest}}  {'kind':12}{'precision':>10}{'ms, predicted':>15}  bound by")
    for k in kernels:
        say(f"{k.name:{widest}}  {k.kind:12}{k.precision:>10}{k.ms:>15.4f}  {k.bound}")
    for m in prediction.correction.matched if prediction.correction else ():
        say(f"  measured {m.measured:.4f} ms, predicted {m.predicted:.4f}: {m.layer}")
    for note in prediction.notes:
        say(f"  {note}")
    say(
        f"  {prediction.title}, batch {prediction.batch}: {prediction.ms:.3f} ms predicted; "
        f"fitted to {prediction.fitted_to}"
    )
