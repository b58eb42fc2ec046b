"""The adapter of a program's own data: a function that returns them, named by a text."""

from __future__ import annotations

import inspect
from typing import Any

from trtq import extensions
from trtq.data.model_inputs import InputNeeds
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.data.tensor_samples import TensorSamples, samples_of
from trtq.errors import DataError, said_by

TAKES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def open_factory(request: Request) -> Data:
    """Return what an extension gives.

    It is an iterable, a Dataset or a DataLoader, or a callable that returns one: without arguments,
    or with the signature of the model if it takes a parameter.

    Args:
        request: its ``text`` names the extension.

    Raises:
        UsageError: it cannot be imported.
        DataError: it raises, or returns no data.
    """
    own = extensions.load("data", request.text)
    is_data = hasattr(own, "__getitem__") or hasattr(own, "__iter__")
    if not callable(own) or (is_data and not isinstance(own, type)):
        return _data(request, own)
    if _takes_signature(own):

        def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
            if needs is None:
                raise DataError(
                    f"Cannot open {request.text} without a model",
                    "the function takes the signature of the model",
                    "Give the model: trtq.samples(data, model)",
                )
            return _data(request, _call(request, own, needs.signature)).make(needs, picture)

        return Data(name=request.text, make=make)
    return _data(request, _call(request, own))


def _takes_signature(own: Any) -> bool:
    """Whether a callable needs one argument to be called."""
    try:
        parameters = inspect.signature(own).parameters.values()
    except (TypeError, ValueError):  # of C code: nothing is known
        return False
    return any(p.kind in TAKES and p.default is inspect.Parameter.empty for p in parameters)


def _call(request: Request, own: Any, *arguments: object) -> object:
    try:
        return own(*arguments)
    except Exception as exc:  # the code is the user's own
        raise DataError(
            f"Cannot open the data {request.text}", f"calling it raised {said_by(exc)}"
        ) from exc


def _data(request: Request, own: object) -> Data:
    samples = samples_of(own, limit=request.limit, name=request.text, note=request.note)
    if request.ignore_index is not None:
        samples.ignore = request.ignore_index
    if isinstance(samples, TensorSamples):
        return Data.of_tensors(samples)
    return Data.of_samples(samples)
