"""The processes of one run, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from trtq.errors import TrtqError, UsageError, reason

T = TypeVar("T")
WHERE = "Cannot run as one of several processes"
HINT = (
    "Start them with torchrun --nproc-per-node N -m trtq ..., or unset RANK and WORLD_SIZE to "
    "run as one"
)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as exc:
        raise UsageError(WHERE, f"{name} is {text!r}, not a number", HINT) from exc


@contextmanager
def _others() -> Iterator[None]:
    """Say so when another process is gone.

    Raises:
        TrtqError: in place of what the transport raises.
    """
    try:
        yield
    except RuntimeError as exc:
        raise TrtqError(
            "Another of the processes ended before this one", reason(exc), "See what it wrote"
        ) from exc


class Assisted(Exception):  # noqa: N818 - not an error
    """This process has done its share; the first one continues to the result."""


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies this process among several; torchrun sets it in the environment.

    Attributes:
        rank: of this process; 0 writes the files.
        world: number of processes.
        local: rank of this process on its machine; it takes that GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Workers:
        """Return what ``torchrun`` set; without it, a single process.

        Raises:
            UsageError: a variable is not a number, the rank does not fit, or the address of the
                first process is missing.
        """
        workers = cls(
            rank=_number("RANK", 0), world=_number("WORLD_SIZE", 1), local=_number("LOCAL_RANK", 0)
        )
        if workers.world < 1 or not 0 <= workers.rank < workers.world:
            why = (
                f"RANK is {workers.rank} and WORLD_SIZE is {workers.world}; a rank is between 0 "
                "and WORLD_SIZE - 1"
            )
            raise UsageError(WHERE, why, HINT)
        missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
        if workers.world > 1 and missing:
            why = (
                f"WORLD_SIZE is {workers.world}, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set"
            )
            raise UsageError(WHERE, why, HINT)
        return workers

    @contextmanager
    def joined(
        self, *, gpu: bool = False, waiting: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Connect the processes through torch.distributed inside the context.

        The backend is nccl between GPUs, else gloo.

        Args:
            gpu: whether the processes compute on GPUs.
            waiting: receives a line about the processes that this one waits for.

        Raises:
            UsageError: the other processes cannot be reached.
        """
        if self.world == 1:
            yield
            return
        from torch import distributed

        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if waiting is not None:
            waiting(
                f"process {self.rank} of {self.world} waits for the other {self.world - 1} at "
                f"{place}"
            )
        try:
            distributed.init_process_group(
                "nccl" if gpu else "gloo",
                rank=self.rank,
                world_size=self.world,
                timeout=timedelta(days=2),
            )
        except (RuntimeError, ValueError, OSError) as exc:
            raise UsageError(
                f"Cannot reach the other processes at {place}", reason(exc), HINT
            ) from exc
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait for all processes, inside :meth:`joined`; return at once when there is one."""
        if self.world > 1:
            from torch import distributed

            with _others():
                distributed.barrier()

    def sum_(self, tensor: Any) -> Any:
        """Replace ``tensor`` in place by its sum over all processes and return it.

        Args:
            tensor: of the same shape and type in every process, on the device that the processes
                joined with.
        """
        return self._reduce_(tensor, "SUM")

    def max_(self, tensor: Any) -> Any:
        """Replace ``tensor`` in place by its largest values of all processes and return it."""
        return self._reduce_(tensor, "MAX")

    def min_(self, tensor: Any) -> Any:
        """Replace ``tensor`` in place by its smallest values of all processes and return it."""
        return self._reduce_(tensor, "MIN")

    def _reduce_(self, tensor: Any, how: str) -> Any:
        if self.world > 1:
            from torch import distributed

            with _others():
                distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
        return tensor

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every ``world``-th item, from ``rank`` on.

        >>> Workers(rank=1, world=3).share("abcdefg")
        'be'
        """
        return items[self.rank :: self.world]

    def run_of(self, count: int) -> range:
        """Return the positions of this process where ``count`` items are cut into runs, in order.

        >>> [Workers(rank=r, world=3).run_of(8) for r in range(3)]
        [range(0, 2), range(2, 5), range(5, 8)]
        """
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)
