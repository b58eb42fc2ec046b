"""A model whose inputs and outputs are flat: a tensor each, with a name each."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)

from trtq.errors import CaptureError
from trtq.free_names import free_name
from trtq.graph.feed import Feed
from trtq.graph.signature import INPUT, OUTPUT

PREFIX = "model."  # of every module path in a flat model


class Call(NamedTuple):
    """How a model is called with one batch.

    Attributes:
        names: of the tensors, in order.
        feed: the tensors.
        form: positional and named arguments, with the place of each tensor.
        rest: arguments that are no tensors, by their place.
        places: of the tensors among all arguments.
        listed: forward() takes any number of tensors, as one list.
    """

    names: tuple[str, ...]
    feed: Feed
    form: TreeSpec
    rest: dict[int, object]
    places: tuple[int, ...]
    listed: bool

    def arguments(self, feed: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments for a batch.

        Args:
            feed: as many tensors as the example has, in its order.
        """
        leaves = {**self.rest, **dict(zip(self.places, feed, strict=True))}
        args, named = tree_unflatten([leaves[i] for i in range(len(leaves))], self.form)
        return tuple(args), dict(named)

    @property
    def plain(self) -> bool:
        """Whether the model is called with its one tensor and nothing else."""
        args, named = self.arguments(self.feed)
        alone = len(args) == 1 and not named and isinstance(args[0], torch.Tensor)
        return alone and not self.listed


def call_of(model: nn.Module, given: object) -> Call:
    """Return how ``model`` is called with an example.

    Args:
        model: to call.
        given: one batch: a tensor, a tuple of arguments, or a mapping of named ones; each is a
            tensor or a structure of tensors, numbers and None.

    Raises:
        CaptureError: there is no tensor in it, or forward() has no such parameter.
    """
    labels, args, named = _arguments(model, given)
    leaves, form = tree_flatten((args, dict(named)))
    names = [
        label + _dotted(path)
        for label, value in zip(labels, (*args, *named.values()), strict=True)
        for path, _ in tree_flatten_with_path(value)[0]
    ]
    places = tuple(i for i, v in enumerate(leaves) if isinstance(v, torch.Tensor))
    if not places:
        raise CaptureError(
            f"Cannot call {type(model).__name__} with this example",
            "there is no tensor in it",
            "Give a tensor, a tuple of tensors or a dict of them",
        )
    return Call(
        names=_apart(names[i] for i in places),
        # One tensor in two places would be one input to the tracer.
        feed=tuple(leaves[i].detach().clone() for i in places),
        form=form,
        rest={i: v for i, v in enumerate(leaves) if i not in places},
        places=places,
        listed=_parameters(model)[1],
    )


def _arguments(
    model: nn.Module, given: object
) -> tuple[Sequence[str], tuple[Any, ...], Mapping[str, Any]]:
    """Return the labels of an example's arguments, the positional and the named ones.

    Raises:
        CaptureError: forward() has no such parameter.
    """
    parameters, any_number = _parameters(model)
    if isinstance(given, Mapping):
        labels = [str(k) for k in given]
        if set(labels) <= set(parameters):  # in the order of forward(), not of the example
            named = {str(k): v for k, v in given.items()}
            ordered = {n: named[n] for n in parameters if n in named}
            return list(ordered), (), ordered
        if any_number or len(labels) == len(parameters) == 1:
            return labels, tuple(given.values()), {}
        raise CaptureError(
            f"Cannot call {type(model).__name__} with {', '.join(labels)}",
            f"forward() takes {', '.join(parameters) or 'no arguments'}",
            "Name the inputs after its parameters",
        )
    args = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if len(args) == 1 and isinstance(args[0], torch.Tensor):
        return [INPUT], args, {}
    more = [f"in.{i}" for i in range(len(parameters), len(args))]
    return [*parameters[: len(args)], *more], args, {}


def doubled(call: Call) -> Call | None:
    """Return an example of one sample twice, None where it has more: an axis of 1 remains closed.

    Returns:
        None also for an example of scalars alone.
    """
    if any(t.ndim and len(t) > 1 for t in call.feed) or not any(t.ndim for t in call.feed):
        return None
    return call._replace(feed=tuple(torch.cat([t, t]) if t.ndim else t for t in call.feed))


def _parameters(model: nn.Module) -> tuple[list[str], bool]:
    """Return the parameters of forward(), and whether it takes any number of tensors."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return [], True
    named = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return named, any(p.kind == p.VAR_POSITIONAL for p in parameters.values())


class Answer(NamedTuple):
    """Outputs of a model for one batch, flat.

    Attributes:
        names: of its tensors: the keys that lead to each.
        tensors: in order.
        left_out: names of what is no tensor and not None.
        plain: it is one tensor alone, not a structure.
    """

    names: tuple[str, ...]
    tensors: Feed
    left_out: tuple[str, ...]
    plain: bool = False


def answer_of(output: object) -> Answer:
    """Return the tensors of what a model gave.

    Args:
        output: a tensor, called ``output``; a dict or a dataclass, whose tensors are called after
            its keys; or a sequence: ``out.0``, ``out.1``. Deeper keys are joined: ``boxes.0``.

    Raises:
        CaptureError: there is no tensor in it.
    """
    if isinstance(output, torch.Tensor):
        return Answer((OUTPUT,), (output,), (), plain=True)
    if dataclasses.is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    leaves = [
        (("out" if isinstance(output, (tuple, list)) else "") + _dotted(path), value)
        for path, value in tree_flatten_with_path(output)[0]
    ]
    tensors = [(n.lstrip("."), v) for n, v in leaves if isinstance(v, torch.Tensor)]
    if not tensors:
        raise CaptureError(
            "Cannot use the model's output",
            f"expected a tensor, found {type(output).__name__}",
            "Wrap the model so that it returns tensors",
        )
    rest = [n.lstrip(".") for n, v in leaves if v is not None and not isinstance(v, torch.Tensor)]
    return Answer(_apart(n for n, _ in tensors), tuple(v for _, v in tensors), tuple(rest))


def _apart(names: Iterable[str]) -> tuple[str, ...]:
    """Return names with a number behind each that came before: a key may hold a dot itself."""
    distinct_names = list[str]()
    for name in names:
        distinct_names.append(free_name(name, distinct_names, "."))
    return tuple(distinct_names)


def _dotted(path: Sequence[Any]) -> str:
    """Return the way to a leaf: ``.boxes.0``."""
    keys = (keystr((key,)).strip("[].").strip("'\"") for key in path)
    return "".join(f".{key}" for key in keys)


class Flat(nn.Module):
    """A model with its tensors in a row, in and out; modules keep the model's own names.

    Args:
        model: any inputs and outputs.
        call: how it is called.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *feed: torch.Tensor) -> Feed:
        """Return the output tensors."""
        args, named = self.call.arguments(feed)
        return answer_of(self.model(*args, **named)).tensors
