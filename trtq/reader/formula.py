"""Activations as formulas: which polynomials of x and of a gate of x they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Power = tuple[int, int]  # of x and of the gate
Polynomial = Mapping[Power, float]
X: Power = (1, 0)
GATED_X: Power = (1, 1)
GATE: Power = (0, 1)
ONE: Power = (0, 0)


@dataclass(frozen=True, slots=True)
class Formula:
    """One way to write an activation: a polynomial of x and of a gate.

    The gate is a function of another polynomial of x. For example, x * Sigmoid(x) is ``inner`` {x:
    1}, ``gates`` (Sigmoid,), ``outer`` {gate * x: 1}.

    Attributes:
        op_type: of the activation.
        gates: op types of the function inside, in order.
        inner: what the gate is taken of; coefficients by (power of x, power of the gate).
        outer: the result, of x and the gate.
        where: what the first gate's attributes must be.
        attributes: of the activation.
    """

    op_type: str
    gates: tuple[str, ...]
    inner: Polynomial
    outer: Polynomial
    where: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, str | float] = field(default_factory=dict)


_TANH = math.sqrt(2 / math.pi)
_HALVES = {X: 0.5, GATED_X: 0.5}
_SAME = {X: 1.0}
_PRODUCT = {GATED_X: 1.0}
_SIXTH = {"alpha": 1 / 6, "beta": 0.5}
_TO_SIX, _TO_ONE = {"min": 0.0, "max": 6.0}, {"min": 0.0, "max": 1.0}
_MOVED, _SHRUNK = {X: 1.0, ONE: 3.0}, {X: 1 / 6, ONE: 0.5}
FORMULAS = (
    Formula("Gelu", ("Erf",), {X: math.sqrt(0.5)}, _HALVES),
    Formula(
        "Gelu",
        ("Tanh",),
        {X: _TANH, (3, 0): _TANH * 0.044715},
        _HALVES,
        attributes={"approximate": "tanh"},
    ),
    Formula("Swish", ("Sigmoid",), _SAME, _PRODUCT),
    Formula("Mish", ("Softplus", "Tanh"), _SAME, _PRODUCT),
    Formula("HardSwish", ("HardSigmoid",), _SAME, _PRODUCT, where=_SIXTH),
    Formula("HardSwish", ("Clip",), _MOVED, {GATED_X: 1 / 6}, where=_TO_SIX),
    Formula("HardSwish", ("Clip",), _SHRUNK, _PRODUCT, where=_TO_ONE),
    Formula("HardSigmoid", ("Clip",), _MOVED, {GATE: 1 / 6}, where=_TO_SIX, attributes=_SIXTH),
    Formula("HardSigmoid", ("Clip",), _SHRUNK, {GATE: 1.0}, where=_TO_ONE, attributes=_SIXTH),
)
GATES = tuple(dict.fromkeys(f.gates[0] for f in FORMULAS))
