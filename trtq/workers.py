"""The processes of one run, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Which of several processes this is; torchrun says so in the environment.

    Attributes:
        rank: of this process; 0 writes the files.
        world: how many there are.
        local: of this process on its machine; it takes that GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Workers:
        """Return what ``torchrun`` set, one process without it."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            world=int(os.environ.get("WORLD_SIZE", "1")),
            local=int(os.environ.get("LOCAL_RANK", "0")),
        )

    @contextmanager
    def joined(self, *, gpu: bool = False) -> Iterator[None]:
        """Let the processes talk to each other inside (torch.distributed: nccl between GPUs, else gloo)."""
        if self.world == 1:
            yield
            return
        from torch import distributed

        distributed.init_process_group("nccl" if gpu else "gloo", rank=self.rank, world_size=self.world, timeout=timedelta(days=2))
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here, inside :meth:`joined`; at once when there is one."""
        if self.world > 1:
            from torch import distributed

            distributed.barrier()

    def sum_(self, tensor: Any) -> Any:
        """Put the sum over all processes in the place of ``tensor`` and return it."""
        if self.world > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every ``world``-th item, from ``rank`` on."""
        return items[self.rank :: self.world]
