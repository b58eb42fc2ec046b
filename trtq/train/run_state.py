"""A training run's files, its learning rate and the variation of its images.

All of it is a function of the step.
"""

from __future__ import annotations

import ctypes
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trtq.artifact import decode_json, digest_of, write_bytes
from trtq.errors import ArtifactError
from trtq.layouts import layout_of
from trtq.train.epoch import Epoch
from trtq.version import __version__

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
STATE = "state.safetensors"
WARM_SHARE = 0.3  # of a one-cycle run


def keep_freed_memory_() -> None:
    """Ask glibc to keep freed memory instead of returning it to the system.

    A step allocates what the last one freed. Clearing fresh pages took a fifth of a ResNet-20 step
    on a CPU, float or quantized. Other C libraries are left as they are.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in (
        (M_MMAP_THRESHOLD, 32 << 20),
        (M_TRIM_THRESHOLD, (1 << 31) - 1),
        (M_TOP_PAD, 256 << 20),
    ):
        tune(option, value)


class Position(msgspec.Struct, kw_only=True):
    """Where a run is.

    Attributes:
        epoch, step: finished epochs, and finished steps of the one under way.
        factor: of the learning rates, lowered by ``plateau``.
        best: best score on the validation images so far, higher is better; None before one.
        best_epoch: the one it was.
        stale: epochs since then.
        total, count: loss and images of the epoch under way.
        scale, growth: of the gradient scaler, with fp16.
        history: one row an epoch.
    """

    epoch: int = 0
    step: int = 0
    factor: float = 1.0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    total: float = 0.0
    count: int = 0
    scale: float = 1.0
    growth: int = 0
    history: list[Epoch] = []


def rate(schedule: str, done: float) -> float:
    """Return the factor of the learning rate when a share of the run is over.

    Args:
        schedule: ``cosine``, ``onecycle``, or one of a constant rate.
        done: share of the run, 0 to 1.

    >>> [round(rate("cosine", d), 3) for d in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    >>> [round(rate("onecycle", d), 3) for d in (0.0, 0.3, 1.0)]
    [0.04, 1.0, 0.0]
    """
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "onecycle":  # Smith and Topin 2018: up from a twenty-fifth, then down to nothing
        if done < WARM_SHARE:
            return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * done / WARM_SHARE))
        return 0.5 * (1.0 + math.cos(math.pi * (done - WARM_SHARE) / (1.0 - WARM_SHARE)))
    return 1.0


class Draws:
    """The variation of the images of one step.

    They are mirrored with even odds and, for ``flip-crop``, moved by up to an eighth.

    Args:
        how: ``flip-crop``, ``flip`` or ``none``.
        count: images of the step, over all processes.
        size: (height, width).
        generator: what is drawn from; the same draws in every process.
    """

    def __init__(
        self, how: str, count: int, size: Sequence[int], generator: torch.Generator
    ) -> None:
        self.how, (self.height, self.width) = how, size
        self.flips = torch.rand(count, generator=generator) < 0.5
        self.tops, self.lefts = (
            torch.randint(0, 2 * (n // 8) + 1, (count,), generator=generator).tolist() for n in size
        )

    def vary(
        self, images: torch.Tensor, masks: torch.Tensor | None, picks: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return images and masks [N, H, W] with the same variation.

        Pixels from outside are mirrored.

        Args:
            images: float32, [N, C, H, W] or [N, H, W, C].
            masks: int64; labels [N] are not changed.
            picks: the places of these images among those that were drawn for.
        """
        if self.how == "none":
            return images, masks
        if layout_of(images.shape) == "NHWC":
            moved, masks = self.vary(images.permute(0, 3, 1, 2), masks, picks)
            return moved.permute(0, 2, 3, 1).contiguous(), masks
        dense = masks is not None and masks.ndim == 3
        both = (
            torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
            if dense and masks is not None
            else images
        )
        both = torch.where(self.flips[list(picks)][:, None, None, None], both.flip(3), both)
        if self.how == "flip-crop":
            up, left = self.height // 8, self.width // 8
            padded = torch.nn.functional.pad(both, (left, left, up, up), mode="reflect")
            corners = [(self.tops[i], self.lefts[i]) for i in picks]
            both = torch.stack(
                [
                    p[:, t : t + self.height, x : x + self.width]
                    for p, (t, x) in zip(padded, corners, strict=True)
                ]
            )
        return (both[:, :-1].contiguous(), both[:, -1].round().long()) if dense else (both, masks)


@contextmanager
def stops() -> Iterator[list[int]]:
    """Yield a list that SIGTERM fills; the run then ends after its step.

    Outside the main thread nothing is caught. The previous handler is restored at the end.
    """
    stopped: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    except ValueError:
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


class RunState:
    """Parameters, optimizers, averages and the position of a run, in one safetensors file.

    The file is written in one piece.

    Args:
        folder: of the checkpoint.
        key: everything the result depends on; a state of another key is refused.
        parameters: what learns.
        optimizers: over them.
        averages: moved beside the parameters; may be empty.
    """

    def __init__(
        self,
        folder: Path,
        key: object,
        parameters: Sequence[torch.Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        averages: Sequence[torch.Tensor],
    ) -> None:
        self.path, self.key = folder / STATE, _key(key)
        self.parameters, self.optimizers, self.averages = parameters, optimizers, averages

    def save(self, position: Position) -> None:
        """Write the state; the file of an earlier step is replaced in one piece.

        Args:
            position: where the run is.
        """
        tensors = {
            f"parameter.{i}": p.detach().cpu().contiguous() for i, p in enumerate(self.parameters)
        }
        tensors |= {f"average.{i}": a.cpu().contiguous() for i, a in enumerate(self.averages)}
        for o, optimizer in enumerate(self.optimizers):
            for i, p in enumerate(_held(optimizer)):
                state: Mapping[str, Any] = optimizer.state[p]
                tensors |= {
                    f"optimizer.{o}.{i}.{k}": v.cpu().contiguous()
                    for k, v in state.items()
                    if isinstance(v, torch.Tensor)
                }
        meta = {"key": self.key, "position": msgspec.json.encode(position).decode()}
        write_bytes(self.path, save(tensors, metadata=meta))

    def take_up(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the values that :func:`read_state` gave.

        Args:
            tensors: by ``parameter.I``, ``average.I`` and ``optimizer.O.I.KEY``.

        Raises:
            KeyError: the run has more parameters or averages than the file.
        """
        with torch.no_grad():
            for i, p in enumerate(self.parameters):
                p.copy_(tensors[f"parameter.{i}"])
            for i, a in enumerate(self.averages):
                a.copy_(tensors[f"average.{i}"])
            for o, optimizer in enumerate(self.optimizers):
                for i, p in enumerate(_held(optimizer)):
                    prefix = f"optimizer.{o}.{i}."
                    # The count of steps remains on the CPU, where the optimizer keeps it.
                    state = {
                        k.removeprefix(prefix): v if v.ndim == 0 else v.to(p.device)
                        for k, v in tensors.items()
                        if k.startswith(prefix)
                    }
                    if state:
                        optimizer.state[p] = state


def _key(key: object) -> str:
    return digest_of([key, str(torch.__version__), __version__])


def read_state(folder: Path, key: object) -> tuple[Position, dict[str, torch.Tensor]] | None:
    """Return where an earlier run was and what it left, None when there is nothing.

    Args:
        folder: of the checkpoint.
        key: everything the result depends on.

    Returns:
        The position, and tensors for :meth:`RunState.take_up`.

    Raises:
        ArtifactError: the state is of another run, or torn.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            meta = handle.metadata() or {}
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
        position = decode_json(meta["position"], Position)
    except (SafetensorError, OSError, KeyError, msgspec.MsgspecError) as exc:
        raise ArtifactError(
            f"Cannot read the checkpoint {path}", str(exc), "Remove it to start again"
        ) from exc
    if meta.get("key") != _key(key):
        raise ArtifactError(
            f"The checkpoint {path} is of another run",
            "a setting, the weights, the encodings or the images differ",
            "Give another --out, or remove it to start again",
        )
    return position, tensors


def _held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
