"""What is known of a model's answers before any is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from trtq.data.samples import Batch, Samples

IMAGE_AXES = 4  # samples, channels, height, width


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model's answers before any is read.

    Attributes:
        outputs: shapes by name, in order, samples first; an open size is a text or None.
        size: height and width of the input image; None where there is none, or it is open.
        metadata: what the maker of the file wrote into it, such as ``names`` and ``stride``.
        classes: names of the classes of the labels, in index order; empty without labels.
    """

    outputs: Mapping[str, tuple[int | str | None, ...]]
    size: tuple[int, int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def facts_of(
    outputs: Mapping[str, npt.NDArray[Any]],
    batch: Batch,
    samples: Samples,
    metadata: Mapping[str, str],
) -> Facts:
    """Return what a first batch and its answers say."""
    first = next(iter(batch.inputs.values()))
    image = batch.places is not None or first.ndim == IMAGE_AXES
    return Facts(
        outputs={name: tuple(a.shape) for name, a in outputs.items()},
        size=(int(first.shape[2]), int(first.shape[3])) if image else None,
        metadata=metadata,
        classes=samples.class_names,
    )
