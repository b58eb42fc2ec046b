"""Running an ONNX file or an engine: one method, whatever runs it.

Engines run through TensorRT's Python API: by tensor names from 8.5 on, by bindings before. Buffers
are torch tensors on the GPU.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from trtq.data.metrics import Array
from trtq.errors import EngineError, UsageError
from trtq.export.ort import Inputs, input_shape, open_session, padded, run_batch
from trtq.platform.releases import has_api, release_of_module

Provider = Literal["CPU", "CUDA", "TensorRT", "NvTensorRTRTX"]


class Runner(Protocol):
    """Runs batches of samples."""

    label: str

    @property
    def input_shape(self) -> list[Any]:
        """Of the images, [N, C, H, W]; an open axis is a text or None."""

    def run(self, batch: Inputs) -> dict[str, Array]:
        """Return the outputs by name for one batch, samples first."""


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
        self.names = [o.name for o in self.session.get_outputs()]

    @property
    def input_shape(self) -> list[Any]:
        """Of the images."""
        return input_shape(self.session)

    def run(self, batch: Inputs) -> dict[str, Array]:
        """Return the outputs by name."""
        return dict(zip(self.names, run_batch(self.session, batch), strict=True))


@dataclass
class _Calls:
    """What differs between the tensor-name API and the bindings API."""

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
        device: where the buffers lie, for torch.
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
        self.calls = _by_name(trt) if has_api("num_io_tensors", self.version) else _by_bindings()
        if self.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(self.device)  # TensorRT, streams and events take the current one
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        if has_api("engine_host_code_allowed", self.version):
            runtime.engine_host_code_allowed = (
                True  # version-compatible plans hold code; whoever calls this trusts the plan
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
        self.inputs = [n for n in self.names if self.calls.is_input(engine, n)]
        if len(self.inputs) != 1:
            raise EngineError(
                f"Cannot run the {label}",
                f"it has {len(self.inputs)} inputs ({', '.join(self.inputs)}), expected one image",
            )
        self.types = {
            n: getattr(torch, np.dtype(trt.nptype(self.calls.dtype(engine, n))).name)
            for n in self.names
        }

    @property
    def input_shape(self) -> list[Any]:
        """Of the images, before a batch was given: -1 for an open axis."""
        return [
            d if d >= 0 else None
            for d in self.calls.shape(self.loaded.engine, self.loaded.context, self.inputs[0])
        ]

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            EngineError: the batch is outside the engine's profile, or it fails.
        """
        low, high = self.batch or (len(batch), len(batch))
        made = [self._run(padded(batch[i : i + high], low)) for i in range(0, len(batch), high)]
        return {n: np.concatenate([m[n] for m in made])[: len(batch)] for n in made[0]}

    def _run(self, batch: Array) -> dict[str, Array]:
        torch = self.torch
        given = torch.from_numpy(np.ascontiguousarray(batch)).to(
            self.device, self.types[self.inputs[0]]
        )
        bound = self.bind(given)
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        bound.launch(stream.cuda_stream if stream else 0)
        if stream is not None:
            stream.synchronize()
        return {
            n: b.float().cpu().numpy() for n, b in bound.buffers.items() if n not in self.inputs
        }

    def bind(self, given: Any, context: Any = None) -> Bound:
        """Return the engine with buffers for one batch, ready to launch as often as wanted.

        Args:
            given: the input on this device, a torch tensor of the engine's type; the shape is taken
                from it.
            context: an execution context of its own, for several launches at once.

        Raises:
            EngineError: the batch is outside the engine's profile.
        """
        engine, context, name = self.loaded.engine, context or self.loaded.context, self.inputs[0]
        if self.calls.set_shape(engine, context, name, tuple(given.shape)) is False:
            raise EngineError(
                f"The {self.label} does not take input {list(given.shape)}",
                "it is outside the profile it was built with",
            )
        buffers = {}
        for n in self.names:
            shape = self.calls.shape(engine, context, n)
            buffers[n] = (
                given
                if n == name
                else self.torch.empty(shape, dtype=self.types[n], device=self.device)
            )
        return Bound(self, context, buffers)

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
            shape = list(self.buffers[self.runner.inputs[0]].shape)
            raise EngineError(
                f"The {self.runner.label} failed on input {shape}", "TensorRT says so and no more"
            )


def require_runtime(where: str, module: str, device: str) -> Any:
    """Return TensorRT's module, if an engine can run here.

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
