"""A GPU that is not there: every torch path runs as on one, and says where it would wait or fail.

Tensors moved to ``cuda`` compute on the CPU but say that they are on ``cuda:0``. As on a real GPU,
an operator that is given tensors of both devices fails, and so does ``numpy()`` of one. Unlike
torch's FakeTensorMode the values are real: a result can be compared with that of the CPU. Each
reading of a value (``float(t)``, ``t.cpu()``), for which a GPU would have to be waited for, is
counted by the line of trtq that does it.

Differences in rounding, in kernels and in memory are those of a real GPU only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import trtq
from trtq.graph import feed

GPU = torch.device("cuda", 0)
ROOM = str(Path(trtq.__file__).parent)
FEED = str(Path(feed.__file__))  # arrays_of reads for whoever calls it
# they read an index or a scalar from the CPU, and copy from device to device
MAY_MEET = {"index", "index_put_", "index_put", "_index_put_impl_", "copy_", "_to_copy"}
WATCHES_CAPTURE = "_accelerator_graph_capture_health_check"
READS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal"}


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU.

    Attributes:
        inner: its values.
    """

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        """Return a tensor with the values of ``inner``."""
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach() if inner.requires_grad else inner
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Say where it is."""
        return f"OnGpu({self.inner!r})"

    @property
    def device(self) -> torch.device:
        """The GPU."""
        return GPU

    @property
    def is_cuda(self) -> bool:
        """True."""
        return True

    def numpy(self, **_: Any) -> Any:
        """Fail as a tensor of a GPU does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, dtype: Any = None) -> Any:
        """Fail as a tensor of a GPU does."""
        return self.numpy()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute on the CPU; the answer is on the GPU."""
        name = func.__name__.partition(".")[0]
        flat = [t for t in tree_flatten((args, kwargs or {}))[0] if isinstance(t, torch.Tensor)]
        strangers = [t for t in flat if not isinstance(t, OnGpu) and t.ndim]
        if strangers and name not in MAY_MEET:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} was given cuda:0 and "
                f"cpu, shape {list(strangers[0].shape)}"
            )
        if name in READS:
            _note_read(name)
        given = [_inner(a).double() if name == "histc" else a for a in args[:1]]  # integers, too
        made = func(*tree_map(_inner, (*given, *args[1:])), **tree_map(_inner, kwargs or {}))
        first = args[0] if args else None
        if name.endswith("_") and not name.startswith("_") and isinstance(first, torch.Tensor):
            return first  # in place
        return tree_map(_on_gpu, made)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGpu) else value


def _on_gpu(value: Any) -> Any:
    plain = isinstance(value, torch.Tensor) and not isinstance(value, OnGpu)
    return OnGpu(value) if plain else value


_READS: Counter[str] = Counter()


def _note_read(name: str) -> None:
    """Count a read by the nearest line of trtq that asks for it."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOM) and file != FEED:
            where = Path(file).relative_to(ROOM)
            _READS[f"{where}:{frame.f_code.co_name}"] += 1
            return
        frame = frame.f_back
    _READS[f"outside: {name}"] += 1


class _ToGpu(TorchFunctionMode):
    """Makes tensors on the pretended GPU where a call names it, and takes them off it again."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch with the CPU in place of the GPU."""
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("cpu", "to") and isinstance(args[0], torch.Tensor):
            return _moved(func, args, named)
        if name == "cuda":
            return _on_gpu(args[0])
        device = named.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **named)
        return tree_map(_on_gpu, func(*args, **{**named, "device": torch.device("cpu")}))


def _moved(func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
    """Return what ``t.to(...)`` or ``t.cpu()`` gives."""
    tensor, rest = args[0], args[1:]
    if func.__name__ == "cpu":
        goal, dtype, layout = torch.device("cpu"), None, None
    elif rest and isinstance(rest[0], torch.Tensor):
        goal, dtype, layout = rest[0].device, rest[0].dtype, None
    else:
        named = {k: v for k, v in named.items() if k != "copy"}
        goal, dtype, _, layout = torch._C._nn._parse_to(*rest[:3], **named)
    kept = {"dtype": dtype, "memory_format": layout}
    if goal is not None and goal.type != tensor.device.type:
        if goal.type == "cpu":
            _note_read("to")
        tensor = (_Taken if goal.type == "cpu" else _Given).apply(tensor)
    plain: Any = torch.Tensor.to
    return plain(tensor, **{k: v for k, v in kept.items() if v is not None})


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> Any:
        """Copy to the CPU."""
        return _inner(tensor).clone()

    @staticmethod
    def backward(_: Any, *grads: torch.Tensor) -> Any:
        """Copy to the GPU."""
        return _on_gpu(grads[0])


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> Any:
        """Copy to the GPU."""
        return OnGpu(tensor.detach().clone())

    @staticmethod
    def backward(_: Any, *grads: torch.Tensor) -> Any:
        """Copy to the CPU."""
        return _inner(grads[0])


def _without_gradients(mode: bool = True) -> Any:
    """Stand in for inference_mode, which has no views of tensors like these."""
    return torch.no_grad() if mode else torch.enable_grad()


@contextmanager
def pretend_gpu() -> Iterator[Counter[str]]:
    """Pretend that the machine has one GPU; yields reads by ``file:function`` of trtq."""
    _READS.clear()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)  # a parameter changes its type
    try:
        with (
            mock.patch.object(torch.cuda, "is_available", lambda: True),
            mock.patch.object(torch.cuda, "device_count", lambda: 1),
            mock.patch.object(torch.cuda, "get_arch_list", lambda: ["sm_80", "compute_90"]),
            mock.patch.object(torch.cuda, "get_device_capability", lambda _: (8, 6)),
            mock.patch.object(torch, "inference_mode", _without_gradients),
            mock.patch.object(torch.optim.Optimizer, WATCHES_CAPTURE, lambda _: None),
            _ToGpu(),
        ):
            yield _READS
    finally:
        future.set_overwrite_module_params_on_conversion(before)
