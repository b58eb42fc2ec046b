"""A model that a search considers: captured and counted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from trtq.data.samples import Samples
from trtq.data.source import spread
from trtq.errors import DataError, UsageError
from trtq.flow.layer_costs import outline, weights_of
from trtq.flow.model import Model
from trtq.quant.digest import structure_digest
from trtq.records.analyze import AnalyzeRecord, Outline
from trtq.specs import SearchOptions
from trtq.tasks import Task


@dataclass(kw_only=True)
class Candidate:
    """A model, its samples, and what was found about it.

    Attributes:
        model: captured.
        data: samples that calibration and analysis draw from, as this model's input.
        val: samples that accuracy is measured on; None for those that calibration leaves over.
        number: its place; candidate 0 is the reference.
        label: for figures; "" for the only one.
        folder: where its tries are kept; None keeps nothing.
        task: what its outputs mean; None for what the model and its labels say.
        analysis: once there is one.
        needed: budgets that accuracy would need, as a person reads them.
    """

    model: Model
    data: Samples
    val: Samples | None
    number: int = 0
    label: str = ""
    folder: Path | None = None
    task: Task | None = None
    analysis: AnalyzeRecord | None = None
    needed: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its model."""
        return self.model.name

    @property
    def notes(self) -> list[str]:
        """Notes about the model, by its label."""
        return [f"{self.label}: {n}" if self.label else n for n in self.model.notes]

    @cached_property
    def outline(self) -> Outline:
        """Counts of its layers.

        Raises:
            UsageError: no layer can have a width.
        """
        graph = self.model.graph
        weights = weights_of(graph.module)
        if not weights:
            raise UsageError(
                f"There is nothing to search in {self.name}",
                "it has no convolution or linear with a constant weight",
            )
        return outline(graph.module, graph.examples, weights)

    @property
    def digests(self) -> list[str]:
        """Digests of its weights and of its structure."""
        return [self.model.weights_sha256, structure_digest(self.model.graph.module)]

    @property
    def analysed(self) -> AnalyzeRecord:
        """The analysis, once there is one."""
        assert self.analysis is not None
        return self.analysis

    @property
    def scored(self) -> Samples:
        """The samples that have or lack the targets of accuracy."""
        return self.data if self.val is None else self.val

    def measured_on(self, options: SearchOptions) -> tuple[Samples, int]:
        """Return the samples that accuracy is measured on, and how many of them calibrate.

        Args:
            options: number and seed of the calibration samples, and the limit of samples.

        Returns:
            The samples, and how many of them calibrate too; 0 where those were left out.

        Raises:
            DataError: calibration leaves none.
        """
        used = frozenset(self.data.take(options.calib_images, options.seed).contents())
        positions: Sequence[int] = range(len(self.scored))
        shared = 0
        if self.val is None:
            contents = self.data.contents()
            positions = [i for i in positions if contents[i] not in used]
            if not positions:
                raise DataError(
                    f"No image of {self.data.name} is left to evaluate",
                    "all of them were used for calibration",
                    "Use fewer --calib-images",
                )
        chosen = self.scored.select([positions[i] for i in spread(len(positions), options.limit)])
        if self.val is not None:
            shared = sum(content in used for content in chosen.contents())
        return chosen, shared
