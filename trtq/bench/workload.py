"""The timed workload: one request, from inputs in host memory to answers in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trtq.bench.engine_workload import EngineWorkload, shapes_of
from trtq.bench.record import RowSettings
from trtq.engine.manifest import manifest_path, read_manifest
from trtq.engine.open_engine import is_engine, open_engine
from trtq.engine.random_inputs import random_feed
from trtq.engine.shapes import Axis, Input, inputs_of
from trtq.engine.sizes import Request, choose_sizes
from trtq.errors import BenchError, UsageError
from trtq.export.feeds import AnyArray, Inputs
from trtq.export.onnx_file import parse_onnx
from trtq.export.ort import input_slots, open_session
from trtq.export.tables import table_sizes


class Workload(Protocol):
    """One model, loaded, with its inputs.

    Attributes:
        label: what runs it and on what: ``CPU (ONNX Runtime)``. A CPU's figures are never called
            anything else.
        device: ``cpu`` or ``cuda:N``.
        shape: of the first input, such as [N, C, H, W].
        shapes: of every input by name.
        settings: what changes the meaning of its times: transfers, wait, graph.
        apart: whether GPU time and enqueue time can be separated from the host's: then ``split``
            works.
        why_whole: why they cannot be separated.
        notes: what a user should know of what runs it.
        io_bytes: of the inputs and the outputs, on the device.
    """

    label: str
    device: str
    shape: list[int]
    shapes: dict[str, list[int]]
    settings: RowSettings
    apart: bool
    why_whole: str
    notes: Sequence[str]

    @property
    def io_bytes(self) -> int:
        """Descriptions of the inputs and the outputs."""

    def call(self) -> None:
        """Serve one request and wait for the answer."""

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Run ``count`` inferences one after another; return GPU times and launch times.

        The launch time is the host's time in the launch. Both are nanoseconds, int64 [count].
        """

    def again(self) -> Workload:
        """Return a second request that can run at the same time as this one."""

    def answer(self) -> list[AnyArray]:
        """Return what the last call computed."""


def device_for(device: str, *paths: Path) -> str:
    """Return the hardware that files run on, ``cpu`` or ``cuda:N``; an engine's is a GPU.

    Args:
        device: ``cpu``, ``cuda:N`` or ``rtx:N``.
        paths: one engine among them makes it a GPU.

    Raises:
        UsageError: no such device.
    """
    provider, index = parse_device(device)
    on_cpu = provider == "CPU" and not any(is_engine(p) for p in paths)
    return "cpu" if on_cpu else f"cuda:{index}"


def device_of_load(device: str, *paths: Path) -> str:
    """Return what files are loaded with: the device that was named, or the GPU that one needs.

    Raises:
        UsageError: no such device.
    """
    return device_for(device, *paths) if device == "cpu" else device


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a file is loaded and called; see :func:`open_workload`.

    Attributes:
        device: ``cpu``, ``cuda:N``, or ``rtx:N`` (TensorRT for RTX inside ONNX Runtime); engines
            run on ``cuda:N`` with every value.
        batch: samples in a request: the first axis of inputs that ``shapes`` does not name.
        graph: launch an engine as a CUDA graph, where that is possible.
        trust: run an engine without a manifest.
        shapes: of inputs with open axes, such as ``images=1x3x640x640``.
    """

    device: str = "cpu"
    batch: int = 1
    graph: bool = True
    trust: bool = False
    shapes: Sequence[str] = ()

    def open(self, path: Path, *, taking_turns: bool = False) -> Workload:
        """Load a file; see :func:`open_workload`."""
        return open_workload(path, self, taking_turns=taking_turns)

    def request(self, path: Path) -> Request:
        """Return what is asked of the sizes of a file."""
        batch = (self.batch,) * 3
        return Request(texts=self.shapes, batch=batch, file=path.name, single=True)


DEFAULTS = LoadOptions()


def open_workload(
    path: Path, options: LoadOptions = DEFAULTS, *, taking_turns: bool = False
) -> Workload:
    """Load an ONNX file into ONNX Runtime or an engine into TensorRT, with random inputs.

    Args:
        path: FILE.onnx or FILE.engine.
        options: device, sizes, and how an engine is launched.
        taking_turns: others run between its requests (:func:`trtq.export.ort.open_session`).

    Raises:
        UsageError: no such device, or sizes that the file does not take or does not give.
        BenchError: there is no such file.
        EngineError, ExportError: it cannot be loaded.
    """
    parse_device(options.device)
    if not path.is_file():
        raise BenchError(f"Cannot read {path}", "there is no such file")
    if is_engine(path):
        return _open_engine(path, options)
    return OnnxWorkload(path, options, taking_turns=taking_turns)


def _open_engine(path: Path, options: LoadOptions) -> EngineWorkload:
    runner = open_engine(path, trust=options.trust, device=device_for(options.device, path))
    if manifest_path(path).is_file():
        manifest = read_manifest(path)
        sizes = manifest.sizes(options.batch, options.shapes, name=path.name)
        tables = manifest.tables
    else:
        inputs = [Input(s.name, tuple(Axis(d, "") for d in s.shape)) for s in runner.inputs]
        sizes, tables = choose_sizes(inputs, options.request(path)), {}
    feed = random_feed(runner.inputs, sizes.usual, tables)
    return EngineWorkload(runner, feed, graph=options.graph)


GPU_PROVIDERS = {"cuda": "CUDA", "rtx": "NvTensorRTRTX"}


def parse_device(text: str) -> tuple[str, int]:
    """Return ONNX Runtime's provider and the index of a device.

    Raises:
        UsageError: it is none of ``cpu``, ``cuda:N`` and ``rtx:N``.

    >>> parse_device("cpu"), parse_device("cuda"), parse_device("rtx:1")
    (('CPU', 0), ('CUDA', 0), ('NvTensorRTRTX', 1))
    """
    name, _, index = text.partition(":")
    if text == "cpu":
        return "CPU", 0
    if name in GPU_PROVIDERS and (index or "0").isdecimal():
        return GPU_PROVIDERS[name], int(index or 0)
    if name == "ssh":
        raise UsageError(
            f"Cannot measure on {text}",
            "this verb measures here",
            f"On the board: trtq deploy {index or 'NAME'} FILE.onnx",
        )
    raise UsageError(f"Unknown device {text!r}", hint="Use cpu, cuda:N or rtx:N")


class OnnxWorkload:
    """An ONNX file in ONNX Runtime, with its own graph optimisation and integer kernels.

    Args:
        path: of the file.
        options: device and sizes.
        other: a request on the same file: its session and inputs are shared.
        taking_turns: others run between its requests.

    Raises:
        UsageError: sizes that the file does not take, or that nothing gives.
    """

    apart = False
    why_whole = "ONNX Runtime launches on a stream of its own: only the whole request can be timed"

    def __init__(
        self,
        path: Path,
        options: LoadOptions = DEFAULTS,
        *,
        other: OnnxWorkload | None = None,
        taking_turns: bool = False,
    ) -> None:
        self.provider, self.index = parse_device(options.device)
        self.session: Any = (
            other.session
            if other is not None
            else open_session(
                path,
                as_written=False,
                provider=self.provider,
                device_id=self.index,
                taking_turns=taking_turns,
            )
        )
        self.path, self.options = path, options
        self.notes: Sequence[str] = ()
        self.feed: Inputs = other.feed if other is not None else self._draw()
        self.device = device_for(options.device)
        runtime = "TensorRT for RTX in ONNX Runtime" if self.makes_engine else "ONNX Runtime"
        self.label = f"{'CPU' if self.provider == 'CPU' else self.device} ({runtime})"
        if self.provider == "CPU":
            self.why_whole = "the request runs on the CPU: there is no GPU time in it"
        self.shapes = shapes_of(self.feed)
        self.shape = next(iter(self.shapes.values()))
        self.settings = RowSettings(
            runtime=f"{runtime}, an engine of its own"
            if self.makes_engine
            else f"{runtime}, its own graph optimisation and integer kernels",
            transfers="included",
        )
        self.outputs: list[AnyArray] = []

    @property
    def makes_engine(self) -> bool:
        """Whether the provider builds an engine of its own from the file."""
        return self.provider == GPU_PROVIDERS["rtx"]

    def _draw(self) -> dict[str, AnyArray]:
        """Return random inputs of the sizes that were asked for."""
        model = parse_onnx(self.path)
        sizes = choose_sizes(inputs_of(model), self.options.request(self.path))
        return random_feed(input_slots(self.session), sizes.usual, table_sizes(model))

    def call(self) -> None:
        """Serve one request."""
        self.outputs = self.session.run(None, self.feed)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """Refuse: see ``why_whole``."""
        raise BenchError(f"Cannot time the parts of {self.path.name}", self.why_whole)

    @property
    def io_bytes(self) -> int:
        """Descriptions of the inputs and the outputs of the last call."""
        return sum(v.nbytes for v in (*self.feed.values(), *self.answer()))

    def again(self) -> OnnxWorkload:
        """Return a second request on the same session."""
        return OnnxWorkload(self.path, self.options, other=self)

    def answer(self) -> list[AnyArray]:
        """Return what the last call computed."""
        return [np.asarray(v) for v in self.outputs]
