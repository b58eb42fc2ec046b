"""Metrics from outputs: of each layer (l2), and of the model with one layer quantized (jsd)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from trtq.search.layers import Layer
from trtq.search.sensitivity import Sensitivity, SensitivityContext, require_finite


class _OwnOutputs(fx.Interpreter):
    """Runs the float graph and, at every layer, the layer once more at every width."""

    def __init__(self, graph: fx.GraphModule, layers: list[Layer]) -> None:
        super().__init__(graph)
        self.layers = {layer.node: layer for layer in layers}
        self.scratch: dict[torch.Size, torch.Tensor] = {}
        self.sums = {layer.name: dict.fromkeys(layer.codings, 0.0) for layer in layers}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        layer = self.layers.get(n)
        if layer is not None:
            arguments, keywords = self.fetch_args_kwargs_from_env(n)
            for label in layer.codings:
                difference = layer.call(arguments, keywords, label, self.scratch).sub_(result)
                self.sums[layer.name][label] += float(torch.linalg.vector_norm(difference)) ** 2
        return result


def l2(study: SensitivityContext) -> tuple[dict[str, Sensitivity], dict[str, Any]]:
    """Return S_l = ||y_full - y_quant||_2 of each layer's own output (S1 eq. 5).

    The inputs are the float model's. All layers and all widths share one run over the images, which
    costs one pass per width plus one.
    """
    runner = _OwnOutputs(study.graph, list(study.layers))
    study.begin("Comparing layer outputs", 1)
    with torch.inference_mode():
        for images, _ in study.batches():
            runner.run(images)
    study.advance(1)
    found = {}
    for name, sums in runner.sums.items():
        losses = {label: math.sqrt(v) for label, v in sums.items()}
        for value in losses.values():
            require_finite(value, "output difference", name)
        found[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    return found, {}


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence JSD(P || Q) in nats (S2).

    It is KL(P || M) / 2 + KL(Q || M) / 2 with M = (P + Q) / 2, [N] for distributions over axis 1.

    >>> divergence = jensen_shannon(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    >>> round(float(divergence[0]), 6) == round(math.log(2), 6)
    True
    """
    middle = (p + q) / 2

    def divergence(a: torch.Tensor) -> torch.Tensor:
        return torch.where(a > 0, a * (a / middle).log(), torch.zeros_like(a)).sum(dim=1)

    return (divergence(p) + divergence(q)) / 2


def _rest(graph: fx.GraphModule, start: fx.Node) -> list[fx.Node]:
    """Return the nodes that depend on ``start``, in graph order.

    They must be computed again when it changes.
    """
    touched, found = {start}, []
    for node in graph.graph.nodes:
        if node is not start and any(i in touched for i in node.all_input_nodes):
            touched.add(node)
            found.append(node)
    return found


def jsd(study: SensitivityContext) -> tuple[dict[str, Sensitivity], dict[str, Any]]:
    """Return the divergence of the output distribution with one layer quantized (S2).

    All other layers stay in float; the result is the mean over the images. The values before the
    layer come from one float run, and only the nodes that depend on it are computed again.
    """
    batches = list(study.batches())
    rest = {layer.name: _rest(study.graph, layer.node) for layer in study.layers}
    sums = {layer.name: dict.fromkeys(layer.codings, 0.0) for layer in study.layers}
    scratch: dict[torch.Size, torch.Tensor] = {}
    study.begin(
        "Quantizing one layer at a time",
        len(batches) * sum(len(layer.codings) for layer in study.layers),
    )
    with torch.inference_mode():
        for b, (images, _) in enumerate(batches):
            if any(
                study.units.get(f"jsd/{b}/{layer.name}/{label}") is None
                for layer in study.layers
                for label in layer.codings
            ):
                full = fx.Interpreter(study.graph, garbage_collect_values=False)
                wanted = full.run(images).softmax(dim=1)
                values = dict(full.env)
            for layer in study.layers:
                for label in layer.codings:
                    unit = f"jsd/{b}/{layer.name}/{label}"
                    known = study.units.get(unit)
                    if known is None and not study.units.is_mine(unit):
                        continue
                    if known is None:
                        got = _from_layer(
                            study.graph, layer, label, rest[layer.name], values, scratch
                        ).softmax(dim=1)
                        known = [float(jensen_shannon(wanted, got).sum())]
                        require_finite(known[0], "output divergence", layer.name)
                        study.units.put(unit, known)
                    sums[layer.name][label] += known[0]
                    study.advance(1)
    study.units.flush()
    count = sum(len(images) for images, _ in batches)
    found = {}
    for name, by_label in sums.items():
        losses = {label: max(v, 0.0) / count for label, v in by_label.items()}
        found[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    passes = sum(len(r) for r in rest.values()) / max(1, len(study.graph.graph.nodes))
    return found, {"nodes_per_width_in_passes": round(passes, 2)}


def _from_layer(
    graph: fx.GraphModule,
    layer: Layer,
    label: str,
    rest: list[fx.Node],
    values: dict[fx.Node, Any],
    scratch: dict[torch.Size, torch.Tensor],
) -> torch.Tensor:
    """Return the model's answer with one layer quantized, from float values before it."""
    runner = fx.Interpreter(graph, garbage_collect_values=False)
    runner.env = dict(values)
    arguments, keywords = runner.fetch_args_kwargs_from_env(layer.node)
    runner.env[layer.node] = layer.call(arguments, keywords, label, scratch)
    answer: Any = None
    for node in rest:
        runner.env[node] = answer = runner.run_node(node)
    result = answer[0] if isinstance(answer, (list, tuple)) else answer
    assert isinstance(result, torch.Tensor)
    return result
