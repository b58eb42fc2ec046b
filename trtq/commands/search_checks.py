"""What a search refuses before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from trtq.commands.pricing import require_kernels
from trtq.cost.devices import find_device
from trtq.errors import UsageError, suggest
from trtq.quant.formats import BitConfig
from trtq.search.budgets import LATENCY, NAMES, latency_devices, parse_budgets
from trtq.specs import SearchSpec
from trtq.workers import Workers

LOWEST = 2.0  # percent: a smaller --min-accuracy is a slip


def check_search(spec: SearchSpec, options: Sequence[BitConfig]) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageError: names what contradicts what.
    """
    _check_models(spec)
    _check_goals(spec)
    if Workers.from_environment().world > 1:
        raise UsageError(
            "trtq search runs in one process",
            "torchrun started several",
            "Share the analysis, torchrun ... -m trtq analyze: a search with the same settings "
            "takes its pieces up",
        )
    parse_budgets(spec.budget)
    for device in latency_devices(spec.budget):
        find_device(device)
    if spec.target:
        require_kernels(options, spec.target)


def _check_models(spec: SearchSpec) -> None:
    if bool(spec.model) == bool(spec.candidates):
        raise UsageError(
            "trtq search needs a MODEL or --candidates",
            "it got both" if spec.model else "it got neither",
        )
    if spec.checkpoint_key and not (spec.checkpoint or any("=" in c for c in spec.candidates)):
        raise UsageError("--checkpoint-key needs --checkpoint", "it names a part of that file")
    if spec.candidates and spec.checkpoint:
        raise UsageError(
            "--checkpoint does not go with --candidates", hint="Write each as MODEL=CHECKPOINT"
        )


def _check_goals(spec: SearchSpec) -> None:
    if not spec.budget and spec.min_accuracy is None:
        raise UsageError(
            "There is nothing to search for",
            "neither a budget nor an accuracy was given",
            "Add --budget size=0.2",
        )
    if spec.minimize and spec.min_accuracy is None:
        raise UsageError(
            "--minimize needs --min-accuracy",
            "the narrowest widths are always the smallest",
            "Add --min-accuracy -1.0",
        )
    if spec.min_accuracy is not None and 0 < spec.min_accuracy < LOWEST:
        raise UsageError(
            f"--min-accuracy {spec.min_accuracy:g} would be {spec.min_accuracy:g} %",
            "above 0 it is a percentage of right answers",
            f"Write {-spec.min_accuracy:g} for points against the float model, or a percentage "
            "such as 76",
        )
    wanted = (spec.minimize or "").lower()
    if wanted and wanted not in NAMES and not wanted.startswith(f"{LATENCY}@"):
        raise UsageError(
            f"Cannot minimize {spec.minimize!r}",
            f"known are {', '.join(NAMES)}, {LATENCY}@DEVICE",
            suggest(wanted, NAMES),
        )
