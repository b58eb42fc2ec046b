"""``trtq allocate``: from an analysis and budgets to a width for every layer."""

from __future__ import annotations

import math
from pathlib import Path

from trtq.artifact import check_record, read_json
from trtq.cost.profile import read_factors
from trtq.errors import ArtifactError, UsageError
from trtq.flow.allocate import decide
from trtq.flow.pricing import Pricing
from trtq.progress import Silent
from trtq.quant.formats import FP16
from trtq.records.allocate import AllocateRecord
from trtq.records.analyze import AnalyzeRecord
from trtq.search.budgets import latency_devices, read_budgets
from trtq.specs import AllocateSpec
from trtq.workspace import Workspace


def read_analysis(path: Path) -> AnalyzeRecord:
    """Return what ``trtq analyze`` wrote.

    Args:
        path: the JSON file.

    Raises:
        ArtifactError: missing, damaged, or something else.
    """
    content = read_json(path, kind="analysis")
    if content.get("verb") != "analyze":
        raise ArtifactError(
            f"{path} holds no analysis",
            f"it is of {content.get('verb', 'something else')}",
            "Make one: trtq analyze ...",
        )
    record = check_record(content, path, AnalyzeRecord, kind="analysis")
    why = _inconsistent(record)
    if why:
        raise ArtifactError(
            f"Cannot use the analysis {path}", why, "Make it again: trtq analyze ..."
        )
    return record


def _inconsistent(analysis: AnalyzeRecord) -> str:
    """Return what in an analysis contradicts the rest of it, "" where nothing does."""
    names = {layer.name for layer in analysis.layers}
    if not analysis.bits or not names:
        return "it has no widths or no layers"
    for layer in analysis.layers:
        strange = next((n for n in layer.group if n not in names), None)
        if strange is not None or layer.name not in layer.group:
            return f"the group of layer {layer.name} is {', '.join(layer.group) or 'empty'}"
        lacking = next((b for b in analysis.bits if b != FP16 and b not in layer.loss), None)
        if lacking is not None:
            return f"layer {layer.name} has no loss at {lacking}"
        if not all(math.isfinite(v) for v in layer.loss.values()):
            return f"a loss of layer {layer.name} is not finite"
    return ""


def allocate(spec: AllocateSpec) -> AllocateRecord:
    """Choose the widths and write them to ``spec.out``.

    Args:
        spec: what was asked for.

    Raises:
        UsageError: a budget that cannot be read or met, a width that was not analysed, a device
            that is not known.
        ArtifactError: the analysis cannot be read, or the file cannot be written.
    """
    path = Path(spec.analysis)
    work = Workspace.for_file(Path(spec.out), Silent(), inputs=[path])
    analysis = read_analysis(path)
    pricing = Pricing(analysis.outline, latency_devices(spec.budget), read_factors(spec.correct))
    budgets = read_budgets(spec.budget, pricing.full())
    if not budgets and spec.strategy in ("greedy", "milp"):
        raise UsageError(
            f"The strategy {spec.strategy} needs a budget", hint="Write it like --budget size=0.15"
        )
    record = decide(spec, analysis, pricing, budgets)
    work.save(record)
    return record
