"""Quantization-aware training: a captured graph whose weights, biases and ranges learn with the codes in place.

Straight-through gradients inside the range; ranges by LSQ (Esser et al. 2020, eq. 3 and section 2.2), learned as logarithms so that
they stay positive.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from trtq.errors import EncodingsError, UsageError, suggest
from trtq.graph.naming import WEIGHTED, node_name
from trtq.graph.normalize import get_constant, operands
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import FAKE_QUANTIZE, along_axis
from trtq.quant.placement import Placement, place
from trtq.quant.simulate import insert_fake_quantize, shared_names

aten = torch.ops.aten
NORMS = (aten.layer_norm.default, aten.group_norm.default)


class _LearnedStep(torch.autograd.Function):
    """Round to codes; gradients of the input and of the step (LSQ eq. 3), the latter times ``grad_scale``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor, axis: int | None, qmin: int, qmax: int, grad_scale: float) -> torch.Tensor:
        ctx.save_for_backward(x, step)
        ctx.rest = axis, qmin, qmax, grad_scale
        s = along_axis(step, x.ndim, axis)
        return torch.div(x, s).round_().clamp_(qmin, qmax).mul_(s)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (x, step) = grads, ctx.saved_tensors
        axis, qmin, qmax, grad_scale = ctx.rest
        v = torch.div(x, along_axis(step, x.ndim, axis))
        codes = v.round().clamp_(qmin, qmax)
        # half a code beyond the ends still rounds onto them: inside
        inside = (v >= qmin - 0.5) & (v <= qmax + 0.5)
        into_step = None
        if ctx.needs_input_grad[1]:
            off = codes.sub_(v * inside).mul_(grad)
            dims = [d for d in range(x.ndim) if axis is None or d != axis % x.ndim]
            into_step = (off.sum() if axis is None else off.sum(dims)).mul_(grad_scale)
        return grad * inside, into_step, None, None, None, None


class LearnedFakeQuantize(nn.Module):
    """The op of simulation with a step that learns.

    Args:
        name: of the quantizer.
        step: float32, [] or [C].
        axis: of the step.
        qmin, qmax: codes.
        learn: whether the step learns.
    """

    def __init__(self, name: str, step: torch.Tensor, axis: int | None, qmin: int, qmax: int, *, learn: bool) -> None:
        super().__init__()
        self.quantizer, self.axis, self.qmin, self.qmax = name, axis, qmin, qmax
        self.log_step = nn.Parameter(step.detach().clone().log(), requires_grad=learn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` on its codes."""
        values = x.numel() / max(1, self.log_step.numel())
        grad_scale = 1.0 / math.sqrt(values * max(1, self.qmax))  # LSQ section 2.2
        result: torch.Tensor = _LearnedStep.apply(x, self.log_step.exp(), self.axis, self.qmin, self.qmax, grad_scale)
        return result


def placement_of(graph: fx.GraphModule, encodings: Encodings) -> Placement:
    """Return the placement that an encodings file was made with.

    Raises:
        EncodingsError: it names a quantizer that the graph does not have, or has a format that cannot learn.
    """
    found = place(graph)
    known = {q.name: q for q in found.quantizers}
    for name, fmt in encodings.formats.items():
        if name not in known:
            raise EncodingsError(
                f"The encodings name a quantizer {name} that the model does not have", suggest(name, known) or "its graph is another",
                "Give the encodings of this model; methods that insert ops (qads) cannot be trained on",
            )  # fmt: skip
        if fmt.kind != "uniform":
            raise EncodingsError(f"The format {fmt.label} of {name} cannot be trained", "only integer codes around 0 learn their range")
    for q in found.quantizers:
        q.float_reason = None if q.name in encodings.formats else encodings.left_in_float.get(q.name, "not in the encodings")
        q.format = encodings.formats.get(q.name, q.format)
    return found


class TrainingGraph:
    """What is trained: a copy of a captured graph with learned fake-quantize modules.

    Args:
        graph: captured; not changed.
        encodings: where training starts.
        learn_amax: ranges learn, too.
        freeze: shell patterns of layers whose weights and biases stay.

    Raises:
        EncodingsError: the encodings do not fit the graph.
        UsageError: a pattern matches no layer.

    Attributes:
        module: callable and differentiable.
        placement: of the encodings.
        weights: trained constants by their name in ``graph``.
        quantizers: by name of the (first) quantizer.
    """

    def __init__(self, graph: fx.GraphModule, encodings: Encodings, *, learn_amax: bool, freeze: Sequence[str] = ()) -> None:
        self.encodings, self.placement = encodings, placement_of(graph, encodings)
        owned = fx.GraphModule(graph, copy.deepcopy(graph.graph))
        self._names = _hold_constants_(owned, encodings)
        bare = Encodings(amax=encodings.amax, formats=encodings.formats)
        self.module = insert_fake_quantize(owned, self.placement, bare, on_codes=False)
        self.weights: dict[str, nn.Parameter] = {}
        self.quantizers: dict[str, LearnedFakeQuantize] = {}
        frozen = _frozen(self.module, freeze)
        self._train_constants_(frozen)
        self._shared = shared_names(self.placement, encodings)
        for i, node in enumerate([n for n in self.module.graph.nodes if n.target is FAKE_QUANTIZE]):
            still = any(node_name(user) in frozen for user in node.users) and operands(node)[0].op == "get_attr"
            self._learn_(node, f"fake_quantize_{i}", learn=learn_amax and not still)
        self.module.graph.eliminate_dead_code()
        self.module.recompile()

    def _train_constants_(self, frozen: set[str]) -> None:
        """Turn weights and biases of layers and norms into parameters of their own."""
        original = {str(n.target): n for n in self.module.graph.nodes if n.op == "get_attr"}
        wanted: dict[str, fx.Node] = {}
        kept: set[str] = set()  # a weight that a frozen layer reads stays, whoever else reads it
        for node in self.module.graph.nodes:
            places = (1, 2) if node.target in WEIGHTED else (2, 3) if node.target in NORMS else ()
            for i in places:
                given = operands(node)[i] if len(operands(node)) > i else None
                if isinstance(given, fx.Node) and given.target is FAKE_QUANTIZE:
                    given = operands(given)[0]
                if isinstance(given, fx.Node) and given.op == "get_attr":
                    wanted[str(given.target)] = given
                    kept |= {str(given.target)} if node_name(node) in frozen else set()
        for i, (target, node) in enumerate((t, n) for t, n in wanted.items() if t not in kept):
            value = get_constant(self.module, original[target])
            assert value is not None
            name, own = f"trained_{i}", self._names.get(target, target)
            self.weights[own] = nn.Parameter(value.detach().clone())
            self.module.register_parameter(name, self.weights[own])
            node.target = name

    def _learn_(self, node: fx.Node, name: str, *, learn: bool) -> None:
        x, scale, _, axis, qmin, qmax, quantizer, _ = operands(node)
        step = get_constant(self.module, scale)
        assert step is not None
        made = LearnedFakeQuantize(str(quantizer), step, axis, qmin, qmax, learn=learn)
        self.module.add_submodule(name, made)
        self.quantizers[str(quantizer)] = made
        with self.module.graph.inserting_before(node):
            call = self.module.graph.call_module(name, (x,))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)

    def learned(self, values: Mapping[str, torch.Tensor] | None = None) -> Encodings:
        """Return the encodings as they are now.

        Args:
            values: of the trained constants, in place of the present ones (an average of them).
        """
        amax = dict(self.encodings.amax)
        for q in self.placement.active:
            made = self.quantizers.get(self._shared[q.name])
            if made is not None:
                amax[q.name] = made.log_step.detach().exp() * q.format.qmax
        held = {k: v.detach() for k, v in self.weights.items()} | dict(values or {})
        origin = {**self.encodings.origin, "methods": f"{self.encodings.origin.get('methods', '')} qat".strip()}
        return Encodings(
            amax=amax, amin=self.encodings.amin, formats=self.encodings.formats,
            constants={**self.encodings.constants, **{k: v.clone() for k, v in held.items()}},
            left_in_float=self.encodings.left_in_float, origin=origin,
        )  # fmt: skip


def _hold_constants_(graph: fx.GraphModule, encodings: Encodings) -> dict[str, str]:
    """Put the constants of a method (rounded weights, corrected biases) into the graph; return their own names by those they now have."""
    names: dict[str, str] = {}
    held: dict[str, str] = {}
    for node in graph.graph.nodes:
        value = encodings.constants.get(str(node.target)) if node.op == "get_attr" else None
        if value is None:
            continue
        own = str(node.target)
        if own not in held:
            held[own] = f"held_{len(held)}"
            graph.register_buffer(held[own], value.detach().clone())
            names[held[own]] = own
        node.target = held[own]
    return names


def _frozen(graph: fx.GraphModule, patterns: Sequence[str]) -> set[str]:
    names = [node_name(n) for n in graph.graph.nodes if n.target in (*WEIGHTED, *NORMS)]
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")]
        if not hits:
            raise UsageError(f"--freeze {pattern!r} matches no layer", mend=suggest(pattern, names))
        found.update(hits)
    return found
