"""Open the model and the preprocessing of a spec, the same way in every verb."""

from __future__ import annotations

from pathlib import Path

from trtq.artifact import digest_of
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import UsageError
from trtq.graph.capture import capture
from trtq.models.load import LoadedModel, load_model
from trtq.quant.digest import structure_digest, weights_digest
from trtq.specs import (
    AdviseSpec,
    AnalyzeSpec,
    BlocksSpec,
    CostSpec,
    ExportSpec,
    FinetuneSpec,
    ImportCheckpointSpec,
    ModelInputSpec,
    QuantizeSpec,
    SearchSpec,
)


def open_model(
    spec: QuantizeSpec
    | AnalyzeSpec
    | AdviseSpec
    | FinetuneSpec
    | SearchSpec
    | CostSpec
    | BlocksSpec
    | ImportCheckpointSpec
    | ExportSpec,
) -> LoadedModel:
    """Return the model of a spec with its weights.

    Raises:
        ModelError: it is unknown, or its checkpoint does not fit.
        UsageError: a part of the checkpoint was named, and no checkpoint.
    """
    if spec.checkpoint_key and not spec.checkpoint:
        raise UsageError("--checkpoint-key needs --checkpoint", "it names a part of that file")
    seed = 0 if isinstance(spec, (BlocksSpec, AdviseSpec)) else spec.seed
    return load_model(
        spec.model,
        args=spec.model_arg,
        checkpoint=Path(spec.checkpoint) if spec.checkpoint else None,
        match=spec.checkpoint_match,
        key=spec.checkpoint_key,
        seed=seed,
    )


def open_preprocess(spec: ModelInputSpec, loaded: LoadedModel) -> tuple[Preprocess, list[str]]:
    """Return how images become the model's input, and what the user must know about both.

    The second part covers the preprocessing and the model.
    """
    preprocess, notes = resolve_preprocess(
        input_size=spec.input_size,
        mean=spec.mean,
        std=spec.std,
        preset=spec.preset,
        resize=spec.resize,
        crop=spec.crop,
        interpolation=spec.interpolation,
        hints=loaded.input_hints,
    )
    return preprocess, [*loaded.notes, *notes]


def model_digest(spec: QuantizeSpec | FinetuneSpec) -> str:
    """Return a SHA-256 over the weights and the structure of a spec's model, as captured.

    Whatever the factory reads or imports to make the model is in it.
    """
    loaded = open_model(spec)
    preprocess, _ = open_preprocess(spec, loaded)
    graph = capture(loaded.module, preprocess.input_size).module
    said = getattr(loaded.module, "num_classes", None)  # decides what the output is
    return digest_of(
        [weights_digest(graph), structure_digest(graph), said if isinstance(said, int) else None]
    )
