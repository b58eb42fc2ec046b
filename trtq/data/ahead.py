"""Samples decoded ahead of their use, in a thread beside."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def ahead(parts: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], T]) -> Iterator[T]:
    """Yield what ``decode`` makes of each part; the next one is made in a thread of its own.

    At most two results are in memory: the one that was yielded, and the next. When the consumer
    stops early, the thread ends after the part that it decodes.

    Args:
        parts: positions of the samples of each batch.
        decode: takes one part; it must not depend on state of the calling thread, such as
            ``torch.no_grad``.

    Raises:
        Exception: what ``decode`` raised.
    """
    done: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def work() -> None:
        try:
            for part in parts:
                if stop.is_set():
                    return
                done.put((decode(part),))
            done.put(None)
        except BaseException as exc:  # handed to the consumer, which raises it
            done.put(exc)

    thread = threading.Thread(target=work, daemon=True, name="trtq-decode")
    thread.start()
    try:
        while True:
            item = done.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stop.set()
        while thread.is_alive():  # the worker may wait for room in the queue
            try:
                done.get(timeout=0.05)
            except queue.Empty:
                continue
