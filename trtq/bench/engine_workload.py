"""A request to an engine: pinned buffers, one stream, a CUDA graph where that is possible."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtq.bench.record import RowSettings
from trtq.engine.runner import Bound, EngineRunner
from trtq.errors import first_line
from trtq.export.feeds import AnyArray, Inputs


def count_of(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many samples a request has: the first size of the first input with axes.

    1 where no input has axes.

    Args:
        shapes: by input name, in the order of the file.
    """
    return next((s[0] for s in shapes.values() if s), 1)


def shapes_of(feed: Inputs) -> dict[str, list[int]]:
    """Return the shape of every array by name."""
    return {n: list(a.shape) for n, a in feed.items()}


class EngineWorkload:
    """An engine on its GPU, with one request in flight.

    Host buffers are pinned; copies and inference run on one stream.

    Args:
        runner: the engine.
        feed: arrays of every input, of the engine's types.
        graph: launch a captured CUDA graph; ``settings`` says whether that succeeded.
        context: a separate execution context.
        cuda: streams, events and graphs; torch's, or a stand-in.
    """

    def __init__(
        self,
        runner: EngineRunner,
        feed: Inputs,
        *,
        graph: bool = True,
        context: Any = None,
        cuda: Any = None,
    ) -> None:
        import time

        torch = runner.torch
        pinned = runner.device.type == "cuda"
        self.runner = runner
        self.graph_wanted = graph
        self.clock = time.perf_counter_ns
        self.cuda: Any = cuda or (torch.cuda if pinned else None)
        self.label = f"{runner.device} (TensorRT, {runner.label})"
        self.device, self.notes = str(runner.device), runner.notes
        self.feed = feed
        self.shapes = shapes_of(feed)
        self.shape = next(iter(self.shapes.values()))
        host = {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in feed.items()}
        self.host = {n: t.pin_memory() if pinned else t for n, t in host.items()}
        self.bound = self._bind(context)
        self.outputs = {
            n: torch.empty_like(b, device="cpu", pin_memory=pinned)
            for n, b in self.bound.buffers.items()
            if n not in runner.input_names
        }
        self.stream: Any = self.cuda.Stream() if self.cuda is not None else None
        self.apart = self.cuda is not None
        self.why_whole = "" if self.apart else "there are no CUDA events on this device"
        self.graph: Any = None
        why_no_graph = self._capture() if graph else "not asked for"
        self.settings = RowSettings(
            runtime="TensorRT",
            transfers="included in e2e, not in GPU time",
            wait="stream synchronize",
            graph="used" if self.graph is not None else f"not used: {why_no_graph}",
        )

    def _bind(self, context: Any) -> Bound:
        on_device = {n: t.to(self.runner.device) for n, t in self.host.items()}
        return self.runner.bind(on_device, context)

    @property
    def open_inputs(self) -> list[str]:
        """Names of the inputs with open axes."""
        return [s.name for s in self.runner.inputs if None in s.shape]

    def _capture(self) -> str:
        """Capture one launch as a CUDA graph; return why that failed, "" when it succeeded."""
        if self.cuda is None:
            return "no CUDA here"
        try:
            self._enqueue()  # TensorRT finishes what it does lazily before a capture
            self.stream.synchronize()
            graph = self.cuda.CUDAGraph()
            with self.cuda.graph(graph, stream=self.stream):
                self.bound.launch(self.stream.cuda_stream)
            self.graph = graph
        except Exception as exc:  # any error of CUDA: the launch works without
            return first_line(exc)
        return ""

    def _enqueue(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self.bound.launch(self.stream.cuda_stream if self.stream is not None else 0)

    def call(self) -> None:
        """Copy in, infer, copy out, wait."""
        with self.cuda.stream(self.stream) if self.cuda is not None else contextlib.nullcontext():
            for n, host in self.host.items():
                self.bound.buffers[n].copy_(host, non_blocking=True)
            self._enqueue()
            for n, buffer in self.outputs.items():
                buffer.copy_(self.bound.buffers[n], non_blocking=True)
        if self.stream is not None:
            self.stream.synchronize()

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Run ``count`` inferences without copies; an event pair around each, on its stream.

        Returns:
            GPU times and the host's times in the launch, nanoseconds, int64 [count] each.
        """
        gpu = np.zeros(count, dtype=np.int64)
        enqueue = np.zeros(count, dtype=np.int64)
        clock = self.clock
        begin = self.cuda.Event(enable_timing=True)
        end = self.cuda.Event(enable_timing=True)
        with self.cuda.stream(self.stream):
            for i in range(count):
                begin.record(self.stream)
                start = clock()
                self._enqueue()
                enqueue[i] = clock() - start
                end.record(self.stream)
                end.synchronize()
                gpu[i] = round(begin.elapsed_time(end) * 1e6)
        return gpu, enqueue

    @property
    def io_bytes(self) -> int:
        """Buffers of the inputs and the outputs on the GPU."""
        return sum(int(b.numel() * b.element_size()) for b in self.bound.buffers.values())

    def profile(self, runs: int) -> dict[str, float]:
        """Return the time of each layer from TensorRT's profiler, by the layer's name.

        Args:
            runs: requests that count, after three that do not. They run without a CUDA graph in a
                separate execution context.

        Returns:
            milliseconds summed over ``runs`` requests; empty where the engine reports no layers.
        """
        times: dict[str, float] = {}
        base = self.runner.trt.IProfiler

        class Collector(base):  # type: ignore[misc,valid-type]
            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        context = self.runner.new_context()
        bound = self._bind(context)
        handle = self.stream.cuda_stream if self.stream is not None else 0
        for _ in range(3):
            bound.launch(handle)
        context.profiler = Collector()
        for _ in range(runs):
            bound.launch(handle)
            if self.stream is not None:
                self.stream.synchronize()
        return times

    def again(self) -> EngineWorkload:
        """Return a second request with a separate context and stream."""
        return EngineWorkload(
            self.runner,
            self.feed,
            graph=self.graph_wanted,
            context=self.runner.new_context(),
            cuda=self.cuda,
        )

    def answer(self) -> list[AnyArray]:
        """Return what the last call computed, by place in the engine; floats are float32."""
        return [
            np.asarray((v.float() if v.is_floating_point() else v).numpy())
            for v in self.outputs.values()
        ]
