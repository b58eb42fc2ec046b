"""A model in memory: captured, with its weights' origin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from trtq.data.answers import Kind, kind_of
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.graph.capture import CapturedGraph, capture
from trtq.models.classes import known_classes
from trtq.models.load import LoadedModel
from trtq.quant.digest import weights_digest


@dataclass(kw_only=True)
class Model:
    """A captured model.

    Attributes:
        name: the text it was asked for by, or its class.
        module: what was captured.
        weights: where the weights come from, in words.
        graph: the captured graph with its signature.
        preprocess: how images become its input; None for a program's own model without one.
    """

    name: str
    module: nn.Module
    weights: str
    graph: CapturedGraph
    preprocess: Preprocess | None = None

    @classmethod
    def of(cls, loaded: LoadedModel, preprocess: Preprocess) -> Model:
        """Return a loaded model, captured on the input that its preprocessing makes.

        Raises:
            CaptureError: it cannot be captured as one graph.
        """
        return cls(
            name=loaded.name,
            module=loaded.module,
            weights=loaded.weights,
            graph=capture(loaded.module, preprocess.input_size),
            preprocess=preprocess,
        )

    @property
    def random_weights(self) -> bool:
        """Whether nobody trained the weights."""
        return self.weights.startswith("random")

    @cached_property
    def weights_sha256(self) -> str:
        """Of the model's own weights, before any method."""
        return weights_digest(self.graph.module)

    @cached_property
    def reference(self) -> torch.Tensor:
        """What the model itself answers for the example."""
        with torch.no_grad():
            answer: torch.Tensor = self.graph.module(self.graph.example)
        return answer

    def answer_kind(self, samples: Samples | None, *, scored: bool = False) -> Kind:
        """Return what the model's output is.

        It is scores of classes only where the model, its labels or its masks say so.

        Args:
            samples: as many classes as the output has columns make it scores.
            scored: labels or masks say that the output is scores, whatever their number.
        """
        shape = self.reference.shape
        integer = not self.reference.is_floating_point()
        if len(shape) < 2:
            return kind_of(shape, integer=integer, classes=None)
        columns = int(shape[1])
        classes = known_classes(self.module, self.name, columns)
        if scored or (samples is not None and samples.classes == columns):
            classes = columns
        return kind_of(shape, integer=integer, classes=classes)
