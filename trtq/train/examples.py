"""What a graph learns from: images with their labels or masks, and a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from trtq.data.labels import Labels
from trtq.data.preprocess import Preprocess, ahead, read_image
from trtq.data.source import Source
from trtq.train.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Images and their labels."""

    source: Source
    labels: Labels | None
    preprocess: Preprocess

    def walk(
        self, parts: Sequence[Sequence[int]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield images [N, C, H, W] and their labels, one part after the other.

        The next part is decoded in the background.
        """

        def decode(part: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
            images = torch.stack([read_image(self.source, i, self.preprocess)[0] for i in part])
            return images, self.labels.of(part) if self.labels is not None else None

        return ahead(parts, decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """What is learned.

    Attributes:
        objective: the loss.
        teacher: the float model, on the device of the graph.
        train: images to learn from.
        val: images every epoch is measured on, and which of them; None without.
        batch: images a step, over all processes.
        classes: outputs of the model.
    """

    objective: Objective
    teacher: fx.GraphModule
    train: Examples
    val: tuple[Examples, list[int]] | None
    batch: int
    classes: int

    @property
    def measure(self) -> str:
        """What an epoch's score is."""
        labels = self.val[0].labels if self.val is not None else None
        return "mIoU" if labels is not None and labels.dense else "top-1"
