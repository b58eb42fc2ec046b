"""From any object that a program calls a model to a captured one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from trtq.data.preprocess import PRESETS, Preprocess, resolve_preprocess
from trtq.errors import CaptureError, UsageError, suggest
from trtq.flow.loading import load_text
from trtq.flow.model import Model
from trtq.graph.capture import capture_inputs
from trtq.graph.inputs import ModelInputs
from trtq.graph.opaque import use_library
from trtq.graph.signature import SizeRange
from trtq.models.deployed import deployed_
from trtq.models.pt2 import from_program
from trtq.models.unwrap import unwrap

IMAGE_AXES = 3
FOR_TEXTS = ("checkpoint", "checkpoint_key", "model_arg", "checkpoint_match")


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """How a model is loaded and captured: the arguments of ``trtq.load``, None where not given.

    Attributes:
        usual_axes: names of the axes of each input that the data let open; a model may fix some.
        checkpoint, checkpoint_match, checkpoint_key: weights to load, how their names are matched,
            and where they are in the file.
        model_arg: keyword arguments of the factory.
        input_size: (C, H, W) of an image.
        preprocess: how images become the input, or the name of a preset.
        example: one batch of the inputs.
        dynamic: names of open axes by input.
        ranges: sizes of open axes by name.
        outputs: names of the outputs to keep.
        ort_library: library of custom ops for ONNX Runtime.
        name: what to call a module or program in memory.
        seed: of random weights.
    """

    checkpoint: str | Path | None = None
    checkpoint_match: Literal["order", "subset"] | None = None
    checkpoint_key: str | None = None
    model_arg: Mapping[str, Any] | None = None
    input_size: tuple[int, int, int] | None = None
    preprocess: Preprocess | str | None = None
    example: object = None
    dynamic: Mapping[str, Sequence[int | str]] | None = None
    ranges: Mapping[str, SizeRange] | None = None
    outputs: tuple[str, ...] | None = None
    ort_library: str | Path | None = None
    name: str | None = None
    usual_axes: tuple[str, ...] | None = None
    seed: int = 0

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Refuse arguments that would have no effect.

        Args:
            names: of attributes.
            reason: why they have no effect.

        Raises:
            UsageError: names them.
        """
        require_unused(vars(self), names, reason)

    def picture(
        self, hints: Mapping[str, Any] | None = None
    ) -> tuple[Preprocess | None, list[str]]:
        """Return how images become the input, and what a user should know about it.

        Args:
            hints: what the model's authors say.

        Raises:
            UsageError: there is no preset of that name.
        """
        if not isinstance(self.preprocess, str):
            return self.preprocess, []
        preset = next((p for p in PRESETS if p == self.preprocess), None)
        if preset is None:
            raise UsageError(
                f"There is no preset {self.preprocess!r}",
                f"known are {', '.join(PRESETS)}",
                suggest(self.preprocess, PRESETS),
            )
        return resolve_preprocess(preset=preset, input_size=self.input_size, hints=hints)

    def inputs(self, otherwise: object) -> ModelInputs:
        """Return what the model is given: the example, or else the size of an image.

        Args:
            otherwise: the size of an image, where no example was given.
        """
        example = otherwise if self.example is None else self.example
        return ModelInputs(
            example, self.dynamic, self.ranges or {}, self.outputs or (), self.usual_axes or ()
        )


def require_unused(given: Mapping[str, object], names: Sequence[str], reason: str) -> None:
    """Refuse arguments that would have no effect.

    Args:
        given: arguments by name, None where not given.
        names: of those that have no effect.
        reason: why.

    Raises:
        UsageError: names them.
    """
    wrong = [name for name in names if given[name] is not None]
    if wrong:
        raise UsageError(
            f"Cannot use {' and '.join(wrong)} with this model", reason, "Leave them out"
        )


def load_any(model: object, request: LoadRequest) -> Model:
    """Return a model, captured as one graph.

    Args:
        model: a loaded model, an nn.Module, an ExportedProgram, a path or the text of a model.
        request: how it is loaded and captured.

    Raises:
        UsageError: no such thing, or arguments that do not fit it.
        ModelError: it is unknown, or its weights do not fit.
        CaptureError: it cannot be captured.
    """
    if isinstance(model, Model):
        request.refuse([n for n in vars(request) if n != "seed"], "it is captured already")
        return model
    size, picture = request.input_size, request.preprocess
    if size is not None and isinstance(picture, Preprocess) and picture.input_size != size:
        raise UsageError(
            f"input_size is {size}, and preprocess makes {picture.input_size}",
            hint="Give one of them",
        )
    if isinstance(model, nn.Module):
        return _own(model, request)
    if isinstance(model, ExportedProgram):
        return _program(model, request)
    if isinstance(model, (str, Path)):
        return _text(str(model), request)
    raise UsageError(
        f"Cannot load a {type(model).__name__} as a model",
        "expected an nn.Module, a loaded model or the text of one",
        "Give the module itself, or timm:NAME, or file.py:factory",
    )


def _program(program: ExportedProgram, request: LoadRequest) -> Model:
    request.refuse(FOR_TEXTS, "a program in memory has its weights already")
    loaded = from_program(program, request.name or "exported program")
    picture, notes = request.picture(loaded.input_hints)
    if picture is None:
        picture, notes = resolve_preprocess(input_size=request.input_size, hints=loaded.input_hints)
    return Model.of(loaded, picture, notes, request.inputs(picture.input_size))


def _text(name: str, request: LoadRequest) -> Model:
    request.refuse(("name",), "the text of a model is its name")
    if request.ort_library is not None:
        use_library(Path(request.ort_library))
    loaded = load_text(
        name,
        args=request.model_arg,
        checkpoint=Path(request.checkpoint) if request.checkpoint else None,
        match=request.checkpoint_match or "name",
        key=request.checkpoint_key,
        seed=request.seed,
    )
    picture, picture_notes = request.picture(loaded.input_hints)
    notes = [*loaded.notes, *picture_notes]
    if picture is None and request.example is None:
        picture, picture_notes = resolve_preprocess(
            input_size=request.input_size, hints=loaded.input_hints
        )
        notes += picture_notes
    model = Model.of(loaded, picture, notes, request.inputs(picture and picture.input_size))
    return model if request.preprocess is not None else model.without_image


def _own(module: nn.Module, request: LoadRequest) -> Model:
    """Return a program's own module, captured; the module itself is not changed.

    Raises:
        UsageError: its inputs are not known.
        CaptureError: it is in training mode, on a GPU, or cannot be captured.
    """
    request.refuse(FOR_TEXTS, "a module in memory has its weights already")
    name, (picture, _) = request.name or type(module).__name__, request.picture()
    inputs = request.inputs(request.input_size or (picture and picture.input_size))
    _require_inputs(name, inputs.example)
    _require_eval(name, module)
    plain, came_off = unwrap(copy.deepcopy(module), name)
    _require_float(name, plain)
    came_off += deployed_(plain)
    graph = capture_inputs(plain, inputs)
    return Model(
        name=name,
        module=plain,
        weights="the program's own",
        graph=graph,
        preprocess=picture,
        notes=(*came_off, *graph.notes),
    )


def _require_inputs(name: str, example: object) -> None:
    if example is None:
        raise UsageError(
            f"The inputs of {name} are not known",
            "a module in memory does not say them",
            "Give input_size=(C, H, W) for images, example=one batch, or data of tensors",
        )
    if not isinstance(example, tuple) or not all(isinstance(v, int) for v in example):
        return
    if len(example) != IMAGE_AXES or not all(v > 0 for v in example):
        raise UsageError(
            f"Cannot use input_size={example!r} for {name}",
            "an image has channels, height and width",
            "Write it like input_size=(3, 224, 224), or give example= for other inputs",
        )


def _require_eval(name: str, module: nn.Module) -> None:
    training = next((n for n, m in module.named_modules() if m.training), None)
    if training is not None:
        raise CaptureError(
            f"{name} is in training mode" + (f" at {training}" if training else ""),
            "dropout and BatchNorm compute something else there",
            "Call .eval() first",
        )


def _require_float(name: str, module: nn.Module) -> None:
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()} - {"float32"}
    devices = {p.device.type for p in module.parameters()} - {"cpu"}
    if kinds or devices:
        raise CaptureError(
            f"Cannot capture {name}",
            f"its parameters are {', '.join(sorted(kinds | devices))}, expected float32 on the CPU",
            "Call .float().cpu() first",
        )
