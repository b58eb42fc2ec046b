"""Metrics from outputs: of each layer (l2), and of the model with one layer quantized (jsd)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import fx

from trtq.graph.feed import Feed, outputs_of
from trtq.search.layers import Layer
from trtq.search.sensitivity import Measured, Sensitivity, SensitivityContext, require_finite


class _OwnOutputs(fx.Interpreter):
    """Runs the float graph and, at every layer, the layer once more at every width."""

    def __init__(self, graph: fx.GraphModule, layers: list[Layer]) -> None:
        super().__init__(graph)
        self.layers = {layer.node: layer for layer in layers}
        self.scratch: dict[torch.Size, torch.Tensor] = {}
        self.sums = {
            layer.name: {label: _zero(layer) for label in layer.codings} for layer in layers
        }

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        layer = self.layers.get(n)
        if layer is not None:
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            for label in layer.codings:
                difference = layer.call(arguments, keywords, label, self.scratch).sub_(result)
                norm = torch.linalg.vector_norm(difference)
                self.sums[layer.name][label] += norm.double().square()
        return result


def _zero(layer: Layer) -> torch.Tensor:
    """Return a float64 zero on the device of a layer."""
    return torch.zeros((), dtype=torch.float64, device=layer.weight.device)


def l2(context: SensitivityContext) -> Measured:
    """Return S_l = ||y_full - y_quant||_2 of each layer's own output (S1 eq. 5).

    The inputs are the float model's. All layers and all widths share one run over the images, which
    costs one pass per width plus one.

    Args:
        context: what is wanted is not read.

    Returns:
        ``loss`` by width: the square root of the sum of squares over all values of the output and
        all images; ``raw`` is the largest of them.

    Raises:
        CalibrationError: a difference is NaN or infinite.
    """
    runner = _OwnOutputs(context.graph, list(context.layers))
    context.begin("Comparing layer outputs", 1)
    with torch.inference_mode():
        for images, _ in context.batches():
            runner.run(*images)
    context.advance(1)
    results = {}
    for name, sums in runner.sums.items():
        losses = {label: math.sqrt(float(v)) for label, v in sums.items()}
        for value in losses.values():
            require_finite(value, "output difference", name)
        results[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    return results, {}


def _rest(graph: fx.GraphModule, start: fx.Node) -> list[fx.Node]:
    """Return the nodes that depend on ``start``, in graph order.

    They must be computed again when it changes.
    """
    touched = {start}
    later = []
    for node in graph.graph.nodes:
        if node is not start and any(i in touched for i in node.all_input_nodes):
            touched.add(node)
            later.append(node)
    return later


class _OneQuantized:
    """Answers on one batch with one layer quantized, from the values of one float run.

    The float run happens when it is first needed.

    Args:
        graph: captured, float.
        images: one batch, a tensor an input.
        rest: by layer name, the nodes that depend on it.
        scratch: memory that layers share.
        compare: outputs with the float model's, a number a sample.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        images: Feed,
        rest: Mapping[str, Sequence[fx.Node]],
        scratch: dict[torch.Size, torch.Tensor],
        compare: Callable[[Feed, Feed], torch.Tensor],
    ) -> None:
        self.graph = graph
        self.compare = compare
        self.images = images
        self.rest = rest
        self.scratch = scratch

    @cached_property
    def float_run(self) -> tuple[Feed, dict[fx.Node, Any]]:
        """The outputs of the float model, and the value of every node."""
        runner = fx.Interpreter(self.graph, garbage_collect_values=False)
        return outputs_of(runner.run(*self.images)), dict(runner.env)

    def divergence(self, layer: Layer, label: str) -> list[float]:
        """Return the divergence with a layer at a width, summed over the batch."""
        wanted, values = self.float_run
        runner = fx.Interpreter(self.graph, garbage_collect_values=False)
        runner.env = dict(values)
        arguments, keywords = runner.fetch_args_kwargs_from_env(layer.node)
        runner.env[layer.node] = layer.call(arguments, keywords, label, self.scratch)
        answer: Any = None
        for node in self.rest[layer.name]:
            runner.env[node] = answer = runner.run_node(node)
        total = float(self.compare(outputs_of(answer), wanted).sum())
        require_finite(total, "output divergence", layer.name)
        return [total]


def jsd(context: SensitivityContext) -> Measured:
    """Return the divergence of the output distribution with one layer quantized (S2).

    All other layers remain in float; the result is the mean over the images. The values before the
    layer come from one float run, and only the nodes that depend on it are computed again.

    Args:
        context: its ``divergence`` compares the outputs; what is wanted is not read.

    Returns:
        ``loss`` by width, at least 0, with the largest as ``raw``; and the figure
        ``nodes_per_width_in_passes``: the nodes computed again for one width of all layers, in runs
        of the whole graph.

    Raises:
        CalibrationError: a divergence is NaN or infinite.
    """
    batches = list(context.batches())
    rest = {layer.name: _rest(context.graph, layer.node) for layer in context.layers}
    sums = {layer.name: dict.fromkeys(layer.codings, 0.0) for layer in context.layers}
    pairs = [(layer, label) for layer in context.layers for label in layer.codings]
    scratch: dict[torch.Size, torch.Tensor] = {}
    context.begin("Quantizing one layer at a time", len(batches) * len(pairs))
    with torch.inference_mode():
        for b, (images, _) in enumerate(batches):
            batch = _OneQuantized(context.graph, images, rest, scratch, context.divergence)
            for layer, label in pairs:
                divergence = context.units.compute(
                    f"jsd/{b}/{layer.name}/{label}", partial(batch.divergence, layer, label)
                )
                if divergence is not None:
                    sums[layer.name][label] += divergence[0]
                    context.advance(1)
    context.units.flush()
    count = sum(len(images[0]) for images, _ in batches)
    results = {}
    for name, by_label in sums.items():
        losses = {label: max(v, 0.0) / count for label, v in by_label.items()}
        results[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    passes = sum(len(r) for r in rest.values()) / max(1, len(context.graph.graph.nodes))
    return results, {"nodes_per_width_in_passes": round(passes, 2)}
