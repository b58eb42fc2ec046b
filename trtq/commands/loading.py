"""Open the model and the preprocessing of a spec, the same way in every verb."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtq.artifact import digest_of
from trtq.data.adapters import open_data
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import DataError, UsageError
from trtq.flow.data import forward_names, pixels_explained
from trtq.flow.loading import load_text
from trtq.flow.model import Model
from trtq.graph.capture import capture_inputs
from trtq.graph.inputs import ModelInputs, read_inputs
from trtq.graph.opaque import use_library
from trtq.models.load import LoadedModel
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
from trtq.specs.base import option_name
from trtq.specs.inputs import InputSpec

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

    Args:
        spec: names the model, its arguments and its checkpoint.

    Raises:
        ModelError: it is unknown, or its checkpoint does not fit.
        UsageError: how to read a checkpoint was said, and no checkpoint.
    """
    read_inputs(spec.input, spec.dynamic)  # what reads otherwise is refused before any work
    if spec.ort_library is not None:
        use_library(Path(spec.ort_library))
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

    Args:
        spec: what the user says of images.
        loaded: its hints fill what the spec leaves open.

    Returns:
        The preprocessing; and notes about the model, then about the preprocessing.
    """
    preprocess, notes = resolve_preprocess(**spec.picture, hints=loaded.input_hints)
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


def require_val_masks(spec: FinetuneSpec | SearchSpec) -> None:
    """Refuse validation images without masks where the other images have some.

    Raises:
        UsageError: they have none.
    """
    if spec.val is not None and spec.masks is not None and spec.val_masks is None:
        raise UsageError(
            "--val needs --val-masks",
            "the images of --data have masks",
            "Give the masks of the validation images",
        )


def _has_masks(spec: InputSpec) -> bool:
    return getattr(spec, "masks", None) is not None


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """The inputs on which a model of a spec is captured.

    Attributes:
        spec: names the model.
        data: what was opened.
        preprocess: how images become its input; None for data that are inputs already.
        example: a batch of the data; None where ``preprocess`` says all.
        notes: what the user must know about the model and its input.
    """

    spec: ModelInputSpec
    data: Data
    preprocess: Preprocess | None
    example: object
    notes: list[str]

    def capture(self, loaded: LoadedModel) -> Model:
        """Return the model, captured.

        Raises:
            CaptureError: it cannot be captured as one graph.
        """
        picture = self.preprocess and self.preprocess.input_size
        inputs = inputs_of(self.spec, picture if self.example is None else self.example)
        if not self.spec.input:  # sizes that a user typed are fixed
            inputs = inputs._replace(usual_axes=self.data.axes)
        with pixels_explained(self.data, self.example):
            model = Model.of(loaded, self.preprocess, self.notes, inputs)
        return model if self.data.source is not None else model.without_image


def input_of(spec: ModelInputSpec, loaded: LoadedModel, data: Data) -> ModelInput:
    """Return what a model is captured on: images as the spec says, or the first samples.

    Args:
        spec: names the model and its inputs.
        loaded: the model.
        data: what was opened.

    Raises:
        UsageError: settings of images for data that are none.
        DataError: the first samples cannot be read.
    """
    example = data.first_batch(forward_names(loaded.module))
    if example is None and (data.source is not None or not spec.input):
        preprocess, notes = open_preprocess(spec, loaded)
        return ModelInput(spec=spec, data=data, preprocess=preprocess, example=None, notes=notes)
    require_no_picture(spec, data)
    notes = list(loaded.notes)
    return ModelInput(spec=spec, data=data, preprocess=None, example=example, notes=notes)


def inputs_of(spec: ModelInputSpec | BlocksSpec | CostSpec, otherwise: object) -> ModelInputs:
    """Return what a model is captured on: the inputs that a user typed, else ``otherwise``.

    Args:
        spec: with ``input``, ``dynamic`` and ``outputs``.
        otherwise: a size (C, H, W), or a batch of examples.

    Raises:
        UsageError: an option that reads otherwise.
    """
    typed, axes, ranges = read_inputs(spec.input, spec.dynamic)
    return ModelInputs(typed or otherwise, axes, ranges, spec.outputs)


def require_no_picture(spec: InputSpec, data: Data) -> None:
    """Refuse settings of images for data that are none.

    Args:
        spec: with the settings; None is not said.
        data: named in the message.

    Raises:
        UsageError: names the settings.
    """
    given = [option_name(n) for n, v in spec.picture.items() if v is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} are for images",
            f"the samples of {data.name} are inputs of the model already",
            f"Leave {' and '.join(given)} out",
        )


def model_digest(spec: QuantizeSpec | FinetuneSpec) -> str:
    """Return a SHA-256 over the weights and the structure of a spec's model, as captured.

    All that the factory reads or imports to make the model is in it.

    Args:
        spec: names the model and its data.

    Raises:
        ModelError: it is unknown, or its checkpoint does not fit.
        CaptureError: it cannot be captured as one graph.
    """
    loaded = open_model(spec)
    try:
        data = open_given(spec, lambda _: None)
    except DataError:  # the step itself says what is wrong with them
        preprocess, _ = open_preprocess(spec, loaded)
        graph = capture_inputs(loaded.module, inputs_of(spec, preprocess.input_size)).module
    else:
        graph = input_of(spec, loaded, data).capture(loaded).graph.module
    class_count = getattr(loaded.module, "num_classes", None)  # decides what the output is
    return digest_of(
        [
            weights_digest(graph),
            structure_digest(graph),
            class_count if isinstance(class_count, int) else None,
        ]
    )
