"""The preprocessing of a file: what a user gives, else what the file carries, else a default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from trtq.data.image_size import image_hints
from trtq.data.preprocess import Preprocess, resolve_preprocess


def file_preprocess(
    given: Mapping[str, Any],
    stored: Mapping[str, Any] | None,
    shape: Sequence[Any],
    made: Mapping[str, str],
) -> tuple[Preprocess, list[str]]:
    """Return the preprocessing, and what the user should know about it.

    Args:
        given: what the user says, by the names of :class:`trtq.data.preprocess.Picture`; None is
            not said. What is not said remains as the file has it; a new input size or preset brings
            its own rule for what follows from it.
        stored: what the file carries; None where it carries nothing.
        shape: of the image input, the batch included.
        made: what the maker of the file wrote into its metadata.

    Raises:
        UsageError: numbers of channels differ, or a standard deviation is not greater than 0.
    """
    if stored is not None and all(v is None for v in given.values()):
        return msgspec.convert(stored, Preprocess), []
    chosen = dict(given)
    if stored is not None:
        keep = {*given} - {"preset"}
        keep -= {"mean", "std", "fit"} if given["preset"] else set()
        keep -= {"resize", "crop"} if given["input_size"] else set()
        known = {**stored, "input_dtype": stored.get("dtype")}
        chosen = {k: known.get(k) if v is None and k in keep else v for k, v in given.items()}
        if chosen["input_dtype"] == "uint8":  # its mean and std have no effect
            chosen.update(mean=None, std=None)
    return resolve_preprocess(**chosen, hints=image_hints(shape, made))
