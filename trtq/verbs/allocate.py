"""``trtq allocate``: from an analysis and budgets to a width for every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from trtq.artifact import SCHEMA, ensure_writable_dir, environment, read_json, write_json
from trtq.cost.energy import layer_bitops, layer_energy
from trtq.errors import ArtifactError, UsageError, suggest
from trtq.recipe import AllocateSpec
from trtq.search.allocate import STRATEGIES, Choice, summed
from trtq.search.budgets import NAMES, read_budgets
from trtq.search.options import Option, read_option, read_options
from trtq.verbs.allocation import AllocatedLayer, AllocateRecord, FrontPoint
from trtq.verbs.analyze import AnalyzedLayer, AnalyzeRecord

FULL = Option(weight=32, input=32)
MOST_POINTS = 200


def read_analysis(path: Path) -> AnalyzeRecord:
    """Return what ``trtq analyze`` wrote.

    Raises:
        ArtifactError: missing, damaged, or something else.
    """
    held = read_json(path, kind="analysis")
    if held.get("verb") != "analyze":
        raise ArtifactError(f"{path} holds no analysis", f"it is of {held.get('verb', 'something else')}", "Make one: trtq analyze ...")
    try:
        return msgspec.convert(held, AnalyzeRecord)
    except msgspec.ValidationError as exc:
        raise ArtifactError(f"Cannot read the analysis {path}", f"it is damaged or of another version ({exc})", "Make it again") from exc


def layer_cost(layer: AnalyzedLayer, option: Option, budget: str) -> float:
    """Return what a layer costs at a width: bytes of its weight, BitOps, or energy in S1's unit."""
    costs: dict[str, Callable[[], float]] = {
        "size": lambda: layer.cost.weights * option.weight / 8,
        "bitops": lambda: layer_bitops(layer.cost, option.weight, option.input),
        "energy": lambda: layer_energy(layer.cost, option.weight, option.input),
    }
    return costs[budget]()


def totals(analysis: AnalyzeRecord, options: Mapping[str, Option]) -> dict[str, float]:
    """Return the cost of the whole model by budget name, with the given width of every analysed layer."""
    found = {b: sum(layer_cost(layer, options[layer.name], b) for layer in analysis.layers) for b in NAMES}
    found["size"] += analysis.other_bytes
    return found


def make_choices(analysis: AnalyzeRecord, options: Sequence[Option]) -> list[Choice]:
    """Return the groups of layers with their summed losses and costs; staying in float has no loss."""
    by_name, seen, found = {layer.name: layer for layer in analysis.layers}, set[str](), list[Choice]()
    narrowest = min(o for o in options if o.quantized) if any(o.quantized for o in options) else None
    for layer in analysis.layers:
        if layer.name in seen:
            continue
        members = [by_name[n] for n in layer.group]
        seen.update(layer.group)
        found.append(
            Choice(
                name=layer.name, layers=tuple(layer.group),
                sensitivity=sum(m.loss[narrowest.label] for m in members) if narrowest else 0.0,
                loss={o.label: sum(m.loss[o.label] for m in members) if o.quantized else 0.0 for o in options},
                costs={b: {o.label: sum(layer_cost(m, o, b) for m in members) for o in options} for b in NAMES},
            )
        )  # fmt: skip
    return found


def allocate(spec: AllocateSpec) -> AllocateRecord:
    """Choose the widths and write them to ``spec.out``.

    Raises:
        UsageError: a budget that cannot be read or met, a width that was not analysed.
        ArtifactError: the analysis cannot be read, or the file cannot be written.
    """
    analysis = read_analysis(Path(spec.analysis))
    options = _options(spec, analysis)
    full = totals(analysis, dict.fromkeys((layer.name for layer in analysis.layers), FULL))
    budgets = read_budgets(spec.budget, full)
    choices = make_choices(analysis, options)
    limits = {b: v - (analysis.other_bytes if b == "size" else 0) for b, v in budgets.items()}
    if limits.get("size", 1.0) <= 0:
        raise UsageError(
            "The budget size cannot be met",
            f"{analysis.other_bytes / 1e6:.3f} MB of parameters have no width to choose, {budgets['size'] / 1e6:.3f} MB is allowed",
        )
    labels = [o.label for o in options]
    if not budgets and spec.strategy in ("greedy", "milp"):
        raise UsageError(f"The strategy {spec.strategy} needs a budget", mend="Write it like --budget size=0.15")
    done = STRATEGIES[spec.strategy](choices, labels, limits)
    whole = summed(choices, done.options)
    chosen = {n: read_option(done.options[c.name]) for c in choices for n in c.layers}
    step = max(1, -(-len(done.front) // MOST_POINTS))
    fixed = analysis.other_bytes if "size" in budgets else 0
    record = AllocateRecord(
        schema=SCHEMA, verb="allocate", spec=msgspec.to_builtins(spec), model=analysis.model, metric=analysis.metric, budgets=budgets,
        costs=totals(analysis, chosen), full=full, loss=whole.loss,
        layers=[
            AllocatedLayer(name=v.name, option=chosen[v.name].label, loss=v.loss.get(chosen[v.name].label, 0.0), group=v.group)
            for v in analysis.layers
        ],
        front=[FrontPoint(cost=cost + fixed, loss=loss, options=dict(o)) for cost, loss, o in done.front[::-step][::-1]],
        environment=environment(),
    )  # fmt: skip
    ensure_writable_dir(Path(spec.out).parent)
    write_json(Path(spec.out), record)
    return record


def _options(spec: AllocateSpec, analysis: AnalyzeRecord) -> list[Option]:
    options = read_options(spec.bits or analysis.bits)
    for option in options:
        if option.quantized and option.label not in analysis.bits:
            raise UsageError(
                f"The width {option.label} was not analysed", f"{spec.analysis} has {', '.join(analysis.bits)}",
                suggest(option.label, analysis.bits) or f"Run trtq analyze with --bits {option.label}",
            )  # fmt: skip
    return options
