"""Bias correction: remove from each channel the mean error that quantization introduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import fx

from trtq import ops
from trtq.graph.feed import Feed, as_feed, channels_last, count_of, joined, outputs_of
from trtq.graph.naming import node_name
from trtq.methods.base import (
    Method,
    MethodContext,
    Report,
    channel_axis,
    needs,
    weight_and_bias,
)
from trtq.quant.fake_quantize import along_axis

PREFIXES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        images: calibration images that errors are averaged over.
    """

    images: int = 32


def _channel_means(value: torch.Tensor, axis: int) -> torch.Tensor:
    return value.mean([d for d in range(value.ndim) if d != axis % value.ndim])


class _Steps(fx.Interpreter):
    """Runs a graph up to one node after another, and frees values that nothing reads any more."""

    def __init__(self, graph: fx.GraphModule, feed: Feed) -> None:
        super().__init__(graph)
        self.args_iter = iter(feed)
        self.rest = iter(graph.graph.nodes)

    def until(self, name: str) -> torch.Tensor:
        """Continue to the node ``name`` and return its value.

        Args:
            name: of a call that was not reached before.
        """
        for node in self.rest:
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, []):
                del self.env[dead]
            if node.name == name:
                self.last, value = node, self.env[node]
                assert isinstance(value, torch.Tensor)
                return value
        raise AssertionError(name)

    def set(self, value: torch.Tensor) -> None:
        """Replace the value that :meth:`until` returned."""
        self.env[self.last] = value


class _Together:
    """Runs a graph on several feeds side by side, for models that take one sample at a time."""

    def __init__(self, graph: fx.GraphModule, feeds: Sequence[Feed]) -> None:
        self.steps = [_Steps(graph, feed) for feed in feeds]

    def until(self, name: str) -> torch.Tensor:
        """Continue to a node and return its values of all feeds, concatenated along axis 0."""
        values = [s.until(name) for s in self.steps]
        self.sizes = [len(v) for v in values]
        return values[0] if len(values) == 1 else torch.cat(values)

    def set(self, value: torch.Tensor) -> None:
        """Replace the values that :meth:`until` returned."""
        for steps, part in zip(self.steps, torch.split(value, self.sizes), strict=True):
            steps.set(part)


def _feeds(context: MethodContext, count: int) -> list[Feed]:
    """Return the calibration samples: as one batch, or one by one where the model asks for that."""
    if context.dynamic_batch:
        return [channels_last(joined(context.images(count)))]
    return [channels_last(as_feed(feed)) for feed in context.images(count)]


def _error(got: Feed, wanted: Feed) -> float:
    """Return the sum of squared errors of all float outputs, each on the scale of the first one."""
    total, scale = 0.0, 0.0
    for ours, theirs in zip(got, wanted, strict=True):
        if not theirs.is_floating_point():
            continue
        size = float(theirs.square().mean())
        scale = scale or size
        total += float((ours - theirs).square().sum()) * (scale / size if size else 1.0)
    return total


def _activation(node: fx.Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the activation that follows a layer, the identity where none does."""
    follower = next(iter(node.users)) if len(node.users) == 1 else node
    if "activation" not in ops.of(follower).traits:
        return lambda x: x
    target, rest, named = follower.target, follower.args[1:], follower.kwargs
    assert callable(target)
    return lambda x: target(x, *rest, **named)


def best_shift(
    wanted: torch.Tensor,
    got: torch.Tensor,
    axis: int,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the shift of each channel [C], ``got`` with it).

    The shift is the mean error, half of it, or none of it: the one that leaves the least squared
    error behind the activation. Behind a ReLU that is mostly off, shifting a whole channel up to
    restore its mean does more harm than the mean error itself.

    Args:
        wanted: a layer's output in float.
        got: the same, quantized.
        axis: of the channels.
        activation: the operation behind the layer.
    """
    full = _channel_means(wanted - got, axis)
    reference = activation(wanted)
    best, best_error = (
        torch.zeros_like(full),
        _channel_means((activation(got) - reference).square(), axis),
    )
    for share in (0.5, 1.0):
        moved = activation(got + along_axis(share * full, got.ndim, axis))
        error = _channel_means((moved - reference).square(), axis)
        best, best_error = (
            torch.where(error < best_error, share * full, best),
            torch.minimum(error, best_error),
        )
    return best, got + along_axis(best, got.ndim, axis)


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Correct the biases in the encodings, layer by layer in graph order.

    Each layer sees inputs that are already corrected. Corrections add up along the network and can
    hurt late layers (they do in EfficientNet-Lite0). Only the first layers are therefore corrected:
    as many as bring the outputs nearest to the float model's.

    Returns:
        ``layers`` corrected ``of`` those that have a bias of their own, ``error``: the squared
        error of the outputs before and after, ``images``, and ``left_alone``: names of layers
        without one.
    """
    feeds = _feeds(context, arguments.images)
    layers = {n: weight_and_bias(context.graph, n)[1] for n, _ in context.layers()}
    # A bias that two layers read cannot follow both.
    able = {n: bias for n, bias in layers.items() if bias is not None and len(bias.users) == 1}
    before, corrected = dict(context.encodings.constants), list[tuple[str, torch.Tensor]]()
    with torch.inference_mode():
        full, simulated = _Together(context.graph, feeds), _Together(context.simulated(), feeds)
        for node, bias in able.items():
            wanted, got = full.until(node.name), simulated.until(node.name)
            shift, value = best_shift(wanted, got, channel_axis(node), _activation(node))
            simulated.set(value)
            corrected.append(
                (str(bias.target), context.encodings.constant(context.graph, bias) + shift)
            )
        wanted_all = [outputs_of(context.graph(*feed)) for feed in feeds]
        errors = {}
        for count in sorted({round(len(corrected) * share) for share in PREFIXES}):
            context.encodings.constants = {**before, **dict(corrected[:count])}
            graph = context.simulated()
            errors[count] = sum(
                _error(outputs_of(graph(*feed)), wanted)
                for feed, wanted in zip(feeds, wanted_all, strict=True)
            )
    best = min(errors, key=lambda k: errors[k])
    context.encodings.constants = {**before, **{k: v.clone() for k, v in corrected[:best]}}
    left = [node_name(n) for n in layers if n not in able]
    return {
        "layers": best,
        "of": len(able),
        "error": [errors[0], errors[best]],
        "images": sum(count_of(feed) for feed in feeds),
        "left_alone": left,
    }


METHOD = Method(
    name="bias-correction",
    summary="Shift each layer's bias so that its output channels keep their float means.",
    label="folded",
    stage="after",
    source="Nagel et al. 2019, Data-Free Quantization, section 4.2 (empirical form)",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs(
        (
            lambda context: any(
                weight_and_bias(context.graph, n)[1] is not None for n, _ in context.layers()
            ),
            "none of its quantized layers has a bias to correct",
        ),
    ),
)
