"""The timed workload: one request, from input in host memory to answer in host memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trtq.data.metrics import Array
from trtq.engine.open_engine import is_engine, open_engine
from trtq.engine.runner import EngineRunner
from trtq.errors import BenchError, UsageError, first_line
from trtq.export.ort import input_shape, open_session, static_batch

SEED = 0


class Workload(Protocol):
    """One model, loaded, with its input.

    Attributes:
        label: what runs it and on what: ``CPU (ONNX Runtime)``. A CPU's figures are never called
            anything else.
        device: ``cpu`` or ``cuda:N``.
        shape: of the input, [N, C, H, W].
        settings: what changes the meaning of its times: transfers, wait, graph.
        apart: whether GPU time and enqueue time can be separated from the host's: then ``split``
            works.
        why_whole: why they cannot be separated.
        io_bytes: of the input and the outputs, on the device.
    """

    label: str
    device: str
    shape: list[int]
    settings: dict[str, Any]
    apart: bool
    why_whole: str

    @property
    def io_bytes(self) -> int:
        """Of the input and the outputs."""

    def call(self) -> None:
        """Serve one request and wait for the answer."""

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Run ``count`` inferences one after another; return GPU times and launch times.

        The launch time is the host's time in the launch. Both are nanoseconds, int64 [count].
        """

    def again(self) -> Workload:
        """Return a second request that can run at the same time as this one."""

    def answer(self) -> list[Array]:
        """Return what the last call computed."""


def device_for(device: str, *paths: Path) -> str:
    """Return the device of files; an engine always runs on a GPU."""
    return "cuda:0" if device == "cpu" and any(is_engine(p) for p in paths) else device


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a file is loaded and called; see :func:`open_workload`."""

    device: str = "cpu"
    batch: int = 1
    graph: bool = True
    trust: bool = False

    def open(self, path: Path, *, taking_turns: bool = False) -> Workload:
        """Load a file."""
        return open_workload(
            path,
            device=self.device,
            batch=self.batch,
            graph=self.graph,
            trust=self.trust,
            taking_turns=taking_turns,
        )


def open_workload(
    path: Path,
    *,
    device: str = "cpu",
    batch: int = 1,
    graph: bool = True,
    trust: bool = False,
    taking_turns: bool = False,
) -> Workload:
    """Load an ONNX file into ONNX Runtime or an engine into TensorRT, with random input.

    Args:
        path: FILE.onnx or FILE.engine.
        device: ``cpu`` or ``cuda:N``; engines run on ``cuda:N`` alone.
        batch: images in a request.
        graph: launch an engine as a CUDA graph, where that is possible.
        trust: run an engine without a manifest.
        taking_turns: others run between its requests (:func:`trtq.export.ort.open_session`).

    Raises:
        UsageError: no such device, or a batch that the file does not take.
        BenchError: the file's inputs are not one image tensor, or an engine is asked to run on a
            CPU.
        EngineError, ExportError: it cannot be loaded.
    """
    provider, index = parse_device(device)
    if not path.is_file():
        raise BenchError(f"Cannot read {path}", "there is no such file")
    if is_engine(path):
        return EngineWorkload(
            open_engine(path, trust=trust, device=device_for(device, path)), batch, graph=graph
        )
    return OnnxWorkload(path, batch, provider=provider, index=index, taking_turns=taking_turns)


def parse_device(text: str) -> tuple[str, int]:
    """Return ONNX Runtime's provider and the index of a device.

    Raises:
        UsageError: it is neither ``cpu`` nor ``cuda:N``.
    """
    name, _, index = text.partition(":")
    if text == "cpu":
        return "CPU", 0
    if name == "cuda" and (index or "0").isdigit():
        return "CUDA", int(index or 0)
    if name == "ssh":
        raise UsageError(
            f"Cannot measure on {text}",
            "this verb measures here",
            f"On the board: trtq deploy {index or 'NAME'} FILE.onnx",
        )
    raise UsageError(f"Unknown device {text!r}", hint="Use cpu or cuda:N")


def random_input(shape: Sequence[int]) -> Array:
    """Return the input of every run.

    Values are standard normal from a fixed seed, so that no value is 0 and runs are repeatable.
    """
    return np.random.default_rng(SEED).standard_normal(tuple(shape), dtype=np.float32)


def _is_one_image(inputs: Sequence[Any]) -> bool:
    """Return whether a session has one float32 input with a fixed size."""
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        return False
    return all(isinstance(v, int) for v in inputs[0].shape[1:])


class OnnxWorkload:
    """An ONNX file in ONNX Runtime, with its own graph optimisation and integer kernels.

    Raises:
        UsageError: its batch is fixed at another number.
        BenchError: it has not one float32 image input.
    """

    apart = False
    why_whole = "ONNX Runtime launches on a stream of its own: only the whole request can be timed"

    def __init__(
        self,
        path: Path,
        batch: int,
        *,
        provider: str = "CPU",
        index: int = 0,
        session: Any = None,
        taking_turns: bool = False,
    ) -> None:
        self.session = session or open_session(
            path, as_written=False, provider=provider, device_id=index, taking_turns=taking_turns
        )
        fixed = static_batch(self.session)
        if fixed is not None and fixed != batch:
            raise UsageError(
                f"Cannot run {path.name} with --batch {batch}",
                f"its batch is fixed at {fixed}",
                f"Use --batch {fixed}",
            )
        inputs = self.session.get_inputs()
        if not _is_one_image(inputs):
            actual = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise BenchError(
                f"Cannot make input for {path.name}",
                f"expected one float32 image input with a fixed size, found {actual}",
            )
        self.path = path
        self.provider = provider
        self.index = index
        self.device = "cpu" if provider == "CPU" else f"cuda:{index}"
        self.label = f"{'CPU' if provider == 'CPU' else self.device} (ONNX Runtime)"
        if provider == "CPU":
            self.why_whole = "the request runs on the CPU: there is no GPU time in it"
        self.shape = [batch, *(int(v) for v in input_shape(self.session)[1:])]
        self.settings = {
            "runtime": "ONNX Runtime, its own graph optimisation and integer kernels",
            "transfers": "included",
        }
        self.feed = {inputs[0].name: random_input(self.shape)}
        self.outputs: list[Array] = []

    def call(self) -> None:
        """Serve one request."""
        self.outputs = self.session.run(None, self.feed)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Refuse: see ``why_whole``."""
        raise BenchError(f"Cannot time the parts of {self.path.name}", self.why_whole)

    @property
    def io_bytes(self) -> int:
        """Of the input and the outputs of the last call."""
        return sum(v.nbytes for v in (*self.feed.values(), *self.answer()))

    def again(self) -> OnnxWorkload:
        """Return a second request on the same session."""
        return OnnxWorkload(
            self.path, self.shape[0], provider=self.provider, index=self.index, session=self.session
        )

    def answer(self) -> list[Array]:
        """Return what the last call computed."""
        return [np.asarray(v) for v in self.outputs]


class EngineWorkload:
    """An engine on its GPU, with one request in flight.

    Host buffers are pinned; copies and inference run on one stream.

    Args:
        runner: the engine.
        batch: images in a request.
        graph: launch a captured CUDA graph; ``settings`` says whether that succeeded.
        context: a separate execution context.
        cuda: streams, events and graphs; torch's, or a stand-in.
    """

    def __init__(
        self,
        runner: EngineRunner,
        batch: int,
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
        self.device = str(runner.device)
        self.shape = [batch, *self._image_size()]
        self.is_dynamic = runner.input_shape[0] is None
        name, kind = runner.inputs[0].name, runner.inputs[0].dtype
        host = torch.from_numpy(random_input(self.shape)).to(getattr(torch, kind))
        self.host = host.pin_memory() if pinned else host
        self.bound = runner.bind({name: self.host.to(runner.device)}, context)
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
        self.settings = {
            "runtime": "TensorRT",
            "transfers": "included in e2e, not in GPU time",
            "wait": "stream synchronize",
            "graph": "used" if self.graph is not None else f"not used: {why_no_graph}",
        }

    def _image_size(self) -> list[int]:
        """Return the input's shape without the batch.

        Raises:
            BenchError: the size is open.
        """
        size = self.runner.input_shape[1:]
        if not all(isinstance(v, int) for v in size):
            raise BenchError(
                f"Cannot make input for the {self.runner.label}",
                f"expected an image input with a fixed size, found {self.runner.input_shape}",
            )
        return [v for v in size if v is not None]

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
        except Exception as exc:  # whatever CUDA raises: the launch works without
            return first_line(exc)
        return ""

    def _enqueue(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            self.bound.launch(self.stream.cuda_stream if self.stream is not None else 0)

    def call(self) -> None:
        """Copy in, infer, copy out, wait."""
        name = self.runner.inputs[0].name
        with self.cuda.stream(self.stream) if self.cuda is not None else contextlib.nullcontext():
            self.bound.buffers[name].copy_(self.host, non_blocking=True)
            self._enqueue()
            for n, buffer in self.outputs.items():
                buffer.copy_(self.bound.buffers[n], non_blocking=True)
        if self.stream is not None:
            self.stream.synchronize()

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Run ``count`` inferences without copies; an event pair around each, on its stream."""
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
        """Of the input and the outputs on the GPU."""
        return sum(int(b.numel() * b.element_size()) for b in self.bound.buffers.values())

    def profile(self, runs: int) -> dict[str, float]:
        """Return the time of each layer from TensorRT's profiler, ms.

        Times are summed over ``runs`` requests. The requests run in a separate execution context.
        """
        times: dict[str, float] = {}
        base = self.runner.trt.IProfiler

        class Collector(base):  # type: ignore[misc,valid-type]
            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] = times.get(layer_name, 0.0) + ms

        context = self.runner.new_context()
        given = {self.runner.inputs[0].name: self.host.to(self.runner.device)}
        bound = self.runner.bind(given, context)
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
            self.shape[0],
            graph=self.graph_wanted,
            context=self.runner.new_context(),
            cuda=self.cuda,
        )

    def answer(self) -> list[Array]:
        """Return what the last call computed."""
        return [v.float().numpy() for v in self.outputs.values()]
