"""A stand-in for ``torch.cuda`` on a machine without a GPU.

Streams, events and graphs use the host's clock and memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


class FakeCuda:
    """What ``EngineWorkload`` asks of ``torch.cuda``.

    Attributes:
        launch: what a graph replays, since nothing can be recorded here.
        refuses: a text: capturing fails with it, as for an engine with data-dependent shapes.
        captured: graphs made.
    """

    def __init__(self, launch: Callable[[], None] | None = None, *, refuses: str = "") -> None:
        self.launch, self.refuses, self.captured = launch, refuses, 0
        owner = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self, stream: Any) -> None:
                assert isinstance(
                    stream, Stream
                )  # an event on the default stream times something else
                self.at = time.perf_counter()

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

            def synchronize(self) -> None:
                return None

        class CUDAGraph:
            def replay(self) -> None:
                assert owner.launch is not None
                owner.launch()

        class Stream:
            cuda_stream = 0

            def synchronize(self) -> None:
                return None

        self.Event, self.CUDAGraph, self.Stream = Event, CUDAGraph, Stream

    @contextlib.contextmanager
    def graph(self, graph: Any, *, stream: Any) -> Iterator[None]:
        """Capture: what is launched inside runs, since nothing can be recorded here."""
        assert graph is not None
        assert stream is not None
        if self.refuses:
            raise RuntimeError(self.refuses)
        yield
        self.captured += 1

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Make a stream the current one."""
        assert stream is not None
        yield
