"""Inputs of a file or an engine, for its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from trtq.data.model_inputs import InputNeeds
from trtq.export.feeds import InputSlot
from trtq.graph.signature import SIGNATURE, Signature, TensorSpec


def needs_of(slots: Sequence[InputSlot], metadata: Mapping[str, Any], name: str) -> InputNeeds:
    """Return what a file or an engine takes, with the ranges that it was written for.

    Args:
        slots: its inputs.
        metadata: of the file.
        name: of it, for errors.
    """
    stored = metadata.get(SIGNATURE)
    known = None if stored is None else msgspec.convert(stored, Signature)
    inputs = tuple(
        TensorSpec(
            name=slot.name,
            dtype=slot.dtype,
            shape=tuple(f"axis{i}" if v is None else v for i, v in enumerate(slot.shape)),
        )
        for slot in slots
    )
    if known is not None and [t.name for t in known.inputs] == [t.name for t in inputs]:
        inputs = known.inputs
    signature = known or Signature(inputs=inputs, outputs=())
    return InputNeeds(model=name, inputs=inputs, ranges=signature.ranges, signature=signature)
