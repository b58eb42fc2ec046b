"""Checkpoints: read without running code, matched by name or in order, every shape checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from trtq.casts import lost_in
from trtq.errors import ModelError, listed, reason
from trtq.models.matching import (
    Fit,
    choose,
    fits,
    main_part,
    match_in_order,
    misfit,
    shapes_differ,
    tied_names,
)
from trtq.models.stored import StateDict, Stored, read_stored

NAMED = 4  # tensors that a note names; the record names all
Match = Literal["name", "order", "subset"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How a checkpoint went into a model.

    Attributes:
        text: the file and what was done with its names and types, for a record.
        notes: the same for a user, one line each.
        prefix: what came off the names in the file.
        added: what was put before them.
    """

    text: str
    notes: tuple[str, ...]
    prefix: str = ""
    added: str = ""


def read_state_dict(path: Path, key: str | None = None) -> StateDict:
    """Return the tensors of a checkpoint by name, without the prefixes of wrappers.

    Nothing in the file is executed.

    Args:
        path: as :func:`trtq.models.stored.read_stored` takes it.
        key: where the weights are in it; default: the usual places, plain weights before averaged
            ones.

    Raises:
        ModelError: missing, damaged, or without tensors.
    """
    return main_part(read_stored(path, key))


def load_checkpoint_(
    model: nn.Module, path: Path, match: Match = "name", key: str | None = None
) -> Loaded:
    """Load ``path`` into ``model`` in place.

    Args:
        model: the module that receives the weights, float32.
        path: a file, an index of shards or a folder, as :func:`trtq.models.stored.read_stored`
            takes it.
        match: ``name`` needs equal names but for the prefixes of wrappers; ``order`` pairs tensors
            in order where names differ, and checks every shape and the last part of every name;
            ``subset`` needs the model's names and leaves others of the file out, with a note.
        key: where the weights are in the file.

    Raises:
        ModelError: names or shapes differ (the nearest names are suggested), or a tensor cannot be
            a weight of this model.
    """
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    if not own:
        what = f"Cannot load the checkpoint {path}"
        raise ModelError(what, "the model has no parameters and no buffers", "Leave it out")
    stored = read_stored(path, key)
    matched = _match(own, stored, match)
    given = {n: stored.tensors[s] for n, s in matched.sources.items()}
    types = _type_changes(own, given)
    usable = {n: _usable(own[n], t, matched.sources[n], path) for n, t in given.items()}
    _require_one_value(own, usable, path)
    _put(model, usable, path)
    under = [f"under {key!r}"] if key else []
    return Loaded(
        text="; ".join([str(path), *under, *matched.steps, *types]),
        notes=(
            *stored.notes,
            *matched.notes,
            *(f"weights of the checkpoint were {change}" for change in types),
        ),
        prefix=matched.prefix,
        added=matched.added,
    )


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """Which tensor of a file each of the model's takes.

    Attributes:
        sources: by name of the model, the flat name in the file.
        steps: what was done to names, for a record.
        notes: the same for a user.
        prefix: what came off the names in the file.
        added: what was put before them.
    """

    sources: dict[str, str]
    steps: list[str]
    notes: list[str]
    prefix: str = ""
    added: str = ""


def _match(own: StateDict, stored: Stored, match: Match) -> _Matched:
    """Pair the model's tensors with the file's, by name where they fit.

    Raises:
        ModelError: names or shapes differ.
    """
    candidates = fits(own, stored, subset=match == "subset")
    if candidates:
        fit, others = choose(own, stored, candidates, subset=match == "subset")
        return _Matched(
            sources=fit.source,
            steps=_name_changes(stored, fit, others, len(fit.beside)),
            notes=_name_changes(stored, fit, others, NAMED),
            prefix=fit.prefix,
            added=fit.added,
        )
    if match != "order":
        raise misfit(own, stored)
    sources = match_in_order(own, stored)
    table = stored.full(stored.table[next(iter(sources.values()))])
    step = f"matched in order{f' under {table!r}' if table else ''}"
    renamed = next((f"{n!r} takes {s!r}" for n, s in sources.items() if n != s), "")
    note = f"the tensors of the checkpoint were {step}: {renamed}"
    return _Matched(sources=sources, steps=[step], notes=[note])


def _name_changes(stored: Stored, fit: Fit, others: list[Fit], most: int) -> list[str]:
    """Say what was done to names to make them fit, and what was passed over: ``most`` by name."""
    table = max((t for t in stored.tables() if fit.prefix.startswith(t)), key=len, default="")
    prefix = fit.prefix[len(table) :]
    keys = ", ".join(stored.full(f.prefix) or "no key" for f in others[:4])
    theirs = {s for f in others for s in f.source.values()}
    beside = [n for n in fit.beside if n not in theirs]
    changes = (
        (table, f"weights taken from {stored.full(table)!r}"),
        (prefix, f"the prefix {prefix!r} came off the names of the checkpoint"),
        (fit.added, f"the prefix {fit.added!r} was put before the names of the checkpoint"),
        (fit.inner, "the parts of wrappers inside of names were left out (module, _orig_mod)"),
        (others, f"other weights in the checkpoint fit as well: {keys} (--checkpoint-key chooses)"),
        (beside, f"not the model's, left out: {listed(beside, most)}"),
    )
    return [text for condition, text in changes if condition]


def _usable(own: torch.Tensor, given: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """Return a tensor of the file as a plain dense one.

    Raises:
        ModelError: it has no values that a float model could take, or the model's type cannot hold
            them.
    """
    problem, hint = "", "Give the checkpoint of the float model"
    if given.is_meta:
        problem = "it is on the meta device and has no values"
    elif given.is_quantized:
        problem = f"it is quantized ({given.dtype}), and trtq starts from float weights"
    elif given.is_complex() and not own.is_complex():
        problem, hint = (
            f"it is complex ({given.dtype}), the model's is {own.dtype}",
            "Check that it is the checkpoint of this model",
        )
    if problem:
        raise ModelError(f"Cannot use the tensor {name!r} of the checkpoint {path}", problem, hint)
    try:
        plain = given.detach().to_dense() if given.layout is not torch.strided else given.detach()
    except (RuntimeError, NotImplementedError) as exc:
        raise ModelError(
            f"Cannot use the tensor {name!r} of the checkpoint {path}",
            f"it is {given.layout} ({reason(exc)})",
            hint,
        ) from exc
    lost = (
        "" if own.dtype == plain.dtype or own.is_complex() else lost_in(plain, plain.to(own.dtype))
    )
    if lost:
        raise ModelError(
            f"Cannot use the tensor {name!r} of the checkpoint {path}",
            f"it is {_short(given.dtype)}, the model's is {_short(own.dtype)}: {lost}",
            "Check that it is the checkpoint of this model",
        )
    return plain


def _require_one_value(own: StateDict, given: StateDict, path: Path) -> None:
    """Refuse two values for a tensor that modules of the model share: one would be lost.

    Raises:
        ModelError: names both.
    """
    for first, *others in tied_names(own):
        other = next(
            (n for n in others if {first, n} <= set(given) and not _equal(own, given, first, n)),
            None,
        )
        if other is not None:
            raise ModelError(
                f"The checkpoint {path} does not fit the model",
                f"{first!r} and {other!r} are one tensor of the model, the file has two values for "
                "them",
                "Make the model without shared weights, or give the checkpoint of one that has "
                "them",
            )


def _equal(own: StateDict, given: StateDict, one: str, other: str) -> bool:
    """Whether two tensors of a file have the same values in the model; NaN is equal to NaN."""
    a, b = (given[n].to(own[n].dtype) for n in (one, other))
    return a.shape == b.shape and bool(torch.isclose(a, b, 0.0, 0.0, equal_nan=True).all())


def _type_changes(own: StateDict, given: StateDict) -> list[str]:
    """Say which types and layouts change, with the number of tensors."""
    casts = Counter((given[n].dtype, own[n].dtype) for n in given if given[n].dtype != own[n].dtype)
    result = [
        f"converted from {_short(a)} to {_short(b)} ({n} tensor{'s' if n > 1 else ''})"
        for (a, b), n in casts.items()
    ]
    sparse = [n for n in given if given[n].layout is not torch.strided]
    if sparse:
        result.append(f"made dense ({len(sparse)} sparse, {sparse[0]!r} is the first)")
    return result


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _put(model: nn.Module, values: StateDict, path: Path) -> None:
    try:
        model.load_state_dict(values, strict=False)
    except (RuntimeError, NotImplementedError) as exc:
        why = f"the model refuses it ({reason(exc)})"
        raise ModelError(
            f"The checkpoint {path} does not fit the model", why, "Check the model name"
        ) from exc
    own = model.state_dict()
    lost = next((n for n in values if n in own and shapes_differ(own, values, {n: n})), None)
    if lost is not None:
        raise ModelError(
            f"The checkpoint {path} does not fit the model",
            f"{lost!r} changed its shape while it was loaded",
        )


def check_finite(model: nn.Module) -> list[str]:
    """Refuse a model with a NaN or infinite parameter.

    Buffers may hold them: one that forward() never reads changes nothing, and masks hold -inf on
    purpose. One that is read makes the model's answers NaN, which capturing the model refuses.

    Args:
        model: with its weights.

    Returns:
        A line for each buffer with a NaN.

    Raises:
        ModelError: names the first such parameter.
    """
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"The weights of {name!r} cannot be quantized",
                f"{bad} of {tensor.numel()} values are NaN or infinite",
                "Train again or take an earlier checkpoint",
            )
    broken = (
        (n, int(torch.isnan(b).sum())) for n, b in model.named_buffers() if b.is_floating_point()
    )
    return [f"the buffer {n!r} holds NaN ({count} values)" for n, count in broken if count]


def zero_weights(model: nn.Module) -> list[str]:
    """Return a line when weights of layers are all zero: such a layer computes nothing.

    Args:
        model: with its weights; only float parameters of two axes or more named ``weight`` are
            looked at.

    Returns:
        One line, or none.
    """
    named = model.named_parameters()
    weights = {
        n: p for n, p in named if n.endswith("weight") and p.ndim > 1 and p.is_floating_point()
    }
    zero = [n for n, p in weights.items() if not bool(p.any())]
    if not zero:
        return []
    every = (
        "all weights of the model are zero"
        if len(zero) == len(weights)
        else f"{len(zero)} of {len(weights)} weights are all zero"
    )
    return [f"{every} ({listed(zero, 3)}): their layers give constants"]
