"""Several processes of one command, as torchrun starts them, in one output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from trtq.workers import Workers
from trtq.workspace import Workspace


@contextmanager
def together(
    work: Workspace, workers: Workers, device: torch.device, waiting: Callable[[str], None]
) -> Iterator[None]:
    """Join the processes inside the context, and end it in all of them at once.

    Args:
        work: the folder; the first process locks it, and it alone writes there.
        workers: the processes.
        device: where they compute.
        waiting: receives a line about the processes that this one waits for.

    Raises:
        UsageError: the other processes cannot be reached.
        TrtqError: one of them ended early.
    """
    joined = workers.joined(gpu=device.type == "cuda", waiting=waiting)
    with work.locked() if workers.rank == 0 else nullcontext(), joined:
        yield
        workers.wait()
