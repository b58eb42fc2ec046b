"""Which tensor of a checkpoint is which of the model's: by name, or in order."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from trtq.errors import ModelError
from trtq.models import unwrap
from trtq.models.stored import StateDict, Stored

# Names of the child that is the model, in wrappers: FSDP's is in files alone.
WRAPPERS = {*(child for child, _ in unwrap.WRAPPERS.values()), "_fsdp_wrapped_module"}
# Where training scripts put the weights, the usual ones first; what is not here is taken when
# nothing else fits.
USUAL = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "",
)
_AVERAGED = re.compile(
    r"(^|[._])(ema|swa|averaged?|shadow)\d*($|[._])|_ema|ema_|averaged", re.IGNORECASE
)
_LONGEST = 100  # characters of a name in a message
_COUNTER = "num_batches_tracked"  # BatchNorm keeps it for training: files without it are whole


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One way in which names of a file are those of the model.

    Attributes:
        source: by name of the model, the flat name in the file.
        prefix: what names in the file begin with, and the model's do not.
        added: what the model's names begin with, and those in the file do not.
        inner: parts of wrappers that were left out inside of names.
        beside: flat names next to the taken ones that are not the model's.
    """

    source: dict[str, str]
    prefix: str
    added: str
    inner: bool
    beside: tuple[str, ...]


def required(own: StateDict, given: Iterable[str]) -> list[str]:
    """Return the names that a file must have: no counters, one of each group of tied ones.

    Args:
        own: tensors of the model.
        given: names in the file, with any prefix.
    """
    tied = tied_names(without_counters(own))
    if all(len(names) == 1 for names in tied):
        return [names[0] for names in tied]
    known = list(given)
    return [
        next((n for n in names if any(k.endswith(n) for k in known)), names[0]) for names in tied
    ]


def tied_names(own: StateDict) -> list[list[str]]:
    """Return the names of each tensor of a model: several where modules share it.

    Args:
        own: tensors of the model.
    """
    tied: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        where = tensor.data_ptr()  # 0 where there is no memory to share
        key = (where or -len(tied) - 1, tensor.shape, tensor.stride())
        tied.setdefault(key, []).append(name)
    return list(tied.values())


def fits(own: StateDict, stored: Stored, *, subset: bool = False) -> list[Fit]:
    """Return every way in which the file has all names of the model.

    Args:
        own: tensors of the model.
        stored: tensors of the file.
        subset: the file may have other names among them.
    """
    wrapped = _leading(own)
    for inner in (False, True):
        for added in wrapped:
            candidates = _fits(own, stored, added, inner=inner, subset=subset)
            if candidates:
                return candidates
    return []


def _leading(own: Iterable[str]) -> list[str]:
    """Return the beginnings that all names share, the empty one first: a mere wrapper has one."""
    names, result = [n.split(".") for n in own], [""]
    depth = 0
    while names and all(len(n) > depth + 1 for n in names) and len({n[depth] for n in names}) == 1:
        result.append(f"{result[-1]}{names[0][depth]}.")
        depth += 1
    return result


def _plain(name: str) -> str:
    """Return a name without the parts that wrappers inside a model add.

    >>> _plain("backbone._orig_mod.conv.weight")
    'backbone.conv.weight'
    """
    return ".".join(p for p in name.split(".") if p not in WRAPPERS)


def _fits(own: StateDict, stored: Stored, added: str, *, inner: bool, subset: bool) -> list[Fit]:
    rename = _plain if inner else str
    wanted = {rename(n[len(added) :]): n for n in own}
    flat = {rename(n): n for n in stored.tensors}
    if len(wanted) != len(own) or len(flat) != len(stored.tensors):
        return []  # without the parts of wrappers two names are one
    needed = {rename(n[len(added) :]) for n in required(own, stored.tensors)}
    counts = _prefixes(flat, needed)
    whole = [p for p, n in counts.items() if n == len(needed) and _may_come_off(p, needed, stored)]
    result = []
    for prefix in whole:
        source = {mine: flat[prefix + n] for n, mine in wanted.items() if prefix + n in flat}
        rest = _left_over(stored, set(source.values()), flat)
        if subset or _only_sets(rest, prefix, whole, stored):
            beside = tuple(rest.values())
            fit = Fit(source=source, prefix=prefix, added=added, inner=inner, beside=beside)
            result.append(fit)
    return result


def _only_sets(rest: dict[str, str], prefix: str, whole: list[str], stored: Stored) -> bool:
    """Say whether what is left below a prefix does not make its weights another model's.

    Whole sets of weights of their own do not, nor does a single number (a count, a metric, a
    temperature).
    """
    others = tuple(p for p in whole if p != prefix and p.startswith(prefix))
    return all(
        name.startswith(others) or not stored.tensors[real].ndim
        for name, real in rest.items()
        if name.startswith(prefix)
    )


def _may_come_off(prefix: str, needed: set[str], stored: Stored) -> bool:
    """Say whether a prefix is no layer's: ``weight`` and ``bias`` alone fit under any layer."""
    return any("." in n for n in needed) or prefix in stored.tables() or _is_usual(prefix)


def _is_usual(prefix: str) -> bool:
    return all(part in USUAL or part in WRAPPERS for part in prefix.rstrip(".").split("."))


def _prefixes(flat: Iterable[str], needed: set[str]) -> Counter[str]:
    """Return how many of the needed names the file has under each beginning of names."""
    counts: Counter[str] = Counter()
    for name in flat:
        start = 0
        while start >= 0:
            if name[start:] in needed:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return counts


def _left_over(stored: Stored, taken: set[str], flat: dict[str, str]) -> dict[str, str]:
    """Return the names of other tensors in the same dicts, but for BatchNorm's counters."""
    tables = {stored.table[s] for s in taken}
    return {
        name: real
        for name, real in flat.items()
        if real not in taken and stored.table[real] in tables and not real.endswith(_COUNTER)
    }


def shapes_differ(own: StateDict, given: StateDict, source: dict[str, str]) -> str | None:
    """Return the first name of the model whose shape is not the file's.

    Args:
        own: tensors of the model.
        given: tensors of the file.
        source: by name of the model, the flat name in the file.

    Returns:
        None where all are equal.
    """
    return next((n for n, s in source.items() if own[n].shape != given[s].shape), None)


def choose(
    own: StateDict, stored: Stored, candidates: list[Fit], *, subset: bool = False
) -> tuple[Fit, list[Fit]]:
    """Return the fit to load, and others that fit as well; plain weights before averaged ones.

    Args:
        own: tensors of the model.
        stored: tensors of the file.
        candidates: of :func:`fits`.
        subset: the file may have other names among the model's. Names that fit deep inside of it
            may be those of another layer, so the first candidate must fit.

    Raises:
        ModelError: shapes differ, or several sets of weights fit and nothing says which is meant.
    """
    right = [f for f in candidates if shapes_differ(own, stored.tensors, f.source) is None]
    first = min(candidates, key=_rank)
    if not right or (subset and first not in right):
        raise _wrong_shape(own, stored, first)
    right.sort(key=_rank)
    equal = [f for f in right if _rank(f)[:3] == _rank(right[0])[:3]]
    if not _same(stored.tensors, equal):
        key = stored.full(next(f.prefix for f in right if f.prefix))
        raise ModelError(
            f"The checkpoint {stored.path} holds several sets of weights that fit the model",
            f"under {', '.join(stored.full(f.prefix) or 'no key' for f in right[:6])}",
            f"Choose one, such as --checkpoint-key {shlex.quote(key)}",
        )
    return right[0], right[1:]


def is_averaged(prefix: str) -> bool:
    """Say whether a key is one under which scripts keep averaged weights.

    Args:
        prefix: beginning of flat names, with or without its last dot.

    >>> [is_averaged(k) for k in ("state_dict_ema", "ema.module", "state_dict", "schema")]
    [True, True, False, False]
    """
    return _AVERAGED.search(prefix.rstrip(".")) is not None


def _rank(fit: Fit) -> tuple[bool, bool, int, int]:
    place = _place(fit.prefix) if fit.prefix else -1
    return is_averaged(fit.prefix), not _is_usual(fit.prefix), place, len(fit.prefix)


def _place(prefix: str) -> int:
    """Return how usual the first key of a prefix is as a place of weights, 0 for the most usual."""
    first = prefix.split(".", 1)[0]
    return USUAL.index(first) if first in USUAL else len(USUAL)


def _same(given: StateDict, candidates: list[Fit]) -> bool:
    first, *others = (c.source for c in candidates)
    return all(
        torch.equal(given[s], given[second[n]])
        for second in others
        for n, s in first.items()
        if n in second
    )


def _wrong_shape(own: StateDict, stored: Stored, fit: Fit) -> ModelError:
    name = shapes_differ(own, stored.tensors, fit.source)
    assert name is not None
    source = fit.source[name]
    return ModelError(
        f"The checkpoint {stored.path} does not fit the model",
        _shapes(name, own[name], source, stored.tensors[source]),
        "Check the model name and --model-arg (num_classes?)",
    )


def _shapes(name: str, own: torch.Tensor, source: str, given: torch.Tensor) -> str:
    return f"{name!r} has shape {list(own.shape)}, the file's {source!r} has {list(given.shape)}"


def misfit(own: StateDict, stored: Stored) -> ModelError:
    """Return the error for names that do not fit, for the part of the file that comes nearest.

    Args:
        own: tensors of the model.
        stored: tensors of the file.
    """
    needed = required(own, stored.tensors)
    prefix, part = _nearest(set(needed), stored)
    missing = [n for n in needed if n not in part]
    extra = [n for n, t in part.items() if n not in own and not n.endswith(_COUNTER) and t.ndim]
    why = f"{len(missing)} of {len(needed)} tensors of the model are missing"
    why += f" and {len(extra)} names are not the model's"
    why += _example("missing", missing, extra, "file")
    why += _example("unexpected", extra, list(own), "model")
    hint = "Check the model name and --model-arg (num_classes?)"
    if fits(own, stored, subset=True):
        hint += ", or leave the other tensors of the file out: --checkpoint-match subset"
    if stored.ordered and missing and order_is_certain(own, part):
        whole = len(part) == len(stored.tensors)
        key = "" if whole else f" --checkpoint-key {shlex.quote(stored.full(prefix))}"
        hint = f"Only the names differ, in the same order: add --checkpoint-match order{key}"
    return ModelError(f"The checkpoint {stored.path} does not fit the model", why, hint)


def _example(what: str, names: list[str], known: list[str], owner: str) -> str:
    """Return the first of some names with the nearest of those that the owner has."""
    if not names:
        return ""
    near = difflib.get_close_matches(names[0], known, n=3, cutoff=0.5) or known[:3]
    nearest = f" (the {owner} has {', '.join(_cut(n) for n in near)})" if near else ""
    return f"; {what} {_cut(names[0])!r}{nearest}"


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _nearest(needed: set[str], stored: Stored) -> tuple[str, StateDict]:
    """Return the beginning of names under which most of the model's are, and the tensors there."""
    counts = _prefixes(stored.tensors, needed)
    if counts:
        prefix = max(counts, key=lambda p: (counts[p], -len(p)))
        tables = {
            stored.table[n]
            for n in stored.tensors
            if n.startswith(prefix) and n[len(prefix) :] in needed
        }
    else:
        tables = {_tables_ranked(stored)[0]}
        prefix = next(iter(tables))
    return prefix, {
        n[len(prefix) :]: t
        for n, t in stored.tensors.items()
        if n.startswith(prefix) and stored.table[n] in tables
    }


def _tables_ranked(stored: Stored) -> list[str]:
    """Return the dicts of the file: plain weights in usual places first, then larger ones."""
    counts = stored.tables()

    def rank(table: str) -> tuple[bool, int, int]:
        place = _place(table) if counts[table] > 1 else len(USUAL)
        return is_averaged(table), place, -counts[table]

    return sorted(counts, key=rank)


def main_part(stored: Stored) -> StateDict:
    """Return the weights in the usual place of a file, without prefixes of wrappers on all.

    Args:
        stored: tensors of the file.

    Returns:
        By name, without the table's name before it.
    """
    table = _tables_ranked(stored)[0]
    part = {n[len(table) :]: t for n, t in stored.of(table).items()}
    while part and any(all(n.startswith(f"{w}.") for n in part) for w in WRAPPERS):
        part = {n.partition(".")[2]: t for n, t in part.items()}
    return part


def without_counters(state: StateDict) -> StateDict:
    """Return the tensors without BatchNorm's counters."""
    return {k: v for k, v in state.items() if not k.endswith(_COUNTER)}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def order_is_certain(own: StateDict, given: StateDict) -> bool:
    """Say whether pairing tensors in order can only be right: no renamed ones could be swapped.

    Every pair has the same shape and the same last part of its name. Among renamed tensors that are
    alike in both, each pair has the same numbers in its names, and no two pairs have the same ones.

    Args:
        own: tensors of the model, in its order.
        given: tensors of the file, in its order.
    """
    own, given = without_counters(own), without_counters(given)
    if len(own) != len(given):
        return False
    alike: dict[tuple[str, torch.Size], list[tuple[str, str]]] = {}
    for (name, mine), (source, theirs) in zip(own.items(), given.items(), strict=True):
        if mine.shape != theirs.shape or _last(name) != _last(source):
            return False
        if name != source:
            alike.setdefault((_last(name), mine.shape), []).append((name, source))
    return all(len(pairs) == 1 or _numbered_alike(pairs) for pairs in alike.values())


def _numbered_alike(pairs: list[tuple[str, str]]) -> bool:
    numbers = [(re.findall(r"\d+", a), re.findall(r"\d+", b)) for a, b in pairs]
    return all(a == b for a, b in numbers) and len({tuple(a) for a, _ in numbers}) == len(numbers)


def match_in_order(own: StateDict, stored: Stored) -> dict[str, str]:
    """Return by name of the model the flat name in the file, both taken in order.

    Args:
        own: tensors of the model, in its order.
        stored: tensors of the file.

    Raises:
        ModelError: the file has no order, or counts, shapes or kinds of tensors differ.
    """
    what = f"The checkpoint {stored.path} does not fit the model in order"
    if not stored.ordered:
        raise ModelError(
            what,
            "a safetensors file keeps no order: its names are sorted",
            _rename_advice(own, stored),
        )
    given = _table_of_size(own, stored)
    if len(own) != len(given):
        own, given = without_counters(own), without_counters(given)
    if len(own) != len(given):
        raise ModelError(
            what,
            f"expected {len(own)} tensors, found {len(given)}",
            "Check the model name, --model-arg and --checkpoint-key",
        )
    for name, source in zip(own, given, strict=True):
        problem = _pair_problem(own, given, name, source)
        if problem:
            raise ModelError(what, problem, _rename_advice(own, stored))
    if _sorted_only(own, given):
        raise ModelError(
            what,
            "the names in the file are in alphabetical order, not in that of the model",
            _rename_advice(own, stored),
        )
    return dict(zip(own, given, strict=True))


def _pair_problem(own: StateDict, given: StateDict, name: str, source: str) -> str:
    if own[name].shape != given[source].shape:
        return _shapes(name, own[name], source, given[source])
    twin = _plain(source) if _plain(source) in own else source
    if _last(name) != _last(source) or (twin in own and twin != name):
        return f"{name!r} would get the values of {source!r}"
    return ""


def _sorted_only(own: StateDict, given: StateDict) -> bool:
    """Say whether the file is in alphabetical order, so that tensors alike may be swapped."""
    names = list(given)
    if names != sorted(names) or list(own) == sorted(own):
        return False
    alike = Counter((_last(n), t.shape) for n, t in given.items())
    return max(alike.values()) > 1


def _table_of_size(own: StateDict, stored: Stored) -> StateDict:
    """Return the dict of the file that has as many tensors as the model, usual places first."""
    parts, count = [stored.of(t) for t in _tables_ranked(stored)], len(without_counters(own))
    return next((p for p in parts if len(without_counters(p)) == count), parts[0])


def _rename_advice(own: StateDict, stored: Stored) -> str:
    first, theirs = next(iter(own), ""), next(iter(stored.tensors))
    names = f"the model has {_cut(first)!r}, the file {_cut(theirs)!r}"
    return f"Rename the tensors of the file to the model's names ({names})"
