"""The objects' entry points: what ``trtq.load``, ``trtq.samples`` and ``trtq.quantize`` are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.samples import Samples
from trtq.errors import CaptureError, UsageError
from trtq.flow.data import open_samples as samples
from trtq.flow.model import Model
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.graph.capture import capture
from trtq.models.load import LoadedModel, load_model
from trtq.progress import Progress, Silent
from trtq.records.quantize import QuantizeRecord
from trtq.specs import QuantizeOptions, QuantizeSpec

__all__ = ["load", "quantize", "samples"]

IMAGE_AXES = 3


def load(
    model: str | nn.Module | Model,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_match: Literal["name", "order"] = "name",
    checkpoint_key: str | None = None,
    model_arg: Mapping[str, Any] | None = None,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Model:
    """Return a model, captured as one graph.

    Args:
        model: an nn.Module in eval mode, or the text of one: ``timm:NAME``, ``torchvision:NAME``,
            ``package.module:factory``, ``path/to/file.py:factory``.
        checkpoint: weights to load.
        checkpoint_match: how tensors of the checkpoint find theirs in the model.
        checkpoint_key: where in the checkpoint the weights are.
        model_arg: keyword arguments of the factory.
        input_size: (C, H, W) of the input; default: the model's own, else 3x224x224.
        preprocess: how images become the input; default: the authors' for a model by text, none
            for an nn.Module.
        name: what to call an nn.Module; default: its class.
        seed: makes random weights repeatable.

    Raises:
        ModelError: unknown model, a checkpoint that does not fit, NaN weights.
        CaptureError: it cannot be captured as one graph.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        if checkpoint is not None or model_arg:
            raise UsageError(
                "A module in memory takes no checkpoint and no arguments",
                "it has its weights already",
                "Load them first, or give the text of a model",
            )
        return _own(model, name or type(model).__name__, input_size, preprocess)
    loaded = load_model(
        model,
        args=model_arg,
        checkpoint=Path(checkpoint) if checkpoint else None,
        match=checkpoint_match,
        key=checkpoint_key,
        seed=seed,
    )
    return Model.of(loaded, preprocess or _authors(loaded, input_size))


def _authors(loaded: LoadedModel, input_size: tuple[int, int, int] | None) -> Preprocess:
    return resolve_preprocess(input_size=input_size, hints=loaded.input_hints)[0]


def _own(
    module: nn.Module,
    name: str,
    input_size: tuple[int, int, int] | None,
    preprocess: Preprocess | None,
) -> Model:
    """Return a program's own module, captured; the module itself is not changed.

    Raises:
        UsageError: its input size is not known.
        CaptureError: it is in training mode, not float32, or cannot be captured.
    """
    size = input_size or (preprocess.input_size if preprocess is not None else None)
    if size is None:
        raise UsageError(
            f"The input size of {name} is not known",
            "a module in memory does not say it",
            "Give input_size=(C, H, W), or data of tensors",
        )
    if module.training:
        raise CaptureError(
            f"{name} is in training mode",
            "dropout and BatchNorm compute something else there",
            "Call .eval() first",
        )
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()} - {"float32"}
    devices = {p.device.type for p in module.parameters()} - {"cpu"}
    if kinds or devices:
        raise CaptureError(
            f"Cannot capture {name}",
            f"its parameters are {', '.join(sorted(kinds | devices))}, expected float32 on the CPU",
            "Call .float().cpu() first",
        )
    return Model(
        name=name,
        module=module,
        weights="the program's own",
        graph=capture(module, size),
        preprocess=preprocess,
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
        input_size: (C, H, W); default: the model's own, or the shape of the first sample.
        preprocess: how images become inputs.
        progress: receives progress.
        options: fields of :class:`QuantizeOptions`: ``bits``, ``method``, ``calibrator`` ...

    Raises:
        TrtqError: the options contradict each other, the data do not fit, or quantization fails.
    """
    if isinstance(model, QuantizeSpec):
        from trtq.commands.quantize import quantize as run_command

        told: Any = data if data is not None else progress
        return run_command(model, told)
    asked = QuantizeOptions.make(options)
    run = Run(progress or Silent())
    given: Samples | None = None
    if not isinstance(data, (str, Path)):
        given = samples(data, limit=asked.calib_images)
        input_size = input_size or _size_of(given)
    captured = load(model, input_size=input_size, preprocess=preprocess, seed=asked.seed)
    run.note(*captured.graph.notes)
    run.clock.lap("capture")
    everything = samples(data if given is None else given, captured)
    return quantize_model(captured, choose_samples(everything, asked, run), asked, run)


def _size_of(samples: Samples) -> tuple[int, int, int] | None:
    """Return the shape of the first sample where it is an image's."""
    shape = torch.Size(next(samples.batches(1, count=1)).input.shape[1:])
    return (shape[0], shape[1], shape[2]) if len(shape) == IMAGE_AXES else None
