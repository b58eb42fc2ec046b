"""The layers a search decides over, with both operands quantized at every width available."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from trtq.disjoint import Sets
from trtq.graph.feed import Feed
from trtq.graph.nodes import operands
from trtq.quant.calibrate import make_encodings, summarize_all
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import fake_quantize
from trtq.quant.formats import BitConfig
from trtq.quant.observe import Range, observe
from trtq.quant.placement import Placement, Quantizer, place


@dataclass(slots=True, kw_only=True)
class Coding:
    """A layer's numbers at one width.

    Attributes:
        weight: the weight on its codes, float32, in the shape of the float one.
        scale: of the input, one number; None when it remains in float.
        qmin, qmax: lowest and highest code of the input.
        kind: of the input's format, as :class:`trtq.quant.formats.Format` names it.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    qmin: int = 0
    qmax: int = 0
    kind: str = "uniform"

    def quantize_input(
        self, x: torch.Tensor, scratch: dict[torch.Size, torch.Tensor]
    ) -> torch.Tensor:
        """Return the layer's input on its codes, in a tensor of ``scratch``.

        The next call of this shape overwrites that tensor. A fresh tensor costs more than the
        rounding, because the system clears its pages.

        Args:
            x: float32.
            scratch: by shape; it grows by a tensor for each new shape.

        Returns:
            ``x`` itself where the input remains in float, and a tensor of its own where the codes
            have no equal steps.
        """
        if self.scale is None:
            return x
        if self.kind != "uniform":
            rounded: torch.Tensor = fake_quantize(
                x, self.scale, None, None, self.qmin, self.qmax, "", self.kind
            )
            return rounded
        if x.shape not in scratch:
            scratch[x.shape] = torch.empty_like(x)
        values = scratch[x.shape]
        torch.div(x, self.scale, out=values).round_().clamp_(self.qmin, self.qmax).mul_(self.scale)
        return values


@dataclass(slots=True, kw_only=True)
class Layer:
    """A conv or a linear with a constant weight.

    Attributes:
        name: as in every record.
        node: its call in the graph; its first operand is the input, its second the weight.
        source: the tensor whose codes it reads.
        weight: float32.
        codings: by option label, such as ``w4a8``.
    """

    name: str
    node: fx.Node
    source: fx.Node
    weight: torch.Tensor
    codings: dict[str, Coding]

    def call(
        self,
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        label: str,
        scratch: dict[torch.Size, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the layer's output on ``arguments`` with both operands quantized.

        Args:
            arguments: those of the layer's call: the float input first, then the weight, which is
                not read.
            keywords: of the call.
            label: of the width.
            scratch: memory for the quantized input by shape, overwritten; None for new memory.
        """
        coding, target = self.codings[label], self.node.target
        assert callable(target)
        result: torch.Tensor = target(
            coding.quantize_input(arguments[0], {} if scratch is None else scratch),
            coding.weight,
            *arguments[2:],
            **keywords,
        )
        return result


def prepare_layers(
    graph: fx.GraphModule,
    options: Sequence[BitConfig],
    batches: Iterable[torch.Tensor | Feed],
    *,
    calibrator: str,
    percentile: float,
    progress: Callable[[int], None] | None = None,
) -> list[Layer]:
    """Observe every layer's input in one pass and return the layers with their codings.

    Each layer gets a coding at every quantized option. Every coding holds its own copy of the
    weight.

    Args:
        graph: captured; not changed.
        options: available; FP16 and other float ones have no coding.
        batches: calibration images, read once.
        calibrator: as in ``trtq quantize``.
        percentile: for the calibrator of that name.
        progress: called with the number of images after each batch.

    Returns:
        Layers in graph order.

    Raises:
        CalibrationError: as for :func:`trtq.quant.observe.observe`.
    """
    # Observers gather what the narrowest width needs.
    narrow = dict.fromkeys(weighted_layers(place(graph)), BitConfig(2, 2))
    seen = observe(
        graph,
        _inputs_only(place(graph, layer_bits=narrow)),
        batches,
        mode=calibrator,
        progress=progress,
    )
    layers: dict[str, Layer] = {}
    for option in (o for o in options if o.quantized):
        placement = _inputs_only(place(graph, layer_bits=dict.fromkeys(narrow, option)))
        encodings = _encodings(graph, placement, seen, calibrator, percentile)
        by_layer: dict[str, dict[str, Quantizer]] = {}
        for q in placement.quantizers:
            by_layer.setdefault(q.layer, {})[q.role] = q
        for name, by_role in by_layer.items():
            if by_role["weight"].is_weight and by_role["weight"].name in encodings.amax:
                _add(layers, name, by_role, encodings, graph, option.label)
    return list(layers.values())


def weighted_layers(placement: Placement) -> list[str]:
    """Return the names of the layers whose weight is a codable constant, in graph order.

    Args:
        placement: those of its quantizers that remain in float do not count.
    """
    return list(
        dict.fromkeys(q.layer for q in placement.active if q.role == "weight" and q.is_weight)
    )


def _inputs_only(placement: Placement) -> Placement:
    return Placement(
        [
            q
            for q in placement.quantizers
            if q.role in ("input", "weight") and q.float_reason is None
        ]
    )


def _encodings(
    graph: fx.GraphModule,
    placement: Placement,
    seen: Mapping[str, Range],
    calibrator: str,
    percentile: float,
) -> Encodings:
    stats = summarize_all(placement, seen, calibrator, percentile)
    return make_encodings(graph, placement, stats, {})


def _add(
    layers: dict[str, Layer],
    name: str,
    quantizers: Mapping[str, Quantizer],
    encodings: Encodings,
    graph: fx.GraphModule,
    label: str,
) -> None:
    w, x = quantizers["weight"], quantizers.get("input")
    weight, fmt = encodings.constant(graph, w.source), w.format
    scale = encodings.scale(w.name).to(weight.device)
    codes = fake_quantize(weight, scale, None, fmt.axis, fmt.qmin, fmt.qmax, w.name, fmt.kind)
    coding = Coding(weight=codes, scale=None)
    if x is not None and x.name in encodings.amax:
        coding.scale, coding.qmin, coding.qmax, coding.kind = (
            encodings.scale(x.name).to(weight.device),
            x.format.qmin,
            x.format.qmax,
            x.format.kind,
        )
    source = x.source if x is not None else operands(w.consumer)[0]
    layer = layers.setdefault(
        name, Layer(name=name, node=w.consumer, source=source, weight=weight, codings={})
    )
    layer.codings[label] = coding


def groups(layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """Return the layers that share a width.

    They read one tensor, such as queries, keys and values, or they have one weight. One tensor has
    one set of codes in an engine, and so has one stored weight.

    Returns:
        Names in graph order; every layer is in exactly one group, alone where it shares nothing.
    """
    sets = Sets()
    readers: dict[object, list[str]] = {}
    for layer in layers:
        for tensor in (("source", layer.source), ("weight", operands(layer.node)[1])):
            readers.setdefault(tensor, []).append(layer.name)
    for names in readers.values():
        sets.join(names)
    return [tuple(names) for names in sets.groups([layer.name for layer in layers])]
