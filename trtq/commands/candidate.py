"""A model that a search considers: opened, captured and counted once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtq.commands.layer_costs import outline, weights_of
from trtq.commands.loading import open_model, open_preprocess
from trtq.data.labels import open_labels
from trtq.data.samples import ImageSamples
from trtq.data.source import Source
from trtq.errors import UsageError
from trtq.flow.data import IGNORE
from trtq.flow.model import Model
from trtq.quant.digest import structure_digest
from trtq.records.analyze import AnalyzeRecord, Outline
from trtq.specs import ModelInputSpec, SearchSpec


class Candidate:
    """A model, what it could cost, and where its results go."""

    def __init__(
        self,
        spec: SearchSpec,
        number: int,
        name: str,
        checkpoint: str | None,
        folder: Path,
        label: str,
    ) -> None:
        self.number, self.name, self.folder, self.label = number, name, folder, label
        self.fields = {f: getattr(spec, f) for f in ModelInputSpec.__struct_fields__}
        key = spec.checkpoint_key if checkpoint else None
        self.fields.update({"model": name, "checkpoint": checkpoint, "checkpoint_key": key})
        own = ("model", "checkpoint", "checkpoint_key", "model_arg")
        loaded = open_model(msgspec.structs.replace(spec, **{f: self.fields[f] for f in own}))
        self.notes = [f"{label}: {line}" if label else line for line in loaded.notes]
        preprocess, about_input = open_preprocess(msgspec.structs.replace(spec, model=name), loaded)
        self.model = Model.of(loaded, preprocess, about_input)
        captured = self.model.graph
        self.digests = [self.model.weights_sha256, structure_digest(captured.module)]
        weights = weights_of(captured.module)
        if not weights:
            raise UsageError(
                f"There is nothing to search in {name}",
                "it has no convolution or linear with a constant weight",
            )
        self.outline: Outline = outline(captured.module, captured.examples, weights)
        self.analysis: AnalyzeRecord | None = None
        self.needed: dict[str, str] = {}  # budgets that accuracy would need, as a person reads them

    def images(
        self, source: Source, indices: Sequence[int], *, labelled: bool = False
    ) -> ImageSamples:
        """Return images of a source as this model's input."""
        picture = self.model.preprocess
        assert picture is not None
        labels = open_labels(source, None, picture, IGNORE) if labelled else None
        return ImageSamples(source=source, picture=picture, indices=indices, labels=labels)

    @property
    def analysed(self) -> AnalyzeRecord:
        """The analysis, once there is one."""
        assert self.analysis is not None
        return self.analysis
