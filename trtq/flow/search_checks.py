"""Checks of a search before long work."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trtq.cost.devices import find_device
from trtq.data.samples import Samples
from trtq.errors import UsageError, suggest
from trtq.flow.pricing import require_kernels
from trtq.quant.formats import BitConfig
from trtq.search.budgets import LATENCY, NAMES, latency_devices, parse_budgets
from trtq.specs import SearchOptions
from trtq.workers import Workers

LOWEST = 2.0  # percent: a smaller --min-accuracy is a slip


def check_search(options: SearchOptions, widths: Sequence[BitConfig]) -> None:
    """Refuse what contradicts itself.

    Args:
        options: the goals and how to search.
        widths: candidate widths.

    Raises:
        UsageError: names what contradicts what.
    """
    _check_goals(options)
    if Workers.from_environment().world > 1:
        raise UsageError(
            "trtq search runs in one process",
            "torchrun started several",
            "Share the analysis, torchrun ... -m trtq analyze: a search with the same settings "
            "takes its pieces up",
        )
    parse_budgets(options.budget)
    for device in latency_devices(options.budget):
        find_device(device)
    if options.target:
        require_kernels(widths, options.target)


def require_labels(scored: Samples, options: SearchOptions, *, several: bool) -> None:
    """Refuse samples without targets where the goals need some.

    Args:
        scored: what accuracy is measured on.
        options: the goals.
        several: whether models are compared.

    Raises:
        UsageError: names the samples.
    """
    if scored.has_targets:
        return
    if options.min_accuracy is not None and options.min_accuracy > 0:
        raise UsageError(
            f"Cannot hold an accuracy of {options.min_accuracy:g} %",
            f"{scored.name} has no labels",
            "Give points against the float model, such as --min-accuracy -1.0: without "
            "labels that is agreement",
        )
    if several:
        raise UsageError(
            "Cannot compare --candidates",
            f"{scored.name} has no labels: each would agree with its own float model",
            "Give labelled images with --val",
        )


def require_left(data: Samples, options: SearchOptions) -> None:
    """Refuse samples of which calibration leaves none to measure accuracy on.

    Args:
        data: that calibration takes from.
        options: how many it takes.

    Raises:
        UsageError: names both numbers.
    """
    if len(data) <= options.calib_images:
        raise UsageError(
            f"No image of {data.name} is left to measure accuracy on",
            f"it has {len(data)} images, and calibration takes "
            f"{min(len(data), options.calib_images)}",
            "Give others with --val, or fewer --calib-images",
        )


def _check_goals(options: SearchOptions) -> None:
    _check_floor(options)
    if not options.budget and not options.keeps_score:
        raise UsageError(
            "There is nothing to search for",
            "neither a budget nor an accuracy was given",
            "Add --budget size=0.2",
        )
    if options.minimize and not options.keeps_score:
        raise UsageError(
            "--minimize needs --min-accuracy or --min-score",
            "the narrowest widths are always the smallest",
            "Add --min-accuracy -1.0",
        )
    wanted = (options.minimize or "").lower()
    if wanted and wanted not in NAMES and not wanted.startswith(f"{LATENCY}@"):
        raise UsageError(
            f"Cannot minimize {options.minimize!r}",
            f"known are {', '.join(NAMES)}, {LATENCY}@DEVICE",
            suggest(wanted, NAMES),
        )


def _check_floor(options: SearchOptions) -> None:
    """Refuse several scores to keep, and invalid values."""
    if options.min_score and options.min_accuracy is not None:
        raise UsageError("--min-score does not go with --min-accuracy", "both name a score to keep")
    if len(options.min_score) > 1:
        raise UsageError(
            f"Cannot keep the scores {' and '.join(options.min_score)}",
            "a search keeps one score",
            "Give one --min-score",
        )
    for name, value in options.min_score.items():
        if not math.isfinite(value):
            raise UsageError(
                f"Cannot use --min-score {name}={value:g}",
                "expected a number",
                f"Write {name}=-1.0 for points against the float model",
            )
    if options.min_accuracy is not None and 0 < options.min_accuracy < LOWEST:
        raise UsageError(
            f"--min-accuracy {options.min_accuracy:g} would be {options.min_accuracy:g} %",
            "above 0 it is a percentage of right answers",
            f"Write {-options.min_accuracy:g} for points against the float model, or a percentage "
            "such as 76",
        )
