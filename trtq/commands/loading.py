"""Open the model and the preprocessing of a spec, the same way in every verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from trtq.artifact import digest_of
from trtq.data.adapters import open_data
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import EncodingsError, UsageError
from trtq.flow.data import forward_names, pixels_explained
from trtq.flow.loading import load_text
from trtq.flow.model import Model
from trtq.graph.capture import capture
from trtq.graph.inputs import ModelInputs
from trtq.models.load import LoadedModel
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
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
from trtq.specs.base import option_name
from trtq.specs.inputs import PICTURE, InputSpec

Note = Callable[..., None]


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
    return load_text(
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
    given = {n: getattr(spec, n) for n in PICTURE}
    preprocess, notes = resolve_preprocess(**given, hints=loaded.input_hints)
    return preprocess, [*loaded.notes, *notes]


def open_given(spec: InputSpec, note: Note, *, limit: int | None = None) -> Data:
    """Return the data of a spec, checked as far as that needs no model.

    Args:
        spec: names the data.
        note: receives what a user should read.
        limit: keep at most so many samples of what can be read once only.

    Raises:
        DataError: missing, empty, damaged or ambiguous.
        UsageError: an option that is for other data.
    """
    return open_data(
        Request(
            text=spec.data,
            class_index=spec.class_index,
            masks=getattr(spec, "masks", None),
            ignore_index=getattr(spec, "ignore_index", None) if _has_masks(spec) else None,
            tokenizer=spec.tokenizer,
            limit=limit,
            note=note,
        )
    )


def _has_masks(spec: InputSpec) -> bool:
    return getattr(spec, "masks", None) is not None


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """What a model of a spec is captured on.

    Attributes:
        data: what was opened.
        preprocess: how images become its input; None for data that are inputs already.
        example: a batch of the data; None where ``preprocess`` says all.
        notes: what the user must know about the model and its input.
    """

    data: Data
    preprocess: Preprocess | None
    example: object
    notes: list[str]

    def capture(self, loaded: LoadedModel) -> Model:
        """Return the model, captured.

        Raises:
            CaptureError: it cannot be captured as one graph.
        """
        inputs = None if self.example is None else ModelInputs(self.example)
        with pixels_explained(self.data, self.example):
            return Model.of(loaded, self.preprocess, self.notes, inputs)


def input_of(spec: ModelInputSpec, loaded: LoadedModel, data: Data) -> ModelInput:
    """Return what a model is captured on: images as the spec says, or the first samples.

    Raises:
        UsageError: settings of images for data that are none.
        DataError: the first samples cannot be read.
    """
    example = data.first_batch(forward_names(loaded.module))
    if example is None:
        preprocess, notes = open_preprocess(spec, loaded)
        return ModelInput(data=data, preprocess=preprocess, example=None, notes=notes)
    require_no_picture(spec, data)
    return ModelInput(data=data, preprocess=None, example=example, notes=list(loaded.notes))


def require_no_picture(spec: InputSpec, data: Data) -> None:
    """Refuse settings of images for data that are none.

    Raises:
        UsageError: names the settings.
    """
    given = [option_name(n) for n in PICTURE if getattr(spec, n) is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} are for images",
            f"the samples of {data.name} are inputs of the model already",
            f"Leave {' and '.join(given)} out",
        )


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


def require_own(encodings: Encodings, graph: fx.GraphModule, path: str, doing: str) -> str:
    """Return the digest of a graph's weights, once the encodings are known to be of this model.

    Raises:
        EncodingsError: they are of other weights, or their methods put ops into the graph that
            capturing the model does not give.
    """
    weights, structure, origin = weights_digest(graph), structure_digest(graph), encodings.origin
    if origin.get("weights_sha256") != weights:
        raise EncodingsError(
            f"The encodings {path} were made for another model",
            f"its weights are {str(origin.get('weights_sha256'))[:12]}, this model's are "
            f"{weights[:12]}",
            "Give the model and the checkpoint they were made with",
        )
    if origin.get("structure_sha256", structure) != structure:
        raise EncodingsError(
            f"Cannot {doing} {path}",
            f"its methods ({origin.get('methods')}) put ops into the graph that the model "
            "itself does not have",
            f"Quantize without qads and integer-softmax, and {doing} that",
        )
    return weights
