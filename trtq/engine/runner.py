"""Running an ONNX file or an engine: one method for every runtime.

Engines run through TensorRT's Python API: by tensor names from 8.5 on, by bindings before. Buffers
are torch tensors on the GPU.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from trtq.errors import EngineError, UsageError
from trtq.export.feeds import AnyArray, Given, Inputs, InputSlot, feed_for, run_in_parts
from trtq.export.ort import input_slots, open_session, run_batch
from trtq.platform.releases import has_api, newer_note, release_of_module

Provider = Literal["CPU", "CUDA", "TensorRT", "NvTensorRTRTX"]


class Runner(Protocol):
    """Runs batches.

    Attributes:
        label: what runs, for records.
        notes: what a user should know of what runs.
    """

    label: str
    notes: Sequence[str]

    @property
    def inputs(self) -> Sequence[InputSlot]:
        """Names, dtypes and shapes of the inputs, in the order of the model."""

    @property
    def input_shape(self) -> list[int | None]:
        """Shape of the first input, such as [N, C, H, W]; an open axis is None."""

    def run(self, given: Given) -> dict[str, AnyArray]:
        """Return the outputs by name.

        Args:
            given: arrays by the names of the inputs, samples first; one array alone for a model of
                one input.
        """


class OnnxRunner:
    """An ONNX file in ONNX Runtime.

    Args:
        model: a file, or a model in memory.
        provider: of ONNX Runtime; TensorRT and NvTensorRTRTX build an engine of their own from the
            file.
        as_written: compute Q/DQ pairs as the file says.
    """

    def __init__(self, model: Any, *, provider: Provider = "CPU", as_written: bool = True) -> None:
        self.session = open_session(model, as_written=as_written, provider=provider)
        own = (
            "; an engine of its own"
            if provider in ("TensorRT", "NvTensorRTRTX")
            else ", any Q/DQ pair as written"
            if as_written
            else ""
        )
        self.label = f"ONNX Runtime ({provider}){own}"
        self.notes: Sequence[str] = ()
        self.names = [o.name for o in self.session.get_outputs()]
        self.inputs: Sequence[InputSlot] = input_slots(self.session)

    @property
    def input_shape(self) -> list[int | None]:
        """Shape of the first input."""
        return list(self.inputs[0].shape)

    def run(self, given: Given) -> dict[str, AnyArray]:
        """Return the outputs by name, each in its own dtype.

        Args:
            given: arrays by the names of the inputs, samples first; one array alone for a model of
                one input.

        Raises:
            UsageError: an input is missing, unknown or of a wrong dtype.
            ExportError: ONNX Runtime fails.
        """
        return dict(zip(self.names, run_batch(self.session, given), strict=True))


@dataclass
class _Calls:
    """Differences between the tensor-name API and the bindings API.

    Attributes:
        names: of all inputs and outputs of an engine.
        is_input: whether a name is an input's.
        dtype: TensorRT's type of a tensor.
        shape: of a tensor in a context; -1 where it is open or not known yet.
        set_shape: of an input, in a context; False where it is outside the profile.
        place: sets the addresses of all tensors, where that is done before a launch.
        execute: enqueues on a stream (its handle); whether TensorRT took it.
    """

    names: Callable[[Any], list[str]]
    is_input: Callable[[Any, str], bool]
    dtype: Callable[[Any, str], Any]
    shape: Callable[[Any, Any, str], tuple[int, ...]]
    set_shape: Callable[[Any, Any, str, tuple[int, ...]], Any]
    place: Callable[[Any, Mapping[str, int]], Any]
    execute: Callable[[Any, Mapping[str, int], int], bool]


def _by_name(trt: Any) -> _Calls:
    def place(context: Any, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            context.set_tensor_address(name, address)

    return _Calls(
        names=lambda engine: [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)],
        is_input=lambda engine, name: bool(engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT),
        dtype=lambda engine, name: engine.get_tensor_dtype(name),
        shape=lambda _, context, name: tuple(context.get_tensor_shape(name)),
        set_shape=lambda _, context, name, shape: context.set_input_shape(name, shape),
        place=place,
        execute=lambda context, _, stream: bool(context.execute_async_v3(stream)),
    )


def _by_bindings() -> _Calls:
    def index(engine: Any, name: str) -> int:
        return int(engine.get_binding_index(name))

    return _Calls(
        names=lambda engine: [engine.get_binding_name(i) for i in range(engine.num_bindings)],
        is_input=lambda engine, name: bool(engine.binding_is_input(index(engine, name))),
        dtype=lambda engine, name: engine.get_binding_dtype(index(engine, name)),
        shape=lambda engine, context, name: tuple(context.get_binding_shape(index(engine, name))),
        set_shape=lambda engine, context, name, shape: context.set_binding_shape(
            index(engine, name), shape
        ),
        place=lambda *_: None,
        execute=lambda context, addresses, stream: bool(
            context.execute_async_v2(list(addresses.values()), stream)
        ),
    )


@dataclass
class _Loaded:
    """Everything that must live as long as the context: the bindings of TensorRT do not keep it."""

    logger: Any
    runtime: Any
    engine: Any
    context: Any


class EngineRunner:
    """A TensorRT engine on the GPU of this machine.

    Args:
        plan: the engine's bytes, from a file that was checked (:func:`open_engine`).
        module: ``tensorrt`` or ``tensorrt_rtx``.
        device: where the buffers are, for torch.
        label: what this is, for records.
        batch: smallest and largest batch of its profile; larger ones run in parts, smaller ones are
            filled up.

    Raises:
        EngineError: TensorRT cannot load it.
    """

    def __init__(
        self,
        plan: bytes,
        module: str,
        *,
        device: str = "cuda",
        label: str = "engine",
        batch: tuple[int, int] | None = None,
    ) -> None:
        import torch

        self.torch, self.device, self.label, self.batch = torch, torch.device(device), label, batch
        self.trt = trt = importlib.import_module(module)
        self.version = release_of_module(trt)
        newer = newer_note(self.version)
        self.notes: Sequence[str] = (newer,) if newer else ()
        self.calls = _by_name(trt) if has_api("num_io_tensors", self.version) else _by_bindings()
        if self.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(self.device)  # TensorRT, streams and events take the current one
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        if has_api("engine_host_code_allowed", self.version):
            runtime.engine_host_code_allowed = (
                True  # version-compatible plans hold code; the caller trusts the plan
            )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} cannot load the {label}",
                "see what it wrote",
                "Build it again here: trtq build",
            )
        self.deserialized_ns = time.perf_counter_ns()  # what comes after is the context
        self.loaded = _Loaded(logger, runtime, engine, engine.create_execution_context())
        self.names = self.calls.names(engine)
        self.types = {n: self._type(n) for n in self.names}
        self.inputs: Sequence[InputSlot] = [
            self._slot(n) for n in self.names if self.calls.is_input(engine, n)
        ]

    def _type(self, name: str) -> np.dtype[Any]:
        """Return the type of an input or output in numpy.

        Raises:
            EngineError: numpy has none, as for BF16, FP8 and INT4.
        """
        kind = self.calls.dtype(self.loaded.engine, name)
        try:
            dtype: np.dtype[Any] = np.dtype(self.trt.nptype(kind))
        except TypeError as exc:
            raise EngineError(
                f"Cannot run the {self.label} on arrays",
                f"its tensor {name} is {kind}, a type that numpy does not have",
                "Cast inputs and outputs to float32 in the ONNX file, and build it again",
            ) from exc
        return dtype

    def _slot(self, name: str) -> InputSlot:
        """Return an input as the engine has it, before any shape was given."""
        shape = self.calls.shape(self.loaded.engine, self.loaded.context, name)
        sizes = tuple(d if d >= 0 else None for d in shape)
        return InputSlot(name, self.types[name].name, sizes)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs."""
        return [s.name for s in self.inputs]

    @property
    def input_shape(self) -> list[int | None]:
        """Shape of the first input; an open axis is None."""
        return list(self.inputs[0].shape)

    def run(self, given: Given) -> dict[str, AnyArray]:
        """Return the outputs by name; floats are float32.

        Args:
            given: arrays by the names of the inputs, samples first; one array alone for an engine
                of one input.

        Raises:
            UsageError: an input is missing, unknown or of a wrong dtype.
            EngineError: a shape is outside the engine's profile, or it fails.
        """
        feed = feed_for(self.inputs, given, self.label)
        if self.batch is None:
            return self._run(feed)
        low, high = self.batch
        fixed = (high,) if low == high else (None,)
        split = [s.name for s in self.inputs if s.shape[:1] in ((None,), fixed)]
        return run_in_parts(self._run, feed, split, low, high)

    def _run(self, feed: Inputs) -> dict[str, AnyArray]:
        torch = self.torch
        on_device = {
            n: torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for n, a in feed.items()
        }
        bound = self.bind(on_device)
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        bound.launch(stream.cuda_stream if stream else 0)
        if stream is not None:
            stream.synchronize()
        return {n: to_array(b) for n, b in bound.buffers.items() if n not in feed}

    def bind(self, feed: Mapping[str, Any], context: Any = None) -> Bound:
        """Return the engine with buffers for one request, ready to launch as often as wanted.

        Args:
            feed: the inputs by name on this device, torch tensors of the engine's types; the shapes
                are taken from them.
            context: an execution context of its own, for several launches at once.

        Raises:
            EngineError: a shape is outside the engine's profile.
        """
        engine, context = self.loaded.engine, context or self.loaded.context
        for name, tensor in feed.items():
            if self.calls.set_shape(engine, context, name, tuple(tensor.shape)) is False:
                raise EngineError(
                    f"The {self.label} does not take {name} {list(tensor.shape)}",
                    "it is outside the profile it was built with",
                )
        buffers = {n: feed[n] if n in feed else self._buffer(context, n) for n in self.names}
        return Bound(self, context, buffers)

    def _buffer(self, context: Any, name: str) -> Any:
        """Return memory for an output.

        Raises:
            EngineError: its size depends on values, which is known only after it ran.
        """
        shape = self.calls.shape(self.loaded.engine, context, name)
        if any(d < 0 for d in shape):
            raise EngineError(
                f"Cannot make a buffer for the output {name} of the {self.label}",
                f"its shape {list(shape)} depends on the values that the engine computes",
                "End the model before that node",
            )
        kind = getattr(self.torch, self.types[name].name)
        return self.torch.empty(shape, dtype=kind, device=self.device)

    def new_context(self) -> Any:
        """Return one more execution context; it must not outlive this runner."""
        return self.loaded.engine.create_execution_context()


class Bound:
    """An engine with its buffers: shapes and addresses are set once."""

    def __init__(self, runner: EngineRunner, context: Any, buffers: dict[str, Any]) -> None:
        self.runner, self.context, self.buffers = runner, context, buffers
        self.addresses = {n: b.data_ptr() for n, b in buffers.items()}
        runner.calls.place(context, self.addresses)

    def launch(self, stream: int) -> None:
        """Enqueue one inference on a CUDA stream (its handle).

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self.runner.calls.execute(self.context, self.addresses, stream):
            shapes = {n: list(self.buffers[n].shape) for n in self.runner.input_names}
            raise EngineError(
                f"The {self.runner.label} failed on {shapes}", "TensorRT gives no reason"
            )


def to_array(buffer: Any) -> AnyArray:
    """Return a torch tensor in host memory; floats are float32, integers are kept."""
    values = buffer.float() if buffer.is_floating_point() else buffer
    return np.asarray(values.cpu().numpy())


def require_runtime(where: str, module: str, device: str) -> Any:
    """Return TensorRT's module, if an engine can run here.

    Args:
        where: what fails, for the error.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        device: for torch.

    Raises:
        UsageError: there is no GPU, or no TensorRT.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            where,
            "it needs its NVIDIA GPU, and torch finds none on this machine",
            "Run this on the device it was built for",
        )
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise UsageError(
            where,
            f"the module {module} is not installed",
            f"pip install {module.replace('_', '-')}",
        ) from exc
