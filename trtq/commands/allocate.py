"""``trtq allocate``: from an analysis and budgets to a width for every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from trtq.artifact import (
    check_record,
    ensure_writable_dir,
    ensure_writable_file,
    environment,
    header,
    read_json,
    write_json,
)
from trtq.commands.pricing import Pricing, require_fp8, require_kernels
from trtq.cost.profile import read_factors
from trtq.errors import ArtifactError, UsageError, suggest
from trtq.quant.formats import FP16, BitConfig, read_options
from trtq.records.allocate import AllocatedLayer, AllocateRecord, Alternative, FrontPoint
from trtq.records.analyze import AnalyzeRecord
from trtq.search.allocate import STRATEGIES, Choice, summed
from trtq.search.budgets import LATENCY, latency_devices, read_budgets
from trtq.specs import AllocateSpec

MOST_POINTS = 200


def read_analysis(path: Path) -> AnalyzeRecord:
    """Return what ``trtq analyze`` wrote.

    Raises:
        ArtifactError: missing, damaged, or something else.
    """
    held = read_json(path, kind="analysis")
    if held.get("verb") != "analyze":
        raise ArtifactError(
            f"{path} holds no analysis",
            f"it is of {held.get('verb', 'something else')}",
            "Make one: trtq analyze ...",
        )
    record = check_record(held, path, AnalyzeRecord, kind="analysis")
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


def make_choices(
    analysis: AnalyzeRecord, pricing: Pricing, options: Sequence[BitConfig]
) -> list[Choice]:
    """Return the groups of layers with their summed losses and costs.

    Staying in float has no loss.
    """
    by_name, seen, found = (
        {layer.name: layer for layer in analysis.layers},
        set[str](),
        list[Choice](),
    )
    narrowest = (
        min(o for o in options if o.quantized) if any(o.quantized for o in options) else None
    )
    for layer in analysis.layers:
        if layer.name in seen:
            continue
        members = [by_name[n] for n in layer.group]
        seen.update(layer.group)
        found.append(
            Choice(
                name=layer.name,
                layers=tuple(layer.group),
                sensitivity=sum(m.loss[narrowest.label] for m in members) if narrowest else 0.0,
                loss={
                    o.label: sum(m.loss[o.label] for m in members) if o.quantized else 0.0
                    for o in options
                },
                costs={
                    b: {o.label: sum(pricing.layer(m.name, o, b) for m in members) for o in options}
                    for b in pricing.names
                },
            )
        )
    return found


def allocate(spec: AllocateSpec) -> AllocateRecord:
    """Choose the widths and write them to ``spec.out``.

    Raises:
        UsageError: a budget that cannot be read or met, a width that was not analysed, a device
            that is not known.
        ArtifactError: the analysis cannot be read, or the file cannot be written.
    """
    out = ensure_writable_file(Path(spec.out), inputs=[Path(spec.analysis)])
    analysis = read_analysis(Path(spec.analysis))
    pricing = Pricing(analysis.outline, latency_devices(spec.budget), read_factors(spec.correct))
    budgets = read_budgets(spec.budget, pricing.full())
    if not budgets and spec.strategy in ("greedy", "milp"):
        raise UsageError(
            f"The strategy {spec.strategy} needs a budget", hint="Write it like --budget size=0.15"
        )
    record = decide(spec, analysis, pricing, budgets)
    ensure_writable_dir(out.parent)
    write_json(out, record)
    return record


def decide(
    spec: AllocateSpec, analysis: AnalyzeRecord, pricing: Pricing, budgets: Mapping[str, float]
) -> AllocateRecord:
    """Return the allocation of ``spec.strategy`` under absolute budgets.

    Raises:
        UsageError: a budget that cannot be met, or a width that was not analysed or that
            ``spec.target`` cannot run.
    """
    options = offered(spec.bits, spec.target, analysis, spec.analysis)
    require_fp8(options, (d.name for d in pricing.devices.values()))
    choices, labels = make_choices(analysis, pricing, options), [o.label for o in options]
    fixed = {b: pricing.fixed(b) for b in budgets}
    for budget, rest in fixed.items():
        if rest >= budgets[budget]:
            what = (
                "parameters that have no width to choose"
                if budget == "size"
                else "what is no layer with a weight"
            )
            raise UsageError(
                f"The budget {budget} cannot be met",
                f"{shown(budget, rest)} goes to {what}, {shown(budget, budgets[budget])} is "
                "allowed",
            )
    done = STRATEGIES[spec.strategy](choices, labels, {b: v - fixed[b] for b, v in budgets.items()})
    chosen = {n: BitConfig.parse(done.options[c.name]) for c in choices for n in c.layers}
    step = max(1, -(-len(done.front) // MOST_POINTS))
    return AllocateRecord(
        **header("allocate", spec),
        model=analysis.model,
        metric=analysis.metric,
        budgets=dict(budgets),
        costs=pricing.totals(chosen),
        full=pricing.full(),
        loss=summed(choices, done.options).loss,
        layers=_layers(analysis, choices, labels, done.options),
        front=[
            FrontPoint(cost=cost + sum(fixed.values()), loss=loss, options=dict(o))
            for cost, loss, o in done.front[::-step][::-1]
        ],
        environment=environment(),
    )


def _layers(
    analysis: AnalyzeRecord,
    choices: Sequence[Choice],
    labels: Sequence[str],
    picked: Mapping[str, str],
) -> list[AllocatedLayer]:
    by_layer = {n: c for c in choices for n in c.layers}
    found = []
    for layer in analysis.layers:
        choice = by_layer[layer.name]
        option = picked[choice.name]
        at = labels.index(option)
        found.append(
            AllocatedLayer(
                name=layer.name,
                option=option,
                loss=layer.loss.get(option, 0.0),
                group=layer.group,
                narrower=_alternative(choice, option, labels[at - 1]) if at else None,
                wider=_alternative(choice, option, labels[at + 1])
                if at + 1 < len(labels)
                else None,
            )
        )
    return found


def _alternative(choice: Choice, taken: str, other: str) -> Alternative:
    costs = {b: by_option[other] - by_option[taken] for b, by_option in choice.costs.items()}
    return Alternative(option=other, loss=choice.loss[other] - choice.loss[taken], costs=costs)


def offered(
    bits: Sequence[str], target: str | None, analysis: AnalyzeRecord, path: str
) -> list[BitConfig]:
    """Return the widths on offer, narrowest first: those asked for, or all that were analysed.

    Raises:
        UsageError: one was not analysed, or ``target`` has no kernels for it.
    """
    options = read_options(bits or analysis.bits)
    for option in options:
        if option.quantized and option.label not in analysis.bits:
            raise UsageError(
                f"The width {option.label} was not analysed",
                f"{path} has {', '.join(analysis.bits)}",
                suggest(option.label, analysis.bits)
                or f"Run trtq analyze with --bits {option.label}",
            )
    if target:
        require_kernels(options, target)
    return options


def shown(budget: str, value: float) -> str:
    """Return a cost with its unit, for a person."""
    if budget == "size":
        return f"{value / 1e6:.4g} MB"
    return f"{value:.4g} ms" if budget.startswith(LATENCY) else f"{value:.4g}"
