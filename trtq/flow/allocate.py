"""From an analysis and budgets to a width for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtq.artifact import environment, header
from trtq.errors import UsageError, suggest
from trtq.flow.pricing import Pricing, require_kernels, require_on_devices
from trtq.quant.formats import BitConfig, read_options
from trtq.records.allocate import AllocatedLayer, AllocateRecord, Alternative, FrontPoint
from trtq.records.analyze import AnalyzeRecord
from trtq.search.allocate import STRATEGIES, Choice, summed
from trtq.specs import AllocateOptions

MOST_POINTS = 200


def make_choices(
    analysis: AnalyzeRecord, pricing: Pricing, options: Sequence[BitConfig]
) -> list[Choice]:
    """Return the groups of layers with their summed losses and costs.

    Staying in float has no loss.

    Args:
        analysis: losses of the layers, and which of them belong together.
        pricing: of the same model.
        options: candidate widths.

    Returns:
        One for each group, in the order of the layers; losses and costs by the label of a width.
    """
    by_name, seen, choices = (
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
        choices.append(
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
    return choices


def decide(
    allocate_options: AllocateOptions,
    analysis: AnalyzeRecord,
    pricing: Pricing,
    budgets: Mapping[str, float],
) -> AllocateRecord:
    """Return the allocation of a strategy under absolute budgets.

    Args:
        allocate_options: the strategy, the candidate widths, the target; its own budgets are not
            read.
        analysis: losses and costs of the layers.
        pricing: of the same model.
        budgets: absolute limits, by name.

    Raises:
        UsageError: a budget that cannot be met, or a width that was not analysed or that the target
            cannot run.
    """
    options = offered(allocate_options, analysis)
    require_on_devices(options, (d.name for d in pricing.devices.values()))
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
                f"{shown(budget, rest)} is needed by {what}, {shown(budget, budgets[budget])} is "
                "allowed",
            )
    done = STRATEGIES[allocate_options.strategy](
        choices, labels, {b: v - fixed[b] for b, v in budgets.items()}
    )
    chosen = {n: BitConfig.parse(done.options[c.name]) for c in choices for n in c.layers}
    step = max(1, -(-len(done.front) // MOST_POINTS))
    return AllocateRecord(
        **header("allocate", allocate_options),
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
    layers = []
    for layer in analysis.layers:
        choice = by_layer[layer.name]
        option = picked[choice.name]
        at = labels.index(option)
        layers.append(
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
    return layers


def _alternative(choice: Choice, taken: str, other: str) -> Alternative:
    costs = {b: by_option[other] - by_option[taken] for b, by_option in choice.costs.items()}
    return Alternative(option=other, loss=choice.loss[other] - choice.loss[taken], costs=costs)


def offered(allocate_options: AllocateOptions, analysis: AnalyzeRecord) -> list[BitConfig]:
    """Return the candidate widths, narrowest first: those asked for, or all that were analysed.

    Args:
        allocate_options: its widths, and the target.
        analysis: of the model.

    Raises:
        UsageError: one was not analysed, or the target has no kernels for it.
    """
    options = read_options(allocate_options.bits or analysis.bits)
    for option in options:
        if option.quantized and option.label not in analysis.bits:
            raise UsageError(
                f"The width {option.label} was not analysed",
                f"the analysis has {', '.join(analysis.bits)}",
                suggest(option.label, analysis.bits)
                or f"Run trtq analyze with --bits {option.label}",
            )
    if allocate_options.target:
        require_kernels(options, allocate_options.target)
    return options


def shown(budget: str, value: float) -> str:
    """Return a cost with its unit, for a person.

    Args:
        budget: ``size``, ``bitops``, ``energy`` or ``latency@DEVICE``.
        value: bytes, BitOps, energy in 32-bit MACs (S1 eq. 7), or milliseconds.

    >>> shown("size", 2_500_000.0), shown("size", 54_224.0), shown("latency@orin", 1.25)
    ('2.5 MB', '54.22 kB', '1.25 ms')
    >>> shown("bitops", 3e9), shown("energy", 2e6)
    ('3e+09 BitOps', '2e+06 32-bit MACs')
    """
    if budget == "size":
        return f"{value / 1e6:.4g} MB" if value >= 1e6 else f"{value / 1e3:.4g} kB"
    unit = {"bitops": "BitOps", "energy": "32-bit MACs"}.get(budget, "ms")
    return f"{value:.4g} {unit}"
