"""Ranking-aware ranges for attention.

Queries and keys are quantized so that the order of the attention logits survives.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import fx

from trtq.graph.feed import joined
from trtq.graph.naming import node_name
from trtq.methods.base import BATCHES, Method, MethodContext, Report, needs
from trtq.quant.fake_quantize import fake_quantize
from trtq.quant.placement import Quantizer

FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        gamma: weight of the ranking loss against the correlation (Liu et al. 2021, eq. 5).
        theta: margin of the ranking loss (eq. 7).
        pairs: of keys, sampled for each attention.
        images: calibration images, run as one batch.
        rounds: over the ranges of queries and of keys.
    """

    gamma: float = 0.1
    theta: float = 0.0
    pairs: int = 256
    images: int = 8
    rounds: int = 2


def pearson(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean correlation of the rows of ``a`` and ``b``.

    Args:
        a: [..., values]; rows of no variance are left out.
        b: of the same shape.

    Returns:
        -1 to 1; 1 where every row is left out.
    """
    a, b = (v.double() - v.double().mean(-1, keepdim=True) for v in (a, b))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    live = norm > 0
    return float(((a * b).sum(-1)[live] / norm[live]).mean()) if bool(live.any()) else 1.0


def pair_differences(
    logits: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return logits_i - logits_j for the sampled pairs of keys.

    Args:
        logits: [..., keys].
        pairs: i and j, int64 [pairs] each.

    Returns:
        [..., pairs].
    """
    return logits[..., pairs[0]] - logits[..., pairs[1]]


def ranking_loss(wanted: torch.Tensor, got: torch.Tensor, theta: float) -> float:
    """Return the ranking loss of Liu et al. 2021, eq. 7, over pairs that are no ties.

    It is the mean of max(0, theta - (got_i - got_j) sign(wanted_i - wanted_j)).

    Args:
        wanted: differences of the float logits, any shape.
        got: of the quantized logits.
        theta: how far apart a pair must remain.

    >>> ranking_loss(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([2.0, 3.0, 9.0]), 0.0)
    1.5
    """
    order = wanted.sign()
    decided = order != 0
    if not bool(decided.any()):
        return 0.0
    return float((theta - got[decided] * order[decided]).clamp_min(0.0).mean())


def kendall(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Return Kendall's tau over sampled pairs (tau-a of the decided pairs).

    Args:
        wanted: differences of the float logits, any shape; 0 is no decided pair.
        got: of the quantized logits; a 0 counts as neither concordant nor discordant.

    >>> kendall(torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([2.0, 0.0, 1.0, 5.0]))
    0.0
    """
    decided = wanted != 0
    if not bool(decided.any()):
        return 1.0
    return float((wanted[decided].sign() * got[decided].sign()).mean())


class _Search(fx.Interpreter):
    """Runs the float graph and chooses the ranges of each attention's operands on the way."""

    def __init__(self, context: MethodContext, arguments: Arguments) -> None:
        super().__init__(context.graph)
        self.context, self.arguments = context, arguments
        self.attentions = _attentions(context)
        self.report = dict[str, dict[str, float]]()

    def run_node(self, n: fx.Node) -> Any:
        if n in self.attentions:
            query, key = self.fetch_args_kwargs_from_env(n)[0][:2]
            self._choose(n, query, key, *self.attentions[n])
            self.context.advance(1)
        return super().run_node(n)

    def _choose(
        self, node: fx.Node, query: torch.Tensor, key: torch.Tensor, lhs: Quantizer, rhs: Quantizer
    ) -> None:
        encodings, keys = self.context.encodings, key.shape[-1]
        scale = query.shape[-1] ** -0.5
        generator = torch.Generator().manual_seed(0)
        count = self.arguments.pairs
        first = torch.randint(keys, (count,), generator=generator)
        pairs = (
            first,
            (first + torch.randint(1, max(2, keys), (count,), generator=generator)) % keys,
        )
        full = query @ key * scale
        wanted = pair_differences(full, pairs)

        def logits(amax: tuple[float, float]) -> torch.Tensor:
            operands = []
            for x, q, a in ((query, lhs, amax[0]), (key, rhs, amax[1])):
                fmt = q.format
                step = torch.tensor(a / fmt.qmax, dtype=torch.float32)
                operands.append(fake_quantize(x, step, None, None, fmt.qmin, fmt.qmax, q.name))
            product: torch.Tensor = operands[0] @ operands[1] * scale
            return product

        def score(amax: tuple[float, float]) -> float:
            got = logits(amax)
            penalty = ranking_loss(wanted, pair_differences(got, pairs), self.arguments.theta)
            return pearson(full, got) - self.arguments.gamma * penalty

        start = float(encodings.amax[lhs.name]), float(encodings.amax[rhs.name])
        best, best_score = start, score(start)
        for _ in range(self.arguments.rounds):
            for side in (0, 1):
                for fraction in FRACTIONS:
                    tried = (
                        (start[0] * fraction, best[1])
                        if side == 0
                        else (best[0], start[1] * fraction)
                    )
                    value = score(tried)
                    if value > best_score:
                        best, best_score = tried, value
        encodings.amax[lhs.name], encodings.amax[rhs.name] = (
            torch.tensor(a, dtype=torch.float32) for a in best
        )
        before, after = (kendall(wanted, pair_differences(logits(a), pairs)) for a in (start, best))
        self.report[node_name(node)] = {"kendall_before": before, "kendall_after": after}


def _attentions(context: MethodContext) -> dict[fx.Node, tuple[Quantizer, Quantizer]]:
    """Return the matmuls of queries and keys whose operands are both quantized."""
    operands_by_matmul: dict[fx.Node, dict[str, Quantizer]] = {}
    for q in context.placement.active:
        if (
            q.role in ("lhs", "rhs")
            and not q.is_weight
            and node_name(q.consumer).rpartition(".")[2].startswith("qk")
        ):
            operands_by_matmul.setdefault(q.consumer, {})[q.role] = q
    return {n: (q["lhs"], q["rhs"]) for n, q in operands_by_matmul.items() if len(q) == 2}


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Choose the ranges and report each attention's rank agreement before and after.

    Returns:
        ``attentions``: ``kendall_before`` and ``kendall_after`` on sampled pairs, by matmul.
    """
    search = _Search(context, arguments)
    if not search.attentions:
        context.note(
            "ranking: all attentions remain in float, so there is nothing to choose "
            "(--attention int8)"
        )
        return {"attentions": {}}
    context.begin("Ranking-aware attention ranges", len(search.attentions))
    with torch.inference_mode():
        search.run(*joined(context.images(arguments.images)))
    return {"attentions": search.report}


METHOD = Method(
    name="ranking",
    summary="Choose the ranges of queries and keys so that the order of attention logits survives "
    "quantization.",
    label="folded",
    stage="after",
    source="S1 section 4.6; Liu et al. 2021, Post-Training Quantization for Vision Transformer, "
    "eq. 5-8",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs(
        BATCHES,
        (
            _attentions,
            "it has no attention with quantized queries and keys; it is for transformers",
        ),
    ),
)
