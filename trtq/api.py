"""The objects' entry points: what ``trtq.load``, ``trtq.samples`` and ``trtq.quantize`` are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn
from torch.export import ExportedProgram

from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.errors import UsageError
from trtq.flow.data import forward_names, open_any, pixels_explained, samples_from
from trtq.flow.data import open_samples as samples
from trtq.flow.load import LoadRequest, load_any, require_unused
from trtq.flow.model import Model
from trtq.flow.ptq import check_options
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.graph.signature import SizeRange
from trtq.progress import Progress, or_silent
from trtq.python_words import python_words
from trtq.records.quantize import QuantizeRecord
from trtq.specs import QuantizeOptions, QuantizeSpec, Spec
from trtq.specs.base import AUTO_TASK
from trtq.tasks import TASKS, Task, find_task

__all__ = ["load", "quantize", "samples"]


@python_words
def load(
    model: str | Path | nn.Module | ExportedProgram | Model,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_match: Literal["name", "order", "subset"] = "name",
    checkpoint_key: str | None = None,
    model_arg: Mapping[str, Any] | None = None,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | str | None = None,
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
        model: an nn.Module in eval mode, an ExportedProgram, a path, or the text of a model:
            ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``,
            ``path/to/file.py:factory``, ``FILE.onnx``, ``FILE.pt2``.
        checkpoint: weights to load.
        checkpoint_match: whether tensors of the checkpoint match those of the model by name or by
            order.
        checkpoint_key: where in the checkpoint the weights are.
        model_arg: keyword arguments of the factory.
        input_size: (C, H, W) of the input; default: the model's own, else 3x224x224.
        preprocess: how images become the input: a Preprocess or the name of a preset, such as
            ``yolo``; default: the authors' for a model by text, none for an nn.Module.
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
    return load_any(
        model,
        LoadRequest(
            checkpoint=checkpoint,
            checkpoint_match=None if checkpoint_match == "name" else checkpoint_match,
            checkpoint_key=checkpoint_key,
            model_arg=model_arg,
            input_size=input_size,
            preprocess=preprocess,
            example=example,
            dynamic=dynamic,
            ranges=ranges,
            outputs=tuple(outputs) or None,
            ort_library=ort_library,
            name=name,
            seed=seed,
        ),
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
    preprocess: Preprocess | str | None = None,
    task: str | Task | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Quantized: ...


@python_words
def quantize(
    model: str | nn.Module | Model | QuantizeSpec,
    data: object = None,
    /,
    *,
    input_size: tuple[int, int, int] | None = None,
    preprocess: Preprocess | str | None = None,
    task: str | Task | None = None,
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
        preprocess: how images become inputs: a Preprocess or the name of a preset.
        task: what the outputs mean: a :class:`Task`, ``detection``, ``file.py:NAME`` ...; the
            quick check compares answers by it. Default: what is known of the model.
        progress: receives progress.
        options: fields of :class:`QuantizeOptions`: ``bits``, ``method``, ``calibrator`` ...

    Raises:
        TrtqError: the options contradict each other, the data do not fit, or quantization fails.
    """
    if isinstance(model, QuantizeSpec):
        from trtq.commands.quantize import quantize as run_command

        given = {
            "input_size": input_size,
            "preprocess": preprocess,
            "task": task,
            "options": options or None,
        }
        return run_command(model, listener_of(model, data, progress, given))
    name, known = asked_task(task)
    quantize_options = QuantizeOptions.make({**options, "task": name})
    check_options(quantize_options)
    run = Run(or_silent(progress))
    form = Form(input_size=input_size, preprocess=preprocess, seed=quantize_options.seed)
    captured, everything = open_both(model, data, form, run, limit=quantize_options.calib_images)
    samples = choose_samples(everything, quantize_options, run)
    return quantize_model(captured, samples, quantize_options, run, task=known)


def asked_task(task: str | Task | None) -> tuple[str | None, Task | None]:
    """Return a task as options name it, None for a program's own, and the task itself.

    Args:
        task: a name, a program's own task, or None; ``auto`` is None.

    Raises:
        UsageError: unknown.
    """
    if task is None or task == AUTO_TASK:
        return None, None
    known = find_task(task)
    if isinstance(task, str):
        return task, known
    return (known.name if known.name in TASKS else None), known


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is captured.

    Attributes:
        input_size: (C, H, W); None for the model's own, or the inputs of the first samples.
        preprocess: how images become inputs; None for the model's own.
        seed: makes random weights repeatable.
    """

    input_size: tuple[int, int, int] | None = None
    preprocess: Preprocess | str | None = None
    seed: int = 0


def open_both(
    model: str | nn.Module | Model,
    data: object,
    form: Form,
    run: Run,
    *,
    limit: int | None = None,
) -> tuple[Model, Samples]:
    """Return a model, captured once, and data as samples of its input.

    Args:
        model: as for :func:`load`.
        data: as for :func:`samples`.
        form: how the model is captured.
        run: receives the notes of both, and the time.
        limit: keep at most so many samples of data that can be read only once.

    Raises:
        ModelError: the model is unknown, or its weights do not fit.
        CaptureError: it cannot be captured as one graph.
        DataError: the data cannot be read, or do not fit the model.
    """
    given = open_any(data, limit=limit, note=run.note)
    size, preprocess = form.input_size, form.preprocess
    unknown = not isinstance(model, Model) and preprocess is None and size is None
    module = model if isinstance(model, nn.Module) else None
    example = given.first_batch(forward_names(module)) if unknown else None
    with pixels_explained(given, example):
        captured = load_any(
            model,
            LoadRequest(
                input_size=size,
                preprocess=preprocess,
                example=example,
                usual_axes=given.axes or None if unknown else None,
                seed=form.seed,
            ),
        )
    run.note(*captured.notes)
    run.clock.lap("capture")
    return captured, samples_from(given, captured, note=run.note)


def listener_of(
    spec: Spec, second: object, progress: Progress | None, given: Mapping[str, object]
) -> Progress | None:
    """Return the listener of a command that a spec runs, which is the second argument, too.

    Args:
        spec: says everything else.
        second: the second argument.
        progress: the listener by name.
        given: other arguments, which a spec has itself.

    Raises:
        UsageError: other arguments are given, or the second one is no listener.
    """
    kind = type(spec).__name__
    require_unused(given, tuple(given), f"a {kind} has them")
    listener: Any = second if progress is None else progress
    if listener is not None and not hasattr(listener, "advance"):
        raise UsageError(
            f"A {kind} names its data itself",
            f"the second argument is a {type(listener).__name__}, expected a Progress",
            "Give the model instead of the spec",
        )
    checked: Progress | None = listener
    return checked
