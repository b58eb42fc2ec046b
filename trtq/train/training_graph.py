"""Quantization-aware training of a captured graph.

Quantization-aware training of weights, biases and ranges.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from trtq import ops
from trtq.errors import EncodingsError, UsageError, suggest
from trtq.graph.device import device_of
from trtq.graph.feed import Feed, as_feed
from trtq.graph.naming import node_name
from trtq.graph.nodes import get_constant, operands
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import FakeQuantizeCall, along_axis
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize, shared_names
from trtq.train.learned import KeptNorm, LearnedCodebook, LearnedFakeQuantize

aten = torch.ops.aten


class _Fold(NamedTuple):
    """Targets of folding a kept BatchNorm: a weight, a bias, and the weight's quantizer."""

    weight: str
    bias: str
    quantizer: str | None


class TrainingGraph:
    """The graph that is trained: a copy of a captured one with learned fake-quantize modules.

    Args:
        graph: captured; not changed.
        encodings: where training starts.
        learn_amax: ranges learn, too.
        freeze: shell patterns of layers whose weights, biases and ranges remain.
        only: names of the layers that learn; None: all.
        keep_norms: the BatchNorm of a convolution is taken up again behind it (Krishnamoorthi 2018,
            section 3.2.2), and folded again by :meth:`learned`. Call :meth:`settle_norms_` before
            the first step.
        codebook: bits of a codebook in the place of every uniform format of a weight; None: none.

    Raises:
        EncodingsError: the encodings do not fit the graph.
        UsageError: a pattern matches no layer.

    Attributes:
        module: callable and differentiable.
        placement: of the encodings.
        weights: trained constants by their name in ``graph``.
        quantizers: by name of the (first) quantizer.
        norms: kept BatchNorms by the name of their convolution.
        codebooks: by quantizer name.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        encodings: Encodings,
        *,
        learn_amax: bool,
        freeze: Sequence[str] = (),
        only: Collection[str] | None = None,
        keep_norms: bool = False,
        codebook: int | None = None,
    ) -> None:
        formats = encodings.formats.items()
        fixed = next((n for n, f in formats if f.kind != "uniform" or f.blocked), None)
        if fixed is not None:
            why = "only integer codes around 0 learn their range, one of a tensor or a channel"
            raise EncodingsError(
                f"The format {encodings.formats[fixed].label} of {fixed} cannot be trained", why
            )
        self.encodings, self.placement = encodings, placement_of(graph, encodings)
        owned = fx.GraphModule(graph, copy.deepcopy(graph.graph))
        self._names = _hold_constants_(owned, encodings)
        bare = Encodings(amax=encodings.amax, formats=encodings.formats)
        self.module = insert_fake_quantize(owned, self.placement, bare, on_codes=False)
        self.weights: dict[str, nn.Parameter] = {}
        self.quantizers: dict[str, LearnedFakeQuantize] = {}
        self.norms: dict[str, KeptNorm] = {}
        self.codebooks: dict[str, LearnedCodebook] = {}
        self._folds: dict[str, _Fold] = {}
        frozen = _frozen(self.module, freeze, only)
        self._train_constants_(frozen)
        if keep_norms:
            self._keep_norms_()
        self._shared = shared_names(self.placement, encodings)
        learning = None if only is None else set(only)
        for i, node in enumerate([n for n in self.module.graph.nodes if FakeQuantizeCall.of(n)]):
            readers = _readers(node)
            still = readers <= frozen or (learning is not None and not readers & learning)
            self._learn_(
                node,
                f"fake_quantize_{i}",
                learn=learn_amax and not still,
                codebook=None if still else codebook,
            )
        self.module.graph.eliminate_dead_code()
        self.module.recompile()
        parameters = [*self.trained, *self.ranges]
        # The model's own weights are beside those that replaced them.
        self.module.requires_grad_(False)
        for p in parameters:
            p.requires_grad_()

    @property
    def trained(self) -> list[nn.Parameter]:
        """Weights, biases and the factors of kept BatchNorms, in a fixed order."""
        return [
            *self.weights.values(),
            *(p for norm in self.norms.values() for p in norm.parameters()),
        ]

    @property
    def ranges(self) -> list[nn.Parameter]:
        """Form in which the ranges are learned."""
        return [q.log_step for q in self.quantizers.values() if q.log_step.requires_grad]

    @property
    def moving(self) -> list[torch.Tensor]:
        """State that training moves without a gradient: running statistics and codebooks."""
        return [
            b for part in (*self.norms.values(), *self.codebooks.values()) for b in part.buffers()
        ]

    def widen_(self, bits: int) -> None:
        """Widen every narrower quantizer to ``bits`` bits for a while.

        Args:
            bits: 2 to 8; 0 restores the own width of each.
        """
        for quantizer in self.quantizers.values():
            quantizer.widen_(bits or quantizer.format.bits)

    def settle_norms_(self, batches: Iterable[torch.Tensor | Feed]) -> None:
        """Give kept BatchNorms the statistics of what they see on ``batches``.

        The graph still computes what it did before.

        Args:
            batches: on the device of the graph, at least one.
        """
        for norm in self.norms.values():
            norm.seen = []
        with torch.no_grad():
            for feed in batches:
                self.module(*as_feed(feed))
        for norm in self.norms.values():
            norm.adopt_statistics_()

    def _train_constants_(self, frozen: set[str]) -> None:
        """Turn weights and biases of layers and norms into parameters of their own."""
        original = {str(n.target): n for n in self.module.graph.nodes if n.op == "get_attr"}
        read: dict[str, fx.Node] = {}
        fixed: set[str] = set()  # a weight that a frozen layer reads is fixed for all layers
        for node in self.module.graph.nodes:
            constants = {str(c.target): c for c in _constants(node)}
            read |= constants
            if node_name(node) in frozen:
                fixed |= constants.keys()
        for i, (target, node) in enumerate((t, n) for t, n in read.items() if t not in fixed):
            value = get_constant(self.module, original[target])
            assert value is not None
            name = f"trained_{i}"
            own = self._names.get(target, target)
            self.weights[own] = nn.Parameter(value.detach().clone())
            self.module.register_parameter(name, self.weights[own])
            node.target = name

    def _keep_norms_(self) -> None:
        """Put a BatchNorm behind every trained convolution that had one.

        Convolutions where folding it again would not be exact are left out.
        """
        for node in list(self.module.graph.nodes):
            if "batch_norm" in node.meta and ops.kind(node) == "conv":
                fold = self._fold_of(node)
                if fold is not None:
                    self._insert_norm_(node, fold)

    def _fold_of(self, node: fx.Node) -> _Fold | None:
        """Return what a BatchNorm behind a convolution folds into; None where that is not exact."""
        _, weight, bias = operands(node)[:3]
        codes = FakeQuantizeCall.of(weight)
        weight_name = self._trained_name(_behind_codes(weight))
        bias_name = self._trained_name(bias)
        if weight_name is None or bias_name is None:
            return None
        if codes is not None and codes.axis != 0:
            return None  # a range for the whole tensor would not follow a factor a channel
        if len(bias.users) > 1 or len(_behind_codes(weight).users) > 1:
            return None
        quantizer = codes.name if codes is not None else None
        return _Fold(weight_name, bias_name, quantizer)

    def _trained_name(self, node: object) -> str | None:
        """Return the name of a trained constant; None for every other operand."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value = getattr(self.module, str(node.target), None)
        return next((name for name, p in self.weights.items() if p is value), None)

    def _insert_norm_(self, node: fx.Node, fold: _Fold) -> None:
        norm = KeptNorm(self.weights.pop(fold.bias))
        name = f"kept_norm_{len(self.norms)}"
        self.module.add_submodule(name, norm)
        node.update_arg(2, None)
        with self.module.graph.inserting_after(node):
            call = self.module.graph.call_module(name, (node,))
        call.meta.update({k: v for k, v in node.meta.items() if k in ("val", "nn_module_stack")})
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
        self.norms[node_name(node)] = norm
        self._folds[node_name(node)] = fold

    def _learn_(self, node: fx.Node, name: str, *, learn: bool, codebook: int | None) -> None:
        call = FakeQuantizeCall.of(node)
        assert call is not None
        x, quantizer = call.x, call.name
        step, fmt = get_constant(self.module, call.scale), self.encodings.formats[quantizer]
        assert step is not None
        weight_name = self._trained_name(x)
        module: LearnedCodebook | LearnedFakeQuantize
        if codebook is not None and weight_name is not None:
            module = self.codebooks[quantizer] = LearnedCodebook(
                self.weights[weight_name], step * fmt.qmax, fmt.axis, codebook
            )
        else:
            module = self.quantizers[quantizer] = LearnedFakeQuantize(
                quantizer, step, fmt, learn=learn
            )
        self.module.add_submodule(name, module)
        with self.module.graph.inserting_before(node):
            learner = self.module.graph.call_module(name, (x,))
        learner.meta.update(node.meta)
        node.replace_all_uses_with(learner)

    def learned(self) -> Encodings:
        """Return the encodings as they are now.

        Kept BatchNorms are folded. Codebook weights become constants on their values.
        """
        amax = {**self.encodings.amax, **self._learned_amax()}
        values = {k: v.detach().cpu().clone() for k, v in self.weights.items()}
        self._fold_norms_(values, amax)
        formats = dict(self.encodings.formats)
        left_in_float = dict(self.encodings.left_in_float)
        for q in self.placement.active:
            book = self.codebooks.get(self._shared[q.name])
            if book is not None:
                self._write_codebook_(q.name, str(q.source.target), book, values)
                formats.pop(q.name), amax.pop(q.name)
                left_in_float[q.name] = (
                    f"a codebook of {len(book.values)} values: simulated, no engine has a "
                    "kernel for it"
                )
        methods = f"{self.encodings.origin.get('methods', '')} qat".strip()
        result = Encodings(
            amax=amax,
            amin=self.encodings.amin,
            formats=formats,
            constants={**self.encodings.constants, **values},
            left_in_float=left_in_float,
            origin={**self.encodings.origin, "methods": methods},
        )
        result.round_scales_to_fp16_()
        return result

    def _learned_amax(self) -> dict[str, torch.Tensor]:
        """Return the ranges that learned; others are not changed, to the bit."""
        learned = {}
        for q in self.placement.active:
            quantizer = self.quantizers.get(self._shared[q.name])
            if quantizer is not None and quantizer.log_step.requires_grad:
                learned[q.name] = quantizer.amax.cpu()
        return learned

    def _fold_norms_(self, values: dict[str, torch.Tensor], amax: dict[str, torch.Tensor]) -> None:
        """Fold kept BatchNorms into weights, biases and the ranges of weights."""
        for layer, norm in self.norms.items():
            fold = self._folds[layer]
            factor, values[fold.bias] = (v.cpu() for v in norm.folded())
            weight = values[fold.weight]
            values[fold.weight] = weight * along_axis(factor, weight.ndim, 0)
            if fold.quantizer is not None and fold.quantizer in self.quantizers:
                amax[fold.quantizer] = amax[fold.quantizer] * factor

    def _write_codebook_(
        self, quantizer: str, weight: str, book: LearnedCodebook, values: dict[str, torch.Tensor]
    ) -> None:
        """Put the weight on its codebook values.

        The factor of a folded BatchNorm is applied after them, as it is to the range of codes.
        """
        snapped = book.snapped(self.weights[weight].detach()).cpu()
        for layer, fold in self._folds.items():
            if fold.weight == weight and fold.quantizer == quantizer:
                factor = self.norms[layer].folded()[0].cpu()
                snapped = snapped * along_axis(factor, snapped.ndim, 0)
        values[weight] = snapped

    def first_non_finite(self, feed: Feed) -> str:
        """Return what is NaN or infinite first.

        It is a trained value, or what a node computes on ``feed``.

        Args:
            feed: one batch, on the device of the graph.
        """
        for name, value in self.weights.items():
            if not bool(torch.isfinite(value).all()):
                return f"the weight {name}"
        for name, quantizer in self.quantizers.items():
            if not bool(torch.isfinite(quantizer.log_step.exp()).all()):
                return f"the range of {name}"
        search = _FirstNonFinite(self.module)
        with torch.no_grad():
            search.run(*feed)
        return search.name or "the loss itself"


class _FirstNonFinite(fx.Interpreter):
    """Runs a graph until something is not finite."""

    name = ""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if (
            not self.name
            and isinstance(result, torch.Tensor)
            and result.is_floating_point()
            and not bool(torch.isfinite(result).all())
        ):
            self.name = f"the output of {node_name(n)}" if n.op != "placeholder" else "the input"
        return result


def _behind_codes(node: object) -> Any:
    """Return what a fake-quantize call reads, or the operand itself."""
    call = FakeQuantizeCall.of(node)
    return node if call is None else call.x


def _constants(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the weight and the bias that a layer or a norm reads, behind their codes."""
    places = ops.of(node).affine
    arguments = operands(node)
    for i in places:
        source = _behind_codes(arguments[i]) if i < len(arguments) else None
        if isinstance(source, fx.Node) and source.op == "get_attr":
            yield source


def _readers(node: fx.Node) -> set[str]:
    """Return the names of what reads a quantizer, through zero pads."""
    return {
        r
        for user in node.users
        for r in (_readers(user) if ops.kind(user) == "pad" else {node_name(user)})
    }


def _hold_constants_(graph: fx.GraphModule, encodings: Encodings) -> dict[str, str]:
    """Put the constants of a method (rounded weights, corrected biases) into the graph.

    Returns their own names by the names they have now.
    """
    names: dict[str, str] = {}
    buffers: dict[str, str] = {}
    for node in graph.graph.nodes:
        own = str(node.target)
        value = encodings.constants.get(own) if node.op == "get_attr" else None
        if value is None:
            continue
        if own not in buffers:
            buffers[own] = f"held_{len(buffers)}"
            graph.register_buffer(buffers[own], value.detach().to(device_of(graph), copy=True))
            names[buffers[own]] = own
        node.target = buffers[own]
    return names


def _frozen(
    graph: fx.GraphModule, patterns: Sequence[str], only: Collection[str] | None
) -> set[str]:
    names = [node_name(n) for n in graph.graph.nodes if ops.of(n).weighted or ops.kind(n) == "norm"]
    frozen = set() if only is None else set(names) - set(only)
    for pattern in patterns:
        hits = [
            n
            for n in names
            if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")
        ]
        if not hits:
            raise UsageError(f"--freeze {pattern!r} matches no layer", hint=suggest(pattern, names))
        frozen.update(hits)
    return frozen
