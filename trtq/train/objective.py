"""The training objective: labels or masks, the float model's answers, or a user's own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div

from trtq.errors import UsageError
from trtq.graph.feed import Feed, as_feed

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """One term: ``share * total / norm``, both summed over every process of the run.

    Attributes:
        share: of the loss.
        total: a sum over images or pixels, differentiable.
        norm: what it is divided by: weights of images or pixels.
    """

    share: float
    total: torch.Tensor
    norm: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of a batch.

    Attributes:
        distill: distillation weight (Hinton et al. 2015).
        temperature: of the answers that are compared.
        weights: of the classes, float32 [classes]; None for all the same.
        ignore: class index that is ignored.
        own: ``own(answer, wanted)`` returns the mean over the images; it takes the place of the
            cross-entropy.
        scores: the first output is scores of classes; distillation compares it as such.
    """

    distill: float
    temperature: float
    weights: torch.Tensor | None
    ignore: int
    own: Loss | None
    scores: bool = True

    def parts(
        self,
        answers: torch.Tensor | Feed,
        wanted: torch.Tensor | None,
        teachers: torch.Tensor | Feed | None,
    ) -> list[Part]:
        """Return the terms for all outputs; labels are those of the first.

        Outputs share the distillation weight equally. Scores of classes, logits [N, C] or
        [N, C, H, W], are compared by their distributions. Other floats are compared by the power
        of the difference over that of the float model's answer; integers are left out.

        Args:
            answers: of every output.
            wanted: classes, int64 [N] or [N, H, W]; None when only the teacher is asked.
            teachers: the float model's answers; None without distillation.

        Raises:
            UsageError: the user's own loss is not one number.
        """
        ours = [a.float() if a.is_floating_point() else a for a in as_feed(answers)]
        parts = []
        if self.distill < 1.0 and wanted is not None:
            parts.append(Part(1.0 - self.distill, *self._asked(ours[0], wanted)))
        if teachers is not None:
            pairs = list(zip(ours, as_feed(teachers), strict=True))
            floats = [i for i, (a, _) in enumerate(pairs) if a.is_floating_point()]
            for i in floats:
                compare = self._distributions if i == 0 and self.scores else _relative_power
                answer, teacher = pairs[i]
                parts.append(Part(self.distill / len(floats), *compare(answer, teacher.float())))
        return parts

    def _distributions(
        self, answer: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of T^2 KL(teacher || answer) at temperature T, and what it is divided by.

        Args:
            answer: logits [N, C] or [N, C, H, W].
            teacher: of the same shape.
        """
        t = self.temperature
        ours, theirs = (answer / t).log_softmax(dim=1), (teacher / t).log_softmax(dim=1)
        total = kl_div(ours, theirs, reduction="sum", log_target=True) * t**2
        return total, answer.new_tensor(answer.numel() / answer.shape[1])

    def _asked(
        self, answer: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.own is not None:
            value = self.own(answer, wanted)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                shape = (
                    list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                )
                raise UsageError(
                    "Cannot use --loss",
                    f"it returned {shape}, not one number",
                    "Return the mean over the images, a tensor",
                )
            return value.reshape(()) * len(answer), answer.new_tensor(float(len(answer)))
        total = cross_entropy(
            answer, wanted, weight=self.weights, ignore_index=self.ignore, reduction="sum"
        )
        labelled = wanted[wanted != self.ignore]
        return total, answer.new_tensor(
            float(labelled.numel())
        ) if self.weights is None else self.weights[labelled].sum()


def _relative_power(
    answer: torch.Tensor, teacher: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (answer - teacher).square().sum(), teacher.square().sum()


def class_weights(
    how: str, targets: Iterable[torch.Tensor], classes: int, ignore: int
) -> torch.Tensor | None:
    """Return a weight for each class from its frequency.

    ``log``: 1 / ln(1.02 + share) (Paszke et al. 2016, section 5.2). ``median``: median of the
    shares over the share (Eigen and Fergus 2015, section 6.3.2; shares over all pixels). A class
    that never occurs gets 0.

    Args:
        how: ``none``, ``log`` or ``median``.
        targets: int64, any shapes, below ``classes``.
        classes: how many there are.
        ignore: class index that is ignored.

    Returns:
        float32 [classes]; None for ``none``.

    >>> class_weights("median", [torch.tensor([0, 0, 0, 1, 1, 2])], 3, -100)
    tensor([0.6667, 1.0000, 2.0000])
    """
    if how == "none":
        return None
    counts = torch.zeros(classes, dtype=torch.int64)
    for wanted in targets:
        counts += torch.bincount(wanted[wanted != ignore].flatten(), minlength=classes)
    share = counts.double() / counts.sum().clamp_min(1)
    weights = (
        1.0 / torch.log(1.02 + share)
        if how == "log"
        else share[counts > 0].quantile(0.5) / share.clamp_min(1e-12)
    )
    return torch.where(counts > 0, weights, 0.0).float()
