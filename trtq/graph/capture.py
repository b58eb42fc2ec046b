"""Capture: one torch.export graph of the model, with a dynamic batch where the model allows it."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx, nn

from trtq.data.sample_axes import about_samples
from trtq.errors import CaptureError, explain_system, first_line
from trtq.graph.axes import Open, input_specs, narrowest, open_axes, open_batch, single
from trtq.graph.explain import hint_of_failure
from trtq.graph.feed import Feed, outputs_of
from trtq.graph.flat import PREFIX, Answer, Call, Flat, answer_of, call_of, doubled
from trtq.graph.inputs import ModelInputs, StatesInputs
from trtq.graph.naming import assign_names_
from trtq.graph.normalize import normalize_
from trtq.graph.onnx_origin import FromOnnx, mark_
from trtq.graph.outputs import choose_
from trtq.graph.signature import (
    Axes,
    Signature,
    SizeRange,
    sign_,
)
from trtq.graph.ties import place_of_failure
from trtq.graph.tracing import quiet, trace_best

# Folding BatchNorm reorders float32 operations: most models remain below 1e-6, near-singular
# variances reach 1e-5.
MAX_REL_DIFF = 1e-4
MAX_TIED = 1e-3  # share of class indices that two nearly equal scores may decide


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedGraph:
    """A model as one functional FX graph, ready to be calibrated, quantized and exported.

    Attributes:
        module: the graph; parameters are its own (BatchNorm folded), nodes carry a stable name in
            ``meta["trtq_name"]``.
        examples: one batch, a tensor an input: two samples (one where the batch is fixed).
        dynamic_batch: False when the model only captures at batch 1.
        notes: why the batch is fixed, which outputs were dropped; what the user must know.
        max_rel_diff: max |graph - eager| / max |eager| on a random batch, of the worst output.
        passes: what normalisation did, by name and count.
        signature: names, types and shapes of inputs and outputs.
    """

    module: fx.GraphModule
    examples: Feed
    dynamic_batch: bool
    notes: tuple[str, ...]
    max_rel_diff: float
    passes: dict[str, int]
    signature: Signature


def image_example(input_size: tuple[int, int, int]) -> torch.Tensor:
    """Return two images of noise: float32 [2, C, H, W], the same at every call.

    Args:
        input_size: (C, H, W).
    """
    return torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))


def capture(
    model: nn.Module,
    given: object,
    *,
    axes: Axes | None = None,
    ranges: Mapping[str, SizeRange] | None = None,
    outputs: Sequence[str] = (),
    usual_axes: Sequence[str] = (),
) -> CapturedGraph:
    """Capture ``model`` as one normalised graph.

    Args:
        model: in eval mode, on the CPU.
        given: (C, H, W) of one image, or one batch as an example: a tensor, a tuple of arguments or
            a mapping of named ones.
        axes: sizes of inputs by name, open axes as texts; default: the first axis of every input
            is open.
        ranges: the sizes of the open axes.
        outputs: names of the outputs to keep; default: all of them.
        usual_axes: names of the axes of each input, tried where ``axes`` is None and the model does
            not say its own.

    Raises:
        CaptureError: the forward pass fails on this input, or torch.export refuses; names module
            and line.
    """
    _require_names(model)
    start = _start(model, given, axes, ranges or {})
    call, answer, alone = _answer(model, start.call, grow=start.grow, one=start.one)
    opened = start.stated or _open(call, start.axes, usual_axes, ranges or {})
    flat = model if call.plain and answer.plain else Flat(model, call)
    graph, feed, kept, note = trace_best(flat, call, opened, alone)
    kept, narrowed = narrowest(graph, kept)
    names = choose_(graph, answer.names, outputs)
    passes = normalize_(graph)
    assign_names_(graph, prefix="" if flat is model else PREFIX)
    if isinstance(model, FromOnnx):
        mark_(graph, model.origin)
    written, renamed = _distinct(names, call.names)
    signature = sign_(graph, input_specs(call.names, feed, kept), written, dict(kept.ranges))
    if feed is not call.feed:
        answer = answer_of(_call(model, call, feed))
    diffs = _differences(graph, feed, names, answer)
    _require_equal(names, diffs)
    facts = (*said_by(model), *_about(answer, names), *about_samples(signature.inputs))
    return CapturedGraph(
        module=graph,
        examples=feed,
        dynamic_batch=all(0 in axes for t, axes in zip(feed, kept.names, strict=True) if t.ndim),
        notes=tuple(n for n in (note, *narrowed, *renamed, *facts) if n),
        max_rel_diff=max(diffs),
        passes=passes,
        signature=signature,
    )


class _Start(NamedTuple):
    """Inputs of the first call of a model.

    Attributes:
        call: the example as the model takes it.
        axes: sizes of inputs by name; None where nobody named them.
        stated: the open axes that the model itself declares.
        one: one sample of an image example, for a model that takes one only.
        grow: whether one sample may become two.
    """

    call: Call
    axes: Axes | None
    stated: Open | None
    one: Feed | None
    grow: bool


def _start(
    model: nn.Module, given: object, axes: Axes | None, ranges: Mapping[str, SizeRange]
) -> _Start:
    """Return the example of :func:`capture`, completed by what a model says of its inputs."""
    size = _image_size(given)
    if not isinstance(model, StatesInputs):
        if size is None:
            return _Start(call_of(model, given), axes, None, None, grow=True)
        call = call_of(model, image_example(size))
        return _Start(call, axes, None, _first(call), grow=True)
    declared = axes is None
    if size is not None:
        model_inputs = model.model_inputs(size)
        example, axes, grow = model_inputs.example, axes or model_inputs.axes, not declared
    else:
        example, grow = model.fitted(given, axes or {}), False
    axes = axes or model.declared_axes
    call = call_of(model, example)
    if not declared or axes is None:
        return _Start(call, axes, None, None, grow)
    stated = open_axes(call, axes, ranges, by_user=False)
    return _Start(call, axes, stated, single(call.feed, stated), grow)


def _first(call: Call) -> Feed:
    return tuple(t[:1] for t in call.feed)


def _differences(
    graph: fx.GraphModule, feed: Feed, names: Sequence[str], answer: Answer
) -> list[float]:
    """Return what the graph gives on ``feed`` against the model's answer, an output each."""
    wanted = dict(zip(answer.names, answer.tensors, strict=True))
    with torch.no_grad(), quiet():
        got = outputs_of(graph(*feed))
        return [_difference(g, wanted[n]) for n, g in zip(names, got, strict=True)]


def _require_equal(names: Sequence[str], diffs: Sequence[float]) -> None:
    """Refuse a graph that does not compute what the model does.

    Raises:
        CaptureError: names the output that differs most.
    """
    worst = max(range(len(diffs)), key=diffs.__getitem__)
    if diffs[worst] <= MAX_REL_DIFF:
        return
    which = "outputs differ" if len(diffs) == 1 else f"the output {names[worst]} differs"
    raise CaptureError(
        "The captured graph does not equal the model",
        f"{which} by {diffs[worst]:.2e} of their largest value, at most {MAX_REL_DIFF:.0e} "
        "is rounding",
        "Is the model in eval mode, and free of randomness and of state that forward() changes?",
    )


def _distinct(names: Sequence[str], inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names of outputs that no input and no other output has, and what was changed."""
    taken, distinct_names, notes = set(inputs), list[str](), list[str]()
    for name in names:
        own, k = name, 0
        while own in taken:
            own, k = f"{name}.out" + (f".{k}" if k else ""), k + 1
        taken.add(own)
        distinct_names.append(own)
        if own != name:
            notes.append(f"the output {name} is called {own}: another tensor has its name")
    return distinct_names, notes


def capture_inputs(model: nn.Module, inputs: ModelInputs) -> CapturedGraph:
    """Capture ``model`` with what it is given; see :func:`capture`."""
    return capture(
        model,
        inputs.example,
        axes=inputs.axes,
        ranges=inputs.ranges,
        outputs=inputs.outputs,
        usual_axes=inputs.usual_axes,
    )


def said_by(model: nn.Module) -> list[str]:
    """Return what a model that was read from a file says of itself; nothing of any other."""
    return model.about() if isinstance(model, StatesInputs) else []


def _image_size(given: object) -> tuple[int, int, int] | None:
    """Return (C, H, W) where an example is that."""
    if isinstance(given, (tuple, list)) and len(given) == 3 and all(type(v) is int for v in given):
        channels, height, width = given
        return channels, height, width
    return None


def _open(
    call: Call, axes: Axes | None, usual_axes: Sequence[str], ranges: Mapping[str, SizeRange]
) -> Open:
    """Return the axes that somebody named, else those that the data let open, else the batch."""
    if axes is not None:
        return open_axes(call, axes, ranges)
    if not usual_axes:
        return open_batch(call)
    usual = {
        name: usual_axes
        for name, tensor in zip(call.names, call.feed, strict=True)
        if tensor.ndim == len(usual_axes)
    }
    return open_axes(call, usual, ranges, by_user=False)


def _require_names(model: nn.Module) -> None:
    """Refuse tensors that torch.fx cannot write: it spells ``self.a.in.weight`` as Python.

    Raises:
        CaptureError: names the tensor.
    """
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        word = next(filter(keyword.iskeyword, name.split(".")), None)
        if word is not None:
            raise CaptureError(
                f"Cannot capture the tensor {name}",
                f"{word!r} is a word of Python, and torch.fx writes the model as Python",
                f"Give that part another name, such as {word}_",
            )


def _about(answer: Answer, names: Sequence[str]) -> list[str]:
    """Return what a user must know about a model's outputs."""
    dropped = [n for n in answer.names if n not in names]
    notes = (
        [f"outputs that were not asked for are dropped: {', '.join(dropped)}"] if dropped else []
    )
    if answer.left_out:
        notes.append(f"outputs that are no tensors are left out: {', '.join(answer.left_out)}")
    return notes


def _call(model: nn.Module, call: Call, feed: Feed) -> object:
    # torch's fused path for whole encoder layers answers otherwise where a mask leaves no key.
    with quiet(), torch.no_grad():
        args, named = call.arguments([t.clone() for t in feed])  # forward() may write to them
        answer: object = model(*args, **named)
    return answer


def _answer(
    model: nn.Module, call: Call, *, grow: bool, one: Feed | None
) -> tuple[Call, Answer, str]:
    """Return an example, what the model gives for it, and why it takes no two samples.

    Args:
        model: to call.
        call: the example.
        grow: make two samples of one, where the model takes two.
        one: one sample of an example of two, for a model that does not take two.

    Raises:
        CaptureError: it fails, gives no tensor, or none that is finite.
    """
    _require_finite(call)
    two, alone = doubled(call) if grow else None, ""
    if two is None and one is not None:
        two, call = call, call._replace(feed=one)
    if two is not None:
        try:
            return two, _finite(answer_of(_call(model, two, two.feed))), ""
        except Exception as exc:  # a batch of one is perhaps all that it takes
            place = place_of_failure(exc, model)
            alone = f"it fails on two samples at {place or 'its start'}: {first_line(exc)}"
    try:
        return call, _finite(answer_of(_call(model, call, call.feed))), alone
    except CaptureError:
        raise
    except Exception as exc:
        raise explain_system(exc) or CaptureError(
            f"The model's forward pass fails on {_shapes(call)}",
            f"{type(exc).__name__}: {first_line(str(exc))}",
            hint_of_failure(str(exc)),
        ) from exc


def _require_finite(call: Call) -> None:
    """Refuse an example with NaN or infinity: nothing can be compared on it.

    Raises:
        CaptureError: names the input.
    """
    for name, tensor in zip(call.names, call.feed, strict=True):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CaptureError(
                f"The first samples hold NaN or infinity in the input {name}",
                hint="Check the data and their preprocessing",
            )


def _finite(answer: Answer) -> Answer:
    """Return an answer without NaN or infinity.

    Raises:
        CaptureError: names the output.
    """
    for name, tensor in zip(answer.names, answer.tensors, strict=True):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CaptureError(
                "The model gives NaN or infinity"
                + (f" at its output {name}" if len(answer.names) > 1 else ""),
                "its inputs were random numbers, or the first samples of the data",
                "Give samples of real inputs with --data, or check its weights and its checkpoint",
            )
    return answer


def _shapes(call: Call) -> str:
    shapes = [f"{list(t.shape)}" for t in call.feed]
    if len(shapes) == 1:
        return f"input {shapes[0]}"
    return "inputs " + ", ".join(f"{n} {s}" for n, s in zip(call.names, shapes, strict=True))


def _difference(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value.

    For integers it is the share of unequal ones, without ties. It is infinity for NaN, and where
    the shapes differ.
    """
    if got.shape != reference.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    if not reference.is_floating_point():
        return max(0.0, float((got != reference).double().mean()) - MAX_TIED)
    share = float((got - reference).abs().max() / reference.abs().max().clamp_min(1e-30))
    return float("inf") if math.isnan(share) else share
