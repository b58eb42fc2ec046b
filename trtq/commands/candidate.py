"""A model that a search considers: opened, captured and counted once."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.commands.layer_costs import outline, weights_of
from trtq.commands.loading import open_model, open_preprocess
from trtq.errors import UsageError
from trtq.graph.capture import capture
from trtq.quant.digest import structure_digest, weights_digest
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
        self.loaded = loaded = open_model(
            msgspec.structs.replace(spec, **{f: self.fields[f] for f in own})
        )
        self.notes = [f"{label}: {line}" if label else line for line in loaded.notes]
        self.preprocess, _ = open_preprocess(msgspec.structs.replace(spec, model=name), loaded)
        self.captured = captured = capture(loaded.module, self.preprocess.input_size)
        self.digests = [weights_digest(captured.module), structure_digest(captured.module)]
        weights = weights_of(captured.module)
        if not weights:
            raise UsageError(
                f"There is nothing to search in {name}",
                "it has no convolution or linear with a constant weight",
            )
        self.outline: Outline = outline(captured.module, captured.example, weights)
        self.analysis: AnalyzeRecord | None = None
        self.needed: dict[str, str] = {}  # budgets that accuracy would need, as a person reads them

    @property
    def analysed(self) -> AnalyzeRecord:
        """The analysis, once there is one."""
        assert self.analysis is not None
        return self.analysis
