"""The models that ``trtq search`` is asked to compare, as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.paths import expand_home
from trtq.specs import SearchSpec


class Named(NamedTuple):
    """A candidate as it is written.

    Attributes:
        number: its place.
        model: as ``--candidates`` or MODEL names it.
        checkpoint: of this model; None without one.
        label: for figures and folders; "" for the only one.
    """

    number: int
    model: str
    checkpoint: str | None
    label: str

    def alone(self, spec: SearchSpec) -> SearchSpec:
        """Return what a search of this candidate alone is asked for, in a folder of its own.

        Args:
            spec: of the search of all.
        """
        own = msgspec.structs.replace(
            spec,
            model=self.model,
            checkpoint=self.checkpoint,
            candidates=(),
            on=None,
            workers=None,
            address="",
            out=str(Path(spec.out, "candidates", self.label)) if self.label else spec.out,
        )
        if self.checkpoint:
            return own
        # it is about the checkpoints of others
        return msgspec.structs.replace(own, checkpoint_key=None, checkpoint_match="name")


def candidates_of(spec: SearchSpec) -> Iterator[Named]:
    """Yield the candidates in order; without any, the model alone, with the label "".

    Args:
        spec: of the search.
    """
    texts = [c for text in spec.candidates for c in text.split(",") if c]
    if not texts:
        yield Named(0, spec.model, spec.checkpoint, "")
    for i, text in enumerate(texts):
        model, _, given = text.partition("=")
        checkpoint = expand_home(given, "--candidates") or None
        # two checkpoints of one model are two candidates
        yield Named(i, model, checkpoint, f"{i}-{model.rpartition(':')[2]}")
