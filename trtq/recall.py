"""Inputs that stages read for their keys, read once for many recipes.

Outside :func:`recalling` every call reads again, as a run that takes hours must.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from trtq.artifact import digest_of
from trtq.commands import loading
from trtq.data import adapters
from trtq.data.opened import Request
from trtq.data.source import Note, Source
from trtq.specs import FinetuneSpec, ModelInputSpec, QuantizeSpec

T = TypeVar("T")
_MEMORY: ContextVar[dict[str, Any] | None] = ContextVar("_MEMORY", default=None)


@contextlib.contextmanager
def recalling() -> Iterator[None]:
    """Keep what is read inside the context.

    Files that change in the meantime are not seen.
    """
    token = _MEMORY.set({})
    try:
        yield
    finally:
        _MEMORY.reset(token)


def _once(what: str, given: object, read: Callable[[], T]) -> T:
    memory = _MEMORY.get()
    if memory is None:
        return read()
    key = digest_of([what, given])
    if key not in memory:
        memory[key] = read()
    kept: T = memory[key]
    return kept


def model_digest(spec: QuantizeSpec | FinetuneSpec) -> str:
    """Return a SHA-256 over a spec's model, as :func:`trtq.commands.loading.model_digest`.

    Inside :func:`recalling` a model from a checkpoint, an ONNX file or a ``.pt2`` file is read once
    for all seeds.

    Args:
        spec: names the model and its data.

    Raises:
        ModelError: it is unknown, or its checkpoint does not fit.
        CaptureError: it cannot be captured as one graph.
    """
    values = {n: getattr(spec, n) for n in ModelInputSpec.__struct_fields__}
    # It makes random weights. Were it to change others, the record of the run would tell.
    whole = spec.checkpoint is not None or Path(spec.model).suffix in (".onnx", ".pt2")
    given = msgspec.to_builtins({**values, "seed": None if whole else spec.seed})
    return _once("model", given, lambda: loading.model_digest(spec))


def fingerprint(
    text: str,
    class_index: str | None = None,
    note: Note | None = None,
    *,
    tokenizer: str | None = None,
) -> str | None:
    """Return what tells data apart, as :func:`trtq.data.adapters.fingerprint`."""
    return _once(
        "data",
        [text, class_index, tokenizer],
        lambda: adapters.fingerprint(text, class_index, note, tokenizer=tokenizer),
    )


def open_images(
    data: str, class_index: str | None = None, *, tokenizer: str | None = None
) -> Source | None:
    """Return the images behind ``data``; None where the samples are no images.

    Args:
        data: any form of data, as options take it.
        class_index: the order of classes.
        tokenizer: file of the tokenizer, for texts.

    Raises:
        DataError: missing, empty, damaged or ambiguous.
    """
    request = Request(text=data, class_index=class_index, tokenizer=tokenizer)
    given = [data, class_index, tokenizer]
    return _once("images", given, lambda: adapters.open_data(request).source)
