"""Allocation: the width of each layer, from its loss and its costs at each width.

The module computes with plain numbers, no tensors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from trtq.errors import UsageError
from trtq.search.budgets import over, times, within

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Front = Sequence[tuple[float, float, Mapping[str, str]]]
MAX_STATES = 20_000  # of the Pareto front; beyond it one entry a cell remains, at its own true cost
PERCENTILES = (25.0, 75.0)
TIME_OUT = 1  # scipy's status


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A group of layers that share a width.

    Attributes:
        name: of the group: its first layer.
        layers: its members.
        sensitivity: one number for rules that rank; higher needs more bits.
        loss: by option label.
        costs: by budget name, then by option label.
    """

    name: str
    layers: tuple[str, ...]
    sensitivity: float
    loss: Mapping[str, float]
    costs: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The chosen allocation.

    Attributes:
        options: label by group name.
        loss: sum of the groups' losses.
        costs: sum by budget name.
        front: (cost, loss, options) of every Pareto-optimal allocation, by cost; empty unless the
            strategy finds it.
    """

    options: Mapping[str, str]
    loss: float
    costs: Mapping[str, float]
    front: Front = field(default_factory=tuple)


def summed(
    choices: Sequence[Choice],
    options: Mapping[str, str],
    *,
    front: Sequence[tuple[float, float, Mapping[str, str]]] = (),
) -> Allocation:
    """Return the allocation ``options`` with its loss and costs.

    Args:
        choices: every group, with its loss and costs.
        options: label by the name of each group.
        front: kept in the result as it is.
    """
    budgets = choices[0].costs if choices else {}
    return Allocation(
        options=dict(options),
        loss=float(sum(c.loss[options[c.name]] for c in choices)),
        costs={b: float(sum(c.costs[b][options[c.name]] for c in choices)) for b in budgets},
        front=front,
    )


def require_possible(
    choices: Sequence[Choice], budgets: Mapping[str, float], labels: Sequence[str]
) -> None:
    """Raise when a budget cannot be met even at the cheapest widths.

    Args:
        choices: every group, with its costs.
        budgets: absolute limits by name, each in the unit of the costs.
        labels: the candidate widths.

    Raises:
        UsageError: names the budget, the least that is possible, and what is allowed.
    """
    for budget, limit in budgets.items():
        least = sum(min(c.costs[budget][o] for o in labels) for c in choices)
        if over({budget: least}, {budget: limit}):
            raise UsageError(
                f"The budget {budget} cannot be met",
                f"the cheapest widths need {least:.6g}, {limit:.6g} is allowed",
                f"Allow {times(least, limit)} times as much, or offer narrower widths with --bits",
            )


def percentile(
    choices: Sequence[Choice], labels: Sequence[str], budgets: Mapping[str, float]
) -> Allocation:
    """Return the widest of three widths for the 25 % most sensitive groups (S1 eq. 6).

    The 25 % least sensitive groups get the narrowest. S1's Table 3 (6, 9 and 6 of 21 layers; 13, 24
    and 13 of 50) follows only with "at most P25" for the narrowest, where eq. 6 prints "less than".
    The rule takes no budget.

    Args:
        choices: every group; its ``sensitivity`` ranks it.
        labels: exactly three, the narrowest first.
        budgets: must be empty.

    Raises:
        UsageError: not three widths, or a budget was given.
    """
    if len(labels) != len(PERCENTILES) + 1:
        raise UsageError(
            "The percentile rule needs three widths",
            f"it got {len(labels)}: {', '.join(labels)}",
            "Give --bits 4,6,8",
        )
    if budgets:
        raise UsageError(
            "The percentile rule knows no budget",
            f"asked for {', '.join(budgets)}",
            "Use --strategy milp, pareto or greedy",
        )
    scores = np.array([c.sensitivity for c in choices])
    low, high = np.percentile(scores, PERCENTILES)
    picked = [labels[0] if s <= low else labels[2] if s >= high else labels[1] for s in scores]
    return summed(choices, {c.name: o for c, o in zip(choices, picked, strict=True)})


def greedy(
    choices: Sequence[Choice], labels: Sequence[str], budgets: Mapping[str, float]
) -> Allocation:
    """Start at the cheapest widths and widen the groups in order of sensitivity (S2, Alg. 1).

    Each group gets the widest width that all budgets still allow.

    Args:
        choices: every group; its ``sensitivity`` ranks it.
        labels: candidate widths, the narrowest first; they are tried from the last to the first.
        budgets: absolute limits by name.

    Raises:
        UsageError: a budget cannot be met, or several pull the start into different widths.
    """
    require_possible(choices, budgets, labels)

    def share(choice: Choice, label: str) -> float:
        return sum(choice.costs[b][label] / limit for b, limit in budgets.items())

    options = {c.name: min(labels, key=partial(share, c)) for c in choices}
    spent = {b: sum(c.costs[b][options[c.name]] for c in choices) for b in budgets}
    for broken in over(spent, budgets):
        raise UsageError(
            "The greedy strategy finds no start within the budgets",
            f"{broken} needs {spent[broken]:.6g}, {budgets[broken]:.6g} is allowed",
            "Use --strategy milp",
        )
    for c in sorted(choices, key=lambda c: (-c.sensitivity, c.name)):
        for label in reversed(labels):
            after = {b: spent[b] + c.costs[b][label] - c.costs[b][options[c.name]] for b in budgets}
            if within(after, budgets):
                options[c.name], spent = label, after
                break
    return summed(choices, options)


def pareto(
    choices: Sequence[Choice], labels: Sequence[str], budgets: Mapping[str, float]
) -> Allocation:
    """Return the allocation with the least loss within one budget (S4, Algorithm 2).

    The whole Pareto front below it is returned, too.

    The table holds, for each cost, the least loss that reaches it; dominated entries are dropped.
    The front is exact up to 20,000 entries; beyond that one entry remains in each of as many cells,
    the one with the least loss.

    Args:
        choices: every group.
        labels: candidate widths, in any order.
        budgets: one absolute limit by name.

    Raises:
        UsageError: not exactly one budget, or it cannot be met.
    """
    if len(budgets) != 1:
        raise UsageError(
            "The Pareto strategy takes exactly one budget",
            f"it got {len(budgets)}",
            "Use --strategy milp for several",
        )
    ((budget, limit),) = budgets.items()
    require_possible(choices, budgets, labels)
    least = [min(c.costs[budget][o] for o in labels) for c in choices]
    # The subtracted part is what the groups to come still need.
    room = limit * (1 + 1e-9) - np.concatenate([np.cumsum(least[::-1])[::-1][1:], [0.0]])
    costs, losses = np.zeros(1), np.zeros(1)
    parents: list[Indices] = []
    for c, allowed in zip(choices, room, strict=True):
        step_cost = np.array([c.costs[budget][o] for o in labels])
        step_loss = np.array([c.loss[o] for o in labels])
        all_costs = (costs[:, None] + step_cost).ravel()
        all_losses = (losses[:, None] + step_loss).ravel()
        keep = _front(all_costs, all_losses, float(allowed) + 1e-9 * limit)
        costs, losses = all_costs[keep], all_losses[keep]
        parents.append(keep)
    front = []
    for end in range(len(costs)):
        options, i = dict[str, str](), end
        for c, keep in zip(reversed(choices), reversed(parents), strict=True):
            i, which = divmod(int(keep[i]), len(labels))
            options[c.name] = labels[which]
        front.append((float(costs[end]), float(losses[end]), options))
    return summed(choices, front[-1][2], front=front)


def _front(costs: Floats, losses: Floats, limit: float) -> Indices:
    """Return the indices of the non-dominated entries, by rising cost and falling loss."""
    order: Indices = np.lexsort((losses, costs))
    order = order[costs[order] <= limit]
    best = np.minimum.accumulate(losses[order])
    kept: Indices = order[np.concatenate([[True], losses[order][1:] < best[:-1]])]
    if len(kept) > MAX_STATES:
        # The last entry of each cell of the grid: the least loss there, at its own true cost.
        cells = np.ceil(costs[kept] / (costs[kept[-1]] / MAX_STATES))
        last = np.concatenate([cells[1:] != cells[:-1], [True]])
        last[0] = True  # the cheapest remains: it is what a tight budget needs
        kept = kept[last]
    return kept


def mixed_integer(
    choices: Sequence[Choice], labels: Sequence[str], budgets: Mapping[str, float]
) -> Allocation:
    """Return the allocation with the least total loss under any set of budgets.

    It is solved by mixed-integer linear programming (HiGHS). Among allocations of equal loss the
    one with the lower cost wins: a millionth of the loss range is spent on it.

    Args:
        choices: every group.
        labels: candidate widths, in any order.
        budgets: absolute limits by name; at least one.

    Raises:
        UsageError: a budget cannot be met, alone or together with the others.
        UsageError: there is no proven answer after 60 s.
    """
    require_possible(choices, budgets, labels)
    loss = np.array([[c.loss[o] for o in labels] for c in choices])
    costs = {b: np.array([[c.costs[b][o] for o in labels] for c in choices]) for b in budgets}
    one_each = np.kron(np.eye(len(choices)), np.ones(len(labels)))
    rows = [LinearConstraint(one_each, 1, 1)]
    for budget, table in costs.items():
        share = (table / budgets[budget]).ravel()[None, :]
        rows.append(LinearConstraint(share, -np.inf, 1.0))
    with _quiet_stdout():
        solution = milp(
            _objective(loss, list(costs.values())).ravel(),
            constraints=rows,
            integrality=np.ones(loss.size),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "time_limit": 60.0},
        )
    if solution.status == TIME_OUT:
        raise UsageError(
            "The integer program found no proven answer in 60 s",
            f"{len(choices)} groups at {len(labels)} widths",
            "Use --strategy greedy",
        )
    if solution.x is None:
        raise UsageError(
            "The budgets cannot be met together",
            f"each alone is possible: {', '.join(f'{b} <= {v:.6g}' for b, v in budgets.items())}",
            "Loosen one of them, or offer narrower widths with --bits",
        )
    picked = solution.x.reshape(loss.shape).argmax(axis=1)
    return summed(choices, {c.name: labels[i] for c, i in zip(choices, picked, strict=True)})


def _objective(loss: Floats, costs: Sequence[Floats]) -> Floats:
    """Return the loss in units of its range, and a millionth of the costs that breaks ties."""
    spread = float(np.ptp(loss, axis=1).sum()) or 1.0
    tie = np.zeros_like(loss)
    for table in costs:
        tie = tie + table / max(float(table.max(axis=1).sum()), 1e-30)
    result: Floats = loss / spread + 1e-6 * tie / max(len(costs), 1)
    return result


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Redirect the lines that HiGHS prints with all options: stdout may be a record."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


Strategy = Callable[[Sequence[Choice], Sequence[str], Mapping[str, float]], Allocation]
STRATEGIES: Mapping[str, Strategy] = {
    "percentile": percentile,
    "greedy": greedy,
    "pareto": pareto,
    "milp": mixed_integer,
}
