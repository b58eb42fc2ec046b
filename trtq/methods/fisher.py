"""How much an error at the end of a block costs at the model's outputs.

The Fisher information of each block's output, as a diagonal plus a matrix of low rank (Wu et al.
2025, FIMA-Q). Near the float model the divergence of the outputs grows with the square of a block's
error, so its slope is the Fisher matrix times the error: pairs of slope and error, taken while the
rounding is learned, are what the matrix is approximated from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

TINY = 1e-30
SIDES = ("slope", "error", "start")


class FisherMetric:
    """Approximations of the Fisher matrices of blocks, from pairs of mean slope and mean error.

    Args:
        names: of the blocks.
        rank: pairs that are taken, 1 or more.

    Attributes:
        rank: pairs that are taken.
        rows: by block and kind: ``NAME.slope`` and ``NAME.error``, absolute and averaged over
            samples, float32 [pairs, values]; ``NAME.start``, by which the two parts are divided and
            the error that the loss begins with, float32 [3].
    """

    def __init__(self, names: Iterable[str], rank: int) -> None:
        self.names, self.rank = tuple(names), rank
        self.rows = dict[str, torch.Tensor]()

    def due(self, done: int, steps: int) -> bool:
        """Whether a pair is to be taken before a step: they are taken at equal distances.

        Args:
            done: steps before it.
            steps: of all.
        """
        taken = self._taken
        return taken < self.rank and done * self.rank >= taken * steps

    @property
    def _taken(self) -> int:
        return len(self.rows[f"{self.names[0]}.slope"]) if self.rows else 0

    def add(self, slopes: Mapping[str, torch.Tensor], errors: Mapping[str, torch.Tensor]) -> None:
        """Add one pair of each block.

        Args:
            slopes: of the divergence by the block's output, absolute, mean over samples, any shape.
            errors: of the block's output, the same.
        """
        for name in self.names:
            for kind, value in (("slope", slopes[name]), ("error", errors[name])):
                row, key = value.detach().reshape(1, -1), f"{name}.{kind}"
                known = [self.rows[key]] if key in self.rows else []
                self.rows[key] = torch.cat([*known, row])
            self.rows.pop(f"{name}.start", None)

    def loss(self, name: str, got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return what the error of a block costs, in the size of its relative error.

        With errors d of each sample, slopes G [k, N] and errors D [k, N] it is the mean of
        d' diag(mean G) d and (G d)' (D D')^-1 (G d), each over its value when the last pair was
        taken. Both start at half of the relative squared error, so blocks keep their weights. Where
        no slope is known (integer outputs) it is the relative error.

        Args:
            name: of the block.
            got: its output, samples first.
            wanted: the float model's.
        """
        far = (got - wanted).abs().flatten(1)
        slope, error = (self.rows[f"{name}.{kind}"] for kind in SIDES[:2])
        along = far @ slope.T
        gram = error @ error.T
        ridge = torch.eye(len(gram), device=gram.device) * (gram.diagonal().mean() * 1e-4 + TINY)
        solved: torch.Tensor = torch.linalg.solve(gram + ridge, along.T)
        low = (along * solved.T).sum(1).mean()
        diagonal = (far.square() * slope.mean(0)).sum(1).mean()
        relative = far.square().mean() / wanted.square().mean().clamp_min(1e-12)
        key = f"{name}.start"
        if key not in self.rows:
            self.rows[key] = torch.stack([diagonal, low, relative]).detach().clamp_min(TINY)
        first_diagonal, first_low, size = self.rows[key].unbind()
        cost = size * (diagonal / first_diagonal + low / first_low) / 2.0
        return torch.where(slope.any(), cost, relative)
