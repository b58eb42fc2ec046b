"""Captures that are made once a process.

torch.export takes most of the time of a small model's quantization, and hundreds of tests capture
the same few models. Only models made of published modules are remembered, whose code no test
changes; they are equal when their modules, attributes, parameters and buffers are.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType

import msgspec
import torch
from torch import fx, nn

PUBLISHED = {"torch", "torchvision", "timm", "trtq", "efficientnet_lite", "builtins"}
MOST_BYTES = 64 << 20  # of the parameters of one model
MOST_GRAPHS = 24
HELD = ("_parameters", "_buffers", "_modules")


class UnknownError(Exception):
    """Something that two models cannot be compared by."""


def remembered(trace: Callable[..., fx.GraphModule]) -> Callable[..., fx.GraphModule]:
    """Return ``trace`` with a memory; each call returns a graph of its own."""
    known: dict[str, fx.GraphModule] = {}

    @functools.wraps(trace)
    def get(module: nn.Module, *args: object, **kwargs: object) -> fx.GraphModule:
        try:
            key = digest(module, args, kwargs)
        except UnknownError:
            return trace(module, *args, **kwargs)
        if key not in known:
            graph = trace(module, *args, **kwargs)
            while len(known) >= MOST_GRAPHS:
                del known[next(iter(known))]
            known[key] = copy.deepcopy(graph)
            return graph
        known[key] = known.pop(key)  # the one that was used last goes last
        return copy.deepcopy(known[key])

    return get


def digest(module: nn.Module, *more: object) -> str:
    """Return a SHA-256 of all that a model computes with, and of further values."""
    if sum(p.nbytes for p in module.parameters()) > MOST_BYTES:
        raise UnknownError("too large to keep")
    total = hashlib.sha256()
    places: dict[int, int] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        total.update(f"{name} {places.setdefault(id(part), len(places))}\n".encode())
        for piece in _pieces(part, places):
            total.update(piece)
    for value in more:
        for piece in _values(value):
            total.update(piece)
    return total.hexdigest()


def _pieces(part: nn.Module, places: dict[int, int]) -> Iterator[bytes]:
    yield _name(type(part)).encode()
    for key, value in sorted(vars(part).items()):
        if key in HELD:
            continue
        yield f"{key}=".encode()
        yield from _values(value)
    for tensors in (part._parameters, part._buffers):
        for name, tensor in tensors.items():
            yield f"{name}@{places.setdefault(id(tensor), len(places))}".encode()
            yield from _values(tensor)


def _values(value: object) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        yield f"{type(value)} {value.dtype} {value.shape} {value.requires_grad}".encode()
        yield value.detach().contiguous().numpy().tobytes()
    elif isinstance(value, (list, tuple, set, dict)):
        yield f"{type(value)} {len(value)}".encode()
        inner = value.items() if isinstance(value, dict) else value
        for item in sorted(inner, key=repr) if isinstance(value, set) else inner:
            yield from _values(item)
    elif isinstance(value, functools.partial):
        yield from _values((value.func, value.args, value.keywords))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _values([getattr(value, f.name) for f in dataclasses.fields(value)])
    elif isinstance(value, msgspec.Struct):
        yield from _values((type(value), msgspec.structs.astuple(value)))
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        yield _name(value).encode()
    elif value is None or isinstance(
        value, (bool, int, float, str, bytes, enum.Enum, torch.dtype, torch.device)
    ):
        yield f"{type(value)} {value!r};".encode()
    else:
        raise UnknownError(f"a value of {type(value)}")


def _name(thing: type | FunctionType | BuiltinFunctionType) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if name.partition(".")[0] not in PUBLISHED or "<l" in name:  # <locals>, <lambda>
        raise UnknownError(name)
    return name
