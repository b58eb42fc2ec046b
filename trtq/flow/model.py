"""A model in memory: captured, with its weights' origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import torch
from torch import nn

from trtq.data.answers import Kind, kind_of
from trtq.data.preprocess import UNKNOWN_NORMALISATION, Preprocess
from trtq.data.sample_axes import sample_axes
from trtq.data.samples import Samples
from trtq.errors import ModelError, UsageError
from trtq.flow.run import Run
from trtq.graph.capture import CapturedGraph, capture_inputs
from trtq.graph.device import choose_device, described, device_of, on_device
from trtq.graph.feed import Feed, outputs_of
from trtq.graph.inputs import ModelInputs, StatesInputs
from trtq.graph.onnx_origin import OnnxOrigin
from trtq.graph.signature import BATCH
from trtq.layouts import in_layout, layout_of
from trtq.models.classes import known_classes
from trtq.models.load import LoadedModel
from trtq.quant.digest import weights_digest
from trtq.quant.imported_ranges import Foreign
from trtq.typed import present
from trtq.workers import Workers


def is_random(weights: str) -> bool:
    """Whether the words about weights say that nobody trained them.

    Args:
        weights: as :attr:`Model.weights` has them.
    """
    return weights.startswith("random")


def stored_ranges(module: nn.Module) -> int:
    """Return how many ranges the Q/DQ pairs of a model's file have; 0 for a float model."""
    ranges = getattr(module, "ranges", None)
    return len(ranges.amax) if isinstance(ranges, Foreign) else 0


def _in_layout(inputs: ModelInputs, picture: Preprocess, module: nn.Module) -> ModelInputs:
    """Return the size of an image in the order of a module's axes; a file orders it itself."""
    if isinstance(module, StatesInputs):
        return inputs
    return inputs._replace(example=in_layout(picture.input_size, picture.layout))


def require_float(module: nn.Module, name: str, way: str) -> None:
    """Refuse a model that is quantized already.

    Args:
        module: the model.
        name: of it.
        way: what the command offers for such a model, as a hint.

    Raises:
        UsageError: it has ranges of its own.
    """
    count = stored_ranges(module)
    if count:
        raise UsageError(
            f"{name} is quantized already",
            f"its Q/DQ pairs have {count} ranges",
            f"{way}. Take them over: trtq import-checkpoint {name} --ranges {name} --data IMAGES "
            "--out OUT",
        )


def require_single_samples(model: Model) -> None:
    """Refuse a file whose batch is fixed to another size than 1: samples come one at a time.

    Args:
        model: captured.

    Raises:
        ModelError: names the input and its batch.
    """
    inputs = model.graph.signature.inputs
    axes = sample_axes([i.shape for i in inputs])
    fixed = [
        (one, axis)
        for one, axis in zip(inputs, axes, strict=True)
        if axis is not None and one.shape and one.shape[axis] != 1
        if isinstance(one.shape[axis], int)
    ]
    if not fixed:
        return
    first, axis = fixed[0]
    size, name = first.shape[axis], first.name
    opened = " ".join(f"--dynamic {one.name}={_with_open(one.shape, k)}" for one, k in fixed)
    raise ModelError(
        f"Cannot give samples to {model.name}",
        f"its input {name} takes batches of {size} only, expected an open batch or a batch of 1",
        f"Open it: {opened}",
    )


def _with_open(shape: Sequence[int | str], axis: int) -> str:
    """Return the sizes of an input with an open batch, as ``--dynamic`` takes them."""
    return ",".join(BATCH if i == axis else str(size) for i, size in enumerate(shape))


def placed(model: Model, device_name: str, run: Run, workers: Workers | None = None) -> Model:
    """Return a model with a graph that computes where it was asked for; a GPU is noted.

    Args:
        model: captured.
        device_name: the device, such as ``cpu``, ``cuda`` or ``auto``.
        run: receives the note.
        workers: processes that share the GPUs of a machine.

    Raises:
        UsageError: there is no such device.
        ModelError: it takes only batches of a fixed size above 1.
    """
    require_single_samples(model)
    device = choose_device(device_name, workers)
    if device_note := described(device):
        run.note(device_note)
    return model.on(device)


def about_weights(loaded: LoadedModel) -> list[str]:
    """Return what a user must know about weights that nobody trained.

    Args:
        loaded: the model.

    Returns:
        One line, or none.
    """
    if not is_random(loaded.weights):
        return []
    return [
        f"the weights are {loaded.weights}: accuracy is meaningless, speed and size are valid "
        "(--checkpoint)"
    ]


@dataclass(kw_only=True)
class Model:
    """A captured model.

    Attributes:
        name: the text it was asked for by, or its class.
        module: what was captured.
        weights: where the weights come from, in words.
        graph: the captured graph with its signature.
        preprocess: how images become its input; None for a program's own model without one.
        notes: what a user must know about the model, its weights and its input.
        scores: labels say that its first output is scores of classes.
    """

    name: str
    module: nn.Module
    weights: str
    graph: CapturedGraph
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()
    scores: bool = False

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        preprocess: Preprocess | None,
        about_input: Sequence[str] = (),
        inputs: ModelInputs | None = None,
    ) -> Model:
        """Return a loaded model, captured on its inputs.

        Args:
            loaded: the model and its weights.
            preprocess: how images become its input; None for other data.
            about_input: what a user must know about that and about the model.
            inputs: the inputs; default: the image that ``preprocess`` makes.

        Raises:
            CaptureError: it cannot be captured as one graph.
        """
        if inputs is None:
            assert preprocess is not None
            inputs = ModelInputs(preprocess.input_size)
        if preprocess is not None and inputs.example is preprocess.input_size:
            inputs = _in_layout(inputs, preprocess, loaded.module)
        graph = capture_inputs(loaded.module, inputs)
        if preprocess is not None and graph.signature.takes_one_image:
            layout = layout_of(graph.signature.input.shape) or preprocess.layout
            preprocess = msgspec.structs.replace(preprocess, layout=layout)
        return cls(
            name=loaded.name,
            module=loaded.module,
            weights=loaded.weights,
            graph=graph,
            preprocess=preprocess,
            notes=(*about_weights(loaded), *about_input, *graph.notes),
        )

    @property
    def device(self) -> torch.device:
        """Where its graph computes."""
        return device_of(self.graph.module)

    def on(self, device: torch.device) -> Model:
        """Return the model with a graph that computes on ``device``; itself where it does."""
        if self.device == device:
            return self
        examples = tuple(t.to(device) for t in self.graph.examples)
        module = on_device(self.graph.module, device)
        return replace(self, graph=replace(self.graph, module=module, examples=examples))

    @property
    def largest_batch(self) -> int | None:
        """The most samples that go in at once; None without a limit."""
        if not self.graph.dynamic_batch:
            return 1
        signature = self.graph.signature
        first = {str(t.shape[0]) for t in signature.inputs if t.shape}
        limits = [signature.ranges[n].most for n in first if n in signature.ranges]
        return min(present(limits), default=None)

    @property
    def without_image(self) -> Model:
        """The model without a preprocessing of images, where it takes something else."""
        if self.graph.signature.takes_one_image:
            return self
        notes = tuple(n for n in self.notes if n != UNKNOWN_NORMALISATION)
        return replace(self, preprocess=None, notes=notes)

    def judged_by(self, samples: Samples) -> Model:
        """Return the model as these samples judge it: class indices ask for scores of classes.

        Args:
            samples: that the model is evaluated on.
        """
        return replace(self, scores=True) if samples.class_targets else self

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata that the maker of an ONNX file wrote; empty for other models."""
        origin = getattr(self.module, "origin", None)
        return origin.metadata if isinstance(origin, OnnxOrigin) else {}

    @property
    def random_weights(self) -> bool:
        """Whether nobody trained the weights."""
        return is_random(self.weights)

    @property
    def input_names(self) -> list[str]:
        """The names of its inputs, in order."""
        return [t.name for t in self.graph.signature.inputs]

    @cached_property
    def weights_sha256(self) -> str:
        """Digest of the model's own weights, before any method."""
        return weights_digest(self.graph.module)

    @cached_property
    def answers(self) -> Feed:
        """Answer of the model itself to the example: every output."""
        with torch.no_grad():
            return outputs_of(self.graph.module(*self.graph.examples))

    @property
    def reference(self) -> torch.Tensor:
        """The first of :attr:`answers`."""
        return self.answers[0]

    def answer_kind(self, labelled: int | None, *, scored: bool = False) -> Kind:
        """Return what the model's output is.

        It is scores of classes only where the model, its labels or its masks say so.

        Args:
            labelled: classes of the images; as many as the output has columns make it scores.
            scored: labels or masks say that the output is scores, in any number.
        """
        shape = self.reference.shape
        integer = not self.reference.is_floating_point()
        if len(shape) < 2:
            return kind_of(shape, integer=integer, classes=None)
        columns = int(shape[1])
        classes = known_classes(self.module, self.name, columns)
        if scored or self.scores or labelled == columns:
            classes = columns
        return kind_of(shape, integer=integer, classes=classes)
