"""How far the outputs of a model are from a reference's: tensors, with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy, smooth_l1_loss

TINY = 1e-12
LEAST = 1e-6  # of a probability, whose logarithm is taken
NEAR = 0.05  # of a side: nearer boxes differ by the square of their distance
Named = Mapping[str, torch.Tensor]
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Raw(NamedTuple):
    """Outputs of a head before any box is left out.

    Attributes:
        boxes: centre, width and height in pixels, float [N, A, 4].
        scores: of each class, 0 to 1, float [N, A, C].
    """

    boxes: torch.Tensor
    scores: torch.Tensor


def relative_error(outputs: Named, reference: Named) -> torch.Tensor:
    """Return the squared error over the square of the reference, summed over outputs, float [N].

    Integers, which have no slope, do not count.

    Args:
        outputs: of the model by name, samples first.
        reference: of the reference, by the same names.

    Returns:
        One value for each sample, 0 where no output is of floats; float32 at least.

    >>> error = relative_error({"y": torch.tensor([[1.1, 2.0]])}, {"y": torch.tensor([[1.0, 2.0]])})
    >>> [round(v, 4) for v in error.tolist()]
    [0.002]
    """
    first = next(iter(reference.values()))
    total = torch.zeros(len(first) if first.ndim else 1, device=first.device)
    for name, given in reference.items():
        if given.is_floating_point() and given.numel():
            wanted = _each(_wide(given))  # squares of float16 would be beyond its range
            noise = (_each(_wide(outputs[name])) - wanted).square().mean(1)
            total = total + noise / wanted.square().mean(1).clamp_min(TINY)
    return total


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def class_divergence(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of the softmax over axis 1, nats.

    Args:
        outputs: scores of classes [N, C] or of the classes of pixels [N, C, H, W].
        reference: the same of the reference.

    Returns:
        [N], summed over pixels.
    """
    each = jensen_shannon(reference.softmax(dim=1), outputs.softmax(dim=1))
    return each if each.ndim == 1 else each.flatten(1).sum(1)


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence JSD(P || Q) in nats (S2).

    It is KL(P || M) / 2 + KL(Q || M) / 2 with M = (P + Q) / 2, [N] for distributions over axis 1.

    Args:
        p: probabilities, classes on axis 1.
        q: of the same shape.

    >>> divergence = jensen_shannon(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    >>> round(float(divergence[0]), 4)
    0.6931
    """
    return _jensen_shannon(p, q).sum(dim=1)


def _jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    least = torch.finfo(p.dtype).tiny  # the logarithm of 0 would make gradients NaN
    middle = ((p + q) / 2).clamp_min(least)

    def divergence(a: torch.Tensor) -> torch.Tensor:
        return a * (a.clamp_min(least) / middle).log()

    return (divergence(p) + divergence(q)) / 2


def bernoulli_jensen_shannon(scores: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of independent yes-or-no scores, nats, elementwise.

    Args:
        scores: 0 to 1, of any shape.
        reference: of the same shape.

    Returns:
        A tensor of the same shape, 0 to log 2; scores are cut at 1e-6 from both ends.
    """
    p, q = (v.clamp(LEAST, 1.0 - LEAST) for v in (reference, scores))
    return _jensen_shannon(p, q) + _jensen_shannon(1.0 - p, 1.0 - q)


def bernoulli_kullback_leibler(scores: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || scores) of independent yes-or-no scores, nats, elementwise.

    Args:
        scores: 0 to 1, of any shape.
        reference: of the same shape.

    Returns:
        A tensor of the same shape, 0 or more; scores are cut at 1e-6 from both ends.
    """
    p, q = (v.clamp(LEAST, 1.0 - LEAST) for v in (reference, scores))
    return binary_cross_entropy(q, p, reduction="none") - binary_cross_entropy(
        p, p, reduction="none"
    )


def head_distance(outputs: Raw, reference: Raw, measure: Measure) -> torch.Tensor:
    """Return how far boxes and scores are from a reference's, float [N].

    The divergence of all scores, and the distance of each box in widths and heights of the
    reference's, weighted by the best score that the reference gives it; both over the sum of these
    weights, which is about the number of boxes on objects, and at least 1.

    Args:
        outputs: of the model.
        reference: of the reference.
        measure: of two scores, elementwise.
    """
    weights = reference.scores.amax(dim=2).detach()
    objects = weights.sum(1).clamp_min(1.0)
    sides = reference.boxes[..., 2:].clamp_min(1.0)
    moved = (outputs.boxes - reference.boxes) / torch.cat([sides, sides], dim=2)
    moved = smooth_l1_loss(moved, torch.zeros_like(moved), reduction="none", beta=NEAR)
    apart = measure(outputs.scores, reference.scores).sum((1, 2))
    return (apart + (moved.sum(2) * weights).sum(1)) / objects


def _each(value: torch.Tensor) -> torch.Tensor:
    """Return one row a sample."""
    return value.reshape(1, -1) if value.ndim == 0 else value.reshape(len(value), -1)
