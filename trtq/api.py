"""The objects' entry points: what ``trtq.load``, ``trtq.samples`` and ``trtq.quantize`` are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn
from torch.export import ExportedProgram

from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.errors import CaptureError, UsageError
from trtq.flow.data import forward_names, open_any, pixels_explained, samples_from
from trtq.flow.data import open_samples as samples
from trtq.flow.loading import load_text
from trtq.flow.model import Model
from trtq.flow.ptq import check_options
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.graph.capture import capture_inputs
from trtq.graph.inputs import ModelInputs
from trtq.graph.opaque import use_library
from trtq.graph.signature import SizeRange
from trtq.models.deployed import deployed_
from trtq.models.pt2 import from_program
from trtq.models.unwrap import unwrap
from trtq.progress import Progress, Silent
from trtq.records.quantize import QuantizeRecord
from trtq.specs import QuantizeOptions, QuantizeSpec

__all__ = ["load", "quantize", "samples"]

IMAGE_AXES = 3
FOR_TEXTS = ("checkpoint", "checkpoint_key", "model_arg", "checkpoint_match")


def load(
    model: str | nn.Module | ExportedProgram | Model,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_match: Literal["name", "order"] = "name",
    checkpoint_key: str | None = None,
    model_arg: Mapping[str, Any] | None = None,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | None = None,
    example: object = None,
    dynamic: Mapping[str, Sequence[int | str]] | None = None,
    ranges: Mapping[str, SizeRange] | None = None,
    outputs: Sequence[str] = (),
    ort_library: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Model:
    """Return a model, captured as one graph.

    Args:
        model: an nn.Module in eval mode, an ExportedProgram, or the text of a model:
            ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``,
            ``path/to/file.py:factory``, ``FILE.onnx``, ``FILE.pt2``.
        checkpoint: weights to load.
        checkpoint_match: how tensors of the checkpoint find theirs in the model.
        checkpoint_key: where in the checkpoint the weights are.
        model_arg: keyword arguments of the factory.
        input_size: (C, H, W) of the input; default: the model's own, else 3x224x224.
        preprocess: how images become the input; default: the authors' for a model by text, none
            for an nn.Module.
        example: one batch of the inputs, for a model that takes something else than one image: a
            tensor, a tuple of arguments, or a dict of named ones.
        dynamic: sizes of inputs by name; the name of an open axis is a text:
            ``{"images": ["batch", 3, "height", "width"]}``. Default: the batch is open.
        ranges: the sizes of open axes by name.
        outputs: names of the outputs to keep; default: all of them.
        ort_library: a library of custom ops, which ONNX Runtime loads, for an ONNX file with them.
        name: what to call an nn.Module; default: its class.
        seed: makes random weights repeatable.

    Raises:
        ModelError: unknown model, a checkpoint that does not fit, NaN weights.
        CaptureError: it cannot be captured as one graph.
    """
    given = {
        "checkpoint": checkpoint,
        "checkpoint_key": checkpoint_key,
        "model_arg": model_arg,
        "checkpoint_match": None if checkpoint_match == "name" else checkpoint_match,
        "input_size": input_size,
        "preprocess": preprocess,
        "example": example,
        "dynamic": dynamic,
        "ranges": ranges,
        "outputs": outputs or None,
        "name": name,
    }
    if isinstance(model, Model):
        _require_unused(given, tuple(given), "it is captured already")
        return model
    if isinstance(model, ExportedProgram):
        loaded = from_program(model, name or "exported program")
        _require_unused(given, FOR_TEXTS, "a program in memory has its weights already")
        picture, notes = resolve_preprocess(input_size=input_size, hints=loaded.input_hints)
        size = picture.input_size if example is None else example
        asked = ModelInputs(size, dynamic, ranges or {}, outputs)
        return Model.of(loaded, preprocess or picture, notes, asked)
    if ort_library is not None:
        use_library(Path(ort_library))
    if input_size is not None and preprocess is not None and preprocess.input_size != input_size:
        raise UsageError(
            f"input_size is {input_size}, and preprocess makes {preprocess.input_size}",
            hint="Give one of them",
        )
    if isinstance(model, nn.Module):
        _require_unused(given, FOR_TEXTS, "a module in memory has its weights already")
        size = input_size or (preprocess.input_size if preprocess is not None else None)
        given_inputs = ModelInputs(
            size if example is None else example, dynamic, ranges or {}, outputs
        )
        return _own(model, name or type(model).__name__, given_inputs, preprocess)
    if not isinstance(model, str):
        raise UsageError(
            f"Cannot load a {type(model).__name__} as a model",
            "expected an nn.Module, a loaded model or the text of one",
            "Give the module itself, or timm:NAME, or file.py:factory",
        )
    _require_unused(given, ("name",), "the text of a model is its name")
    loaded = load_text(
        model,
        args=model_arg,
        checkpoint=Path(checkpoint) if checkpoint else None,
        match=checkpoint_match,
        key=checkpoint_key,
        seed=seed,
    )
    inputs = None if example is None else ModelInputs(example, dynamic, ranges or {}, outputs)
    if preprocess is not None or inputs is not None:
        return Model.of(loaded, preprocess, loaded.notes, inputs)
    picture, notes = resolve_preprocess(input_size=input_size, hints=loaded.input_hints)
    inputs = ModelInputs(picture.input_size, dynamic, ranges or {}, outputs)
    return Model.of(loaded, picture, [*loaded.notes, *notes], inputs)


def _require_unused(given: Mapping[str, object], names: Sequence[str], reason: str) -> None:
    """Refuse arguments that would have no effect."""
    wrong = [name for name in names if given[name] is not None]
    if wrong:
        raise UsageError(
            f"Cannot use {' and '.join(wrong)} with this model", reason, "Leave them out"
        )


def _own(module: nn.Module, name: str, inputs: ModelInputs, preprocess: Preprocess | None) -> Model:
    """Return a program's own module, captured; the module itself is not changed.

    Raises:
        UsageError: its inputs are not known.
        CaptureError: it is in training mode, on a GPU, or cannot be captured.
    """
    if inputs.example is None:
        raise UsageError(
            f"The inputs of {name} are not known",
            "a module in memory does not say them",
            "Give input_size=(C, H, W) for images, example=one batch, or data of tensors",
        )
    size = inputs.example
    if isinstance(size, tuple) and all(isinstance(v, int) for v in size):
        _require_image(name, size)
    training = next((n for n, m in module.named_modules() if m.training), None)
    if training is not None:
        raise CaptureError(
            f"{name} is in training mode" + (f" at {training}" if training else ""),
            "dropout and BatchNorm compute something else there",
            "Call .eval() first",
        )
    plain, came_off = unwrap(copy.deepcopy(module), name)
    kinds = {str(p.dtype).removeprefix("torch.") for p in plain.parameters()} - {"float32"}
    devices = {p.device.type for p in plain.parameters()} - {"cpu"}
    if kinds or devices:
        raise CaptureError(
            f"Cannot capture {name}",
            f"its parameters are {', '.join(sorted(kinds | devices))}, expected float32 on the CPU",
            "Call .float().cpu() first",
        )
    came_off += deployed_(plain)
    graph = capture_inputs(plain, inputs)
    return Model(
        name=name,
        module=plain,
        weights="the program's own",
        graph=graph,
        preprocess=preprocess,
        notes=(*came_off, *graph.notes),
    )


def _require_image(name: str, size: tuple[int, ...]) -> None:
    if len(size) != IMAGE_AXES or not all(v > 0 for v in size):
        raise UsageError(
            f"Cannot use input_size={size!r} for {name}",
            "an image has channels, height and width",
            "Write it like input_size=(3, 224, 224), or give example= for other inputs",
        )


@overload
def quantize(model: QuantizeSpec, data: Progress | None = None, /) -> QuantizeRecord: ...
@overload
def quantize(
    model: str | nn.Module | Model,
    data: object,
    /,
    *,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Quantized: ...


def quantize(
    model: str | nn.Module | Model | QuantizeSpec,
    data: object = None,
    /,
    *,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Quantized | QuantizeRecord:
    """Quantize a model after training, in memory.

    Args:
        model: an nn.Module in eval mode, a model that :func:`load` captured, or its text. A
            :class:`QuantizeSpec` runs the command ``trtq quantize`` and returns its record.
        data: calibration samples: a DataLoader, a Dataset, a list of tensors, one tensor with
            samples first, or the text of a folder of images.
        input_size: (C, H, W); default: the model's own, or the inputs of the first samples.
        preprocess: how images become inputs.
        progress: receives progress.
        options: fields of :class:`QuantizeOptions`: ``bits``, ``method``, ``calibrator`` ...

    Raises:
        TrtqError: the options contradict each other, the data do not fit, or quantization fails.
    """
    if isinstance(model, QuantizeSpec):
        _require_unused(
            {"input_size": input_size, "preprocess": preprocess, "options": options or None},
            ("input_size", "preprocess", "options"),
            "a QuantizeSpec has them",
        )
        return _run_command(model, data if progress is None else progress)
    asked = QuantizeOptions.make(options)
    check_options(asked)
    run = Run(progress or Silent())
    given = open_any(data, limit=asked.calib_images, note=run.note)
    unknown = not isinstance(model, Model) and preprocess is None and input_size is None
    module = model if isinstance(model, nn.Module) else None
    example = given.first_batch(forward_names(module)) if unknown else None
    with pixels_explained(given, example):
        captured = load(
            model, input_size=input_size, preprocess=preprocess, example=example, seed=asked.seed
        )
    run.note(*captured.notes)
    run.clock.lap("capture")
    everything = samples_from(given, captured, preprocess=None, note=run.note)
    return quantize_model(captured, choose_samples(everything, asked, run), asked, run)


def _run_command(spec: QuantizeSpec, progress: object) -> QuantizeRecord:
    """Run ``trtq quantize``; the second argument is its listener."""
    from trtq.commands.quantize import quantize as run_command

    if progress is not None and not hasattr(progress, "advance"):
        raise UsageError(
            "A QuantizeSpec names its data itself",
            f"the second argument is a {type(progress).__name__}, expected a Progress",
            "Give the model instead of the spec",
        )
    listener: Any = progress
    return run_command(spec, listener)
