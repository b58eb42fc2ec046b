"""The methods there are. To add one to trtq, write its file and add its line here.

Others come from outside, by ``module:name`` or by an entry point of the group ``trtq.methods``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from trtq import extensions
from trtq.errors import UsageError
from trtq.methods.base import Method, MethodContext, Value

# Name: module, and the variable where it is not METHOD. The order is the order they act in. Help
# needs no import of them.
METHODS: Mapping[str, str] = {
    "integer-softmax": "trtq.methods.integer_softmax",
    "balance": "trtq.methods.balance",
    "smooth": "trtq.methods.smooth",
    "awq": "trtq.methods.awq",
    "qads": "trtq.methods.qads",
    "equalize": "trtq.methods.equalize",
    "repq": "trtq.methods.repq",
    "efficientquant": "trtq.methods.efficientquant",
    "attention-percentile": "trtq.methods.ranges:ATTENTION_PERCENTILE",
    "layernorm-ema": "trtq.methods.ranges:LAYERNORM_EMA",
    "ranking": "trtq.methods.ranking",
    "gptq": "trtq.methods.gptq",
    "reconstruct": "trtq.methods.reconstruct",
    "refine": "trtq.methods.refine",
    "bias-correction": "trtq.methods.bias_correction",
}


def get_method(name: str) -> Method:
    """Return the method called ``name``.

    Args:
        name: one of ``METHODS``, or an extension: ``module:name`` or an entry point.

    Raises:
        UsageError: there is none (the nearest are suggested), or it cannot be loaded.
    """
    if name in METHODS:
        module, _, variable = METHODS[name].partition(":")
        method: Method = getattr(importlib.import_module(module), variable or "METHOD")
        return method
    extension = extensions.load("methods", name, built_in=tuple(METHODS))
    if not isinstance(extension, Method):
        raise UsageError(
            f"Cannot use the method {name!r}",
            f"it is of type {type(extension).__name__}, expected trtq.methods.base.Method",
        )
    if not isinstance(extension.arguments, msgspec.Struct):
        raise UsageError(
            f"Cannot use the method {name!r}",
            f"its arguments are a {type(extension.arguments).__name__}, expected a msgspec.Struct",
            "Declare them as in docs/extending.md: class Arguments(Struct, frozen=True)",
        )
    return dataclasses.replace(extension, name=name)


def known_methods() -> list[str]:
    """Return the names of trtq's methods in the order they act, then those of entry points."""
    return [*METHODS, *(n for n in extensions.installed("methods") if n not in METHODS)]


def contradicts(name: str, others: Sequence[str]) -> bool:
    """Return whether a method cannot be combined with one of ``others``."""
    return any(o in get_method(name).excludes or name in get_method(o).excludes for o in others)


def choose(
    names: Sequence[str], arguments: Mapping[str, Any]
) -> list[tuple[Method, msgspec.Struct]]:
    """Return the methods asked for with their arguments, in the order they act.

    Args:
        names: of the methods, in any order.
        arguments: by ``METHOD.ARGUMENT``, as ``--method-arg`` has them.

    Raises:
        UsageError: an unknown or repeated method, two that exclude each other, an argument of a
        method
            that was not asked for, a wrong argument.
    """
    repeated = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if repeated is not None:
        raise UsageError(f"The method {repeated} was asked for twice", hint="Name it once")
    given: dict[str, dict[str, Value]] = {name: {} for name in names}
    for key, value in arguments.items():
        name, argument = _owner(key, value, names)
        given[name][argument] = value
    order = known_methods()
    for name in names:
        clash = next((n for n in get_method(name).excludes if n in names), None)
        if clash is not None:
            raise UsageError(
                f"The methods {name} and {clash} contradict each other",
                "both decide the same numbers",
                "Leave one out",
            )
    return [
        ((m := get_method(name)), m.values(given[name]))
        for name in sorted(names, key=lambda n: order.index(n) if n in order else len(order))
    ]


def _owner(key: str, value: object, names: Sequence[str]) -> tuple[str, str]:
    """Return the method and the argument that ``--method-arg KEY=VALUE`` is for.

    Raises:
        UsageError: it names no method, or one that was not asked for.
    """
    # The name of a method from outside may itself have dots.
    known = next((n for n in names if key.startswith(f"{n}.")), key.partition(".")[0])
    name, argument = known, key[len(known) + 1 :]
    if not argument:
        raise UsageError(
            f"Cannot read --method-arg {key}={value}",
            "expected NAME.K=V",
            "Write it like smooth.strength=0.7",
        )
    if name not in names:
        raise UsageError(
            f"--method-arg {key} is for a method that was not asked for",
            hint=f"Add --method {name}",
        )
    return name, argument


def require_fit(method: Method, context: MethodContext) -> None:
    """Raise when the method has nothing to do on this model.

    Raises:
        UsageError: says why.
    """
    reason = method.not_applicable_reason(context)
    if reason is not None:
        raise UsageError(
            f"The method {method.name} does not fit this model",
            reason,
            "See trtq methods for what each is for",
        )
