"""From what a spec says to the model and the preprocessing, the same way in every verb."""

from __future__ import annotations

from pathlib import Path

from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.models.load import LoadedModel, load_model
from trtq.recipe import (
    AdviseSpec,
    AnalyzeSpec,
    BlocksSpec,
    CostSpec,
    FinetuneSpec,
    ImportCheckpointSpec,
    ModelInputSpec,
    QuantizeSpec,
    SearchSpec,
)


def open_model(
    spec: QuantizeSpec | AnalyzeSpec | AdviseSpec | FinetuneSpec | SearchSpec | CostSpec | BlocksSpec | ImportCheckpointSpec,
) -> LoadedModel:
    """Return the model of a spec with its weights.

    Raises:
        ModelError: it is unknown, or its checkpoint does not fit.
    """
    checkpoint = Path(spec.checkpoint) if spec.checkpoint else None
    seed = 0 if isinstance(spec, (BlocksSpec, AdviseSpec)) else spec.seed
    return load_model(spec.model, args=spec.model_arg, checkpoint=checkpoint, match=spec.checkpoint_match, seed=seed)


def open_preprocess(spec: ModelInputSpec, loaded: LoadedModel) -> tuple[Preprocess, list[str]]:
    """Return how images become the model's input, and what the user must know about it."""
    return resolve_preprocess(
        input_size=spec.input_size, mean=spec.mean, std=spec.std, preset=spec.preset, resize=spec.resize, crop=spec.crop,
        interpolation=spec.interpolation, hints=loaded.input_hints,
    )  # fmt: skip
