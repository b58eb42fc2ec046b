"""Where a captured graph computes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import fx, nn

from trtq.errors import CalibrationError, UsageError, first_line, suggest
from trtq.graph.feed import Feed, as_feed
from trtq.workers import Workers

T = TypeVar("T")

CPU = torch.device("cpu")


def to_device_(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Move a graph's constants, and let its ops make new tensors there; return it.

    Args:
        graph: changed in place.
        device: where it computes from now on.
    """
    graph.to(device)
    for node in graph.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
    return graph


def on_device(graph: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a graph that computes on ``device``: itself, or a copy there."""
    if device_of(graph) == device:
        return graph
    return to_device_(copy.deepcopy(graph), device)


def moved(
    batches: Iterable[torch.Tensor | Sequence[torch.Tensor]], device: torch.device
) -> Iterator[Feed]:
    """Yield batches on ``device``, each while the one before it is at work.

    To a GPU they go through pinned memory without waiting for it.

    Args:
        batches: a tensor, or one an input.
        device: where they go.
    """
    waiting: Feed | None = None
    for batch in batches:
        feed = tuple(_sent(t, device) for t in as_feed(batch))
        if waiting is not None:
            yield waiting
        waiting = feed
    if waiting is not None:
        yield waiting


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device == CPU and _in_use(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def choose_device(device_name: str, workers: Workers | None = None) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Args:
        device_name: what the user wrote; ``auto`` takes a GPU where there is one.
        workers: of several processes on a machine each takes the GPU of its number.

    A GPU then multiplies float32 as float32: TF32, which has 10 bits of mantissa, is switched off.

    Raises:
        UsageError: there is no such device, the text is another, or several processes would share
            one.
    """
    workers = workers or Workers()
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device_name) is None:
        raise UsageError(
            f"Unknown device {device_name!r}",
            "expected auto, cpu, cuda or cuda:N",
            suggest(device_name, ("auto", "cpu", "cuda")),
        )
    if ":" in device_name and workers.world > 1:
        why = f"{workers.world} processes would share one GPU"
        raise UsageError(
            f"Cannot use {device_name} with torchrun", why, "Give --device cuda: each takes its own"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device_name == "cpu" or (device_name == "auto" and not count):
        return torch.device("cpu")
    number = int(device_name.partition(":")[2] or workers.local)
    if number >= count:
        cause = "" if count else _why_none()
        raise UsageError(
            f"Cannot use {device_name}",
            f"torch sees {count} GPUs{cause and f': {cause}'}",
            "Give --device cpu, or see trtq doctor",
        )
    _require_built_for(number, device_name)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", number)


def _why_none() -> str:
    """Return what torch says of a machine on which it finds no GPU."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    start: Callable[[], None] = torch.cuda.init
    try:
        start()
    except (RuntimeError, AssertionError) as exc:
        return first_line(exc)
    return ""


def _require_built_for(number: int, device_name: str) -> None:
    """Refuse a GPU that this torch has no kernels for, before they fail one by one.

    Raises:
        UsageError: names the capability of the GPU, and those of torch.
    """
    built = torch.cuda.get_arch_list()
    major, minor = torch.cuda.get_device_capability(number)
    numbers = [(kind, int(n[:-1]), int(n[-1])) for kind, n in map(_capability, built)]
    runs = any(
        (m == major and n <= minor) if kind == "sm" else (m, n) <= (major, minor)
        for kind, m, n in numbers
    )
    if built and not runs:
        raise UsageError(
            f"Cannot use {device_name}",
            f"it has compute capability {major}.{minor}, and torch {torch.__version__} is built "
            f"for {', '.join(built)}",
            "Install a build of torch for this GPU, or give --device cpu",
        )


def _capability(name: str) -> tuple[str, str]:
    """Return the kind and the digits of ``sm_90a`` or ``compute_120``."""
    kind, _, number = name.partition("_")
    return kind, number.rstrip("abcdef")


def described(device: torch.device) -> str:
    """Return the note about a run on a GPU, "" for the CPU."""
    if device.type != "cuda":
        return ""
    name = torch.cuda.get_device_name(device) if _in_use(device) else "a GPU"
    return f"torch computes on {device} ({name}) in float32, TF32 off"


def with_smaller_batches(
    work: Callable[[int], T], batch: int, note: Callable[[str], None], what: str
) -> T:
    """Return what ``work(batch)`` gives; half the batch again where a GPU's memory is too small.

    Args:
        work: gives the same for any batch, and can be called again.
        batch: samples at once.
        note: receives a line for each time.
        what: is done, for the line and the error.

    Raises:
        CalibrationError: one sample does not fit either.
    """
    while True:
        try:
            return work(batch)
        except torch.OutOfMemoryError as exc:
            if batch == 1:
                raise CalibrationError(
                    f"{what} does not fit into the memory of the GPU",
                    first_line(exc),
                    "Free its memory, or give --device cpu",
                ) from exc
        torch.cuda.empty_cache()
        note(f"{what}: the GPU's memory is too small for {batch} samples, {batch // 2} at once now")
        batch //= 2


def device_of(graph: nn.Module) -> torch.device:
    """Return the device that a graph computes on: that of its first tensor, else the CPU."""
    tensors = (*graph.parameters(), *graph.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def rng_devices(device: torch.device) -> list[int]:
    """Return the GPUs whose random numbers a fork on ``device`` must keep, for ``fork_rng``."""
    return [device.index] if _in_use(device) else []


def _in_use(device: torch.device) -> bool:
    """Whether torch has started this GPU."""
    started: Callable[[], bool] = torch.cuda.is_initialized
    return device.type == "cuda" and started()
