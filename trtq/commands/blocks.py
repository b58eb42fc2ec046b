"""``trtq blocks``: what a model is made of."""

from __future__ import annotations

import msgspec

from trtq.commands.loading import inputs_of, open_model
from trtq.data.preprocess import resolve_preprocess
from trtq.graph.blocks import Blocks, Family, family_of, identify_blocks
from trtq.graph.capture import capture_inputs
from trtq.specs import BlocksSpec


class BlocksRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The blocks of a model.

    Attributes:
        model: its name.
        blocks: module paths by kind (S3, Algorithm 1).
        family: cnn, mobile (depthwise), vit, windowed or hybrid.
        reason: what was counted.
        notes: what was done to read the model and its weights.
    """

    model: str
    blocks: Blocks
    family: Family
    reason: str
    notes: tuple[str, ...] = ()


def blocks(spec: BlocksSpec) -> BlocksRecord:
    """Return the convolutional and transformer parts of a model and its family.

    Args:
        spec: names the model.

    Raises:
        ModelError: the model is unknown, or its checkpoint does not fit.
        CaptureError: it cannot be captured.
    """
    loaded = open_model(spec)
    preprocess, _ = resolve_preprocess(input_size=spec.input_size, hints=loaded.input_hints)
    family, reason = family_of(
        capture_inputs(loaded.module, inputs_of(spec, preprocess.input_size)).module
    )
    return BlocksRecord(
        model=loaded.name,
        blocks=identify_blocks(loaded.module),
        family=family,
        reason=reason,
        notes=loaded.notes,
    )
