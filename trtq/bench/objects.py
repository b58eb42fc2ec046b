"""``trtq.bench`` on objects: engines and models in memory, files, or several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import onnx

from trtq.bench import harness
from trtq.bench.record import BenchRecord
from trtq.engine.objects import Buildable, Engine, Exports, as_file
from trtq.export.onnx_file import save_onnx
from trtq.files import FP32
from trtq.progress import Progress
from trtq.scratch import scratch
from trtq.specs import BenchSpec, require_alone


@runtime_checkable
class HasBaseline(Exports, Protocol):
    """A quantized model that knows its float model."""

    @property
    def fp32(self) -> onnx.ModelProto:
        """The float model as ONNX."""


Measurable = Engine | Buildable


@overload
def bench(model: BenchSpec, progress: Progress | None = None, /) -> BenchRecord: ...
@overload
def bench(
    model: Measurable | Sequence[Measurable],
    progress: Progress | None = None,
    /,
    **options: Any,
) -> BenchRecord: ...


def bench(
    model: BenchSpec | Measurable | Sequence[Measurable],
    progress: Progress | None = None,
    /,
    **options: Any,
) -> BenchRecord:
    """Measure latency, throughput, load time, memory and energy.

    A request that fails ends its row, Ctrl-C ends everything: what was measured until then is kept,
    written and marked as not valid.

    Args:
        model: an engine, a quantized or an exported model, an ``onnx.ModelProto``, the path of an
            ONNX file or of an engine, or a list of them. A :class:`BenchSpec` says everything
            itself.
        progress: receives progress.
        options: fields of :class:`BenchSpec`: ``device``, ``batch``, ``shapes``, ``mode`` ...

    Raises:
        UsageError: unknown device, nothing to measure, or sizes that a file does not take.
        BenchError: a file cannot be timed.
        EngineError, ExportError: a file cannot be loaded.
    """
    if isinstance(model, BenchSpec):
        require_alone(model, options)
        return harness.bench(model, progress)
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    with scratch("bench") as folder:
        files = [str(_file(m, folder / str(i))) for i, m in enumerate(models)]
        spec = BenchSpec.make({**_plain(options), "file": files}, where="trtq.bench")
        return harness.bench(spec, progress)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a spec takes them: one batch or one shape as a list of one."""
    listed = {k: [v] for k, v in options.items() if k in ("batch", "shapes") and _is_one(v)}
    return {**options, **listed}


def _is_one(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and "=" in value)


def _file(model: Any, folder: Path) -> Path:
    """Return the file of a model; a quantized one has its float model beside it, to compare.

    Args:
        model: a path, which is returned as it is, or an object, which is written.
        folder: to write into; it is made.
    """
    if isinstance(model, (str, Path)):
        return Path(model)
    folder.mkdir()
    if isinstance(model, Engine):
        return model.save(folder / "e.engine")
    if isinstance(model, HasBaseline):
        save_onnx(model.fp32, folder / FP32)
    return as_file(model, folder)
