"""Time per layer, by module, beside the prediction of the cost model.

Use the shares: a profiler slows everything down.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from trtq.bench.engine_workload import EngineWorkload, count_of
from trtq.bench.record import LayerTime
from trtq.bench.workload import OnnxWorkload, Workload
from trtq.cost.onnx_file import list_onnx_ops, onnx_kernels
from trtq.cost.ops import floats_of
from trtq.cost.profile import layer_names
from trtq.engine.manifest import manifest_path, read_manifest
from trtq.engine.open_engine import is_engine
from trtq.errors import BenchError, TrtqError, reason
from trtq.export.onnx_file import load_onnx, read_onnx
from trtq.export.ort_provider import settings_of
from trtq.onnx_session import new_session
from trtq.onnx_walk import QDQ
from trtq.scratch import scratch

RUNS = 20
WITH_BODY = ("If", "Loop", "Scan")


def profile_layers(workload: Workload, path: Path, runs: int = RUNS) -> tuple[list[LayerTime], str]:
    """Return the layers, slowest first, and why they have no prediction.

    Args:
        workload: the model, loaded.
        path: of its file; an engine's manifest leads to the ONNX file that the prediction is made
            from.
        runs: requests that are profiled.

    Returns:
        the layers, ms per request, and why ``predicted_ms`` is None in all of them, "" where it is
        not.

    Raises:
        BenchError: the runtime gives no profile.
    """
    if isinstance(workload, EngineWorkload):
        times = {name: (ms / runs, "layer") for name, ms in workload.profile(runs).items()}
        module_of: Callable[[str, str], str] = _engine_module
    else:
        assert isinstance(workload, OnnxWorkload)
        times, module_of = profile_onnx(workload, runs), onnx_modules(load_onnx(path))
    if not times:
        raise BenchError(
            f"There is no layer profile of {path.name}", "the runtime reported no layers"
        )
    predicted, why = _predicted(path, count_of(workload.shapes))
    total = sum(ms for ms, _ in times.values())
    rows = []
    for name, (ms, kind) in times.items():
        parts = layer_names(name, predicted)
        guesses = [predicted[p] for p in parts if p in predicted]
        rows.append(
            LayerTime(
                name=name,
                module=module_of(name, kind),
                kind=kind,
                ms=ms,
                share=ms / total if total else 0.0,
                predicted_ms=sum(guesses) if guesses else None,
            )
        )
    return sorted(rows, key=lambda r: -r.ms), why


def _engine_module(name: str, kind: str) -> str:  # noqa: ARG001 - of the form of onnx_modules
    """Return the module of an engine's layer."""
    return next(iter(layer_names(name)), name)


def profile_onnx(workload: OnnxWorkload, runs: int) -> dict[str, tuple[float, str]]:
    """Return the time, ms per request, and the op of each node that ONNX Runtime ran.

    The times come from ONNX Runtime's profiler, in a separate session; the first five requests do
    not count.

    Args:
        workload: the model with its inputs.
        runs: requests that count.

    Returns:
        by the node's name after ONNX Runtime's own graph optimisation.

    Raises:
        ExportError: ONNX Runtime does not offer the provider of the workload.
        BenchError: it wrote no profile.
    """
    import onnxruntime as ort

    with scratch("profile") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        providers = settings_of(options, workload.provider, workload.index)
        session = new_session(str(workload.path), options, providers)
        for _ in range(5):
            session.run(None, workload.feed)
        for _ in range(runs):
            session.run(None, workload.feed)
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except (OSError, ValueError) as exc:
            raise BenchError(
                f"There is no layer profile of {workload.path.name}",
                f"the runtime wrote none ({reason(exc)})",
                "Set TMPDIR to a folder that has space",
            ) from exc
    return read_onnx_profile(events, runs, skip=5)


# Suffixes that ONNX Runtime appends to the name of a node that it makes from others.
MADE = re.compile(r"(\.out_nchwc|_nchwc|/duplicated|_bias_dq|/MatMulAddFusion|_token_\d+)+$")


def onnx_modules(model: onnx.ModelProto) -> Callable[[str, str], str]:
    """Return a function from the name and op of a node that ONNX Runtime ran to its module.

    A convolution fused with its activation carries the activation's name: the convolution before it
    counts. A Q/DQ pair belongs to the layer whose operand it quantizes. A node that the file does
    not have counts as a module of its own, without the part behind the last ``/``.

    Args:
        model: whose nodes are named ``module/op``, as trtq writes them.
    """
    nodes = {n.name: n for n in model.graph.node}
    producer = {o: n for n in model.graph.node for o in n.output}

    def module_of(name: str, kind: str) -> str:
        node = nodes.get(MADE.sub("", name))
        if node is None:
            return name.rpartition("/")[0] or name
        if "Conv" in kind:
            node = _fused_convolution(node, producer)
        module: str = node.name.rpartition("/")[0] or node.name
        layer = module.rpartition(".")[0] or module
        return layer if node.op_type in QDQ else module

    return module_of


def _fused_convolution(
    node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto]
) -> onnx.NodeProto:
    """Return the convolution before a node, up to a Q/DQ pair or an input."""
    while node.op_type not in ("Conv", *QDQ) and node.input and node.input[0] in producer:
        node = producer[node.input[0]]
    return node


def read_onnx_profile(
    events: Sequence[Mapping[str, Any]], runs: int, *, skip: int
) -> dict[str, tuple[float, str]]:
    """Return ms per request and op by node name, without the first ``skip`` requests.

    The median call counts: one that was interrupted takes a hundred times as long. A node in the
    body of a loop has several calls in a request, and all of them count.

    Args:
        events: of the JSON file that ONNX Runtime's profiler writes.
        runs: requests that count.
        skip: requests before them.
    """
    calls: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for node, kind, ms in _kernel_times(events):
        calls.setdefault(node, []).append(ms)
        kinds[node] = kind
    times = {}
    for node, durations in calls.items():
        counted = durations[len(durations) * skip // (runs + skip) :]
        times[node] = (statistics.median(counted) * len(counted) / runs, kinds[node])
    return times


def _kernel_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Return name, op and ms of each call of a node, in the order of the events.

    The time of a Loop, If or Scan does not include the calls in its body.
    """
    kernels = [
        (str(e.get("name", "")).removesuffix("_kernel_time"), e)
        for e in events
        if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")
    ]
    kinds = [str(e.get("args", {}).get("op_name", "")) for _, e in kernels]
    begins = [float(e.get("ts", 0.0)) for _, e in kernels]
    own = [float(e["dur"]) for _, e in kernels]
    ends = [b + d for b, d in zip(begins, own, strict=True)]
    spans: list[int] = []  # the bodies around the present call, the innermost last
    for i in sorted(range(len(kernels)), key=lambda k: (begins[k], -ends[k])):
        while spans and begins[i] >= ends[spans[-1]]:
            spans.pop()
        if spans:
            own[spans[-1]] -= ends[i] - begins[i]
        if kinds[i] in WITH_BODY:
            spans.append(i)
    return [
        (node, kind, max(us, 0.0) / 1e3)
        for (node, _), kind, us in zip(kernels, kinds, own, strict=True)
    ]


def _predicted(path: Path, batch: int) -> tuple[dict[str, float], str]:
    """Return the roofline's times, ms, by layer name for the device an engine was built for.

    Args:
        path: of the engine or ONNX file.
        batch: samples in a request.

    Returns:
        the times and "", or no times and why.
    """
    if not is_engine(path):
        return {}, "no prediction: the cost model has no CPU"
    if not manifest_path(path).is_file():
        return {}, "no prediction: the engine has no manifest"
    from trtq.cost.devices import find_device
    from trtq.cost.roofline import predict_all
    from trtq.quant.formats import BitConfig

    manifest = read_manifest(path)
    source = manifest.source
    try:
        model, _, digest = read_onnx(source)
        if digest != manifest.onnx_sha256:
            return (
                {},
                f"no prediction: {source}, which the engine was built from, is another file by now",
            )
        device = find_device(manifest.target.name.partition("@")[0])
        ops = list_onnx_ops(model, str(source))
    except TrtqError as exc:
        return {}, f"no prediction: {exc.message}"

    def widths(op: Any) -> BitConfig:
        x = op.input_bits or (16 if manifest.precision == "fp16" else 32)
        return BitConfig(op.weight_bits or x, x, floats_of(op))

    times = predict_all(onnx_kernels(model, ops), device, widths, batch=batch)
    return {t.name: t.ms for t in times}, ""


def what_ate(
    first: Sequence[LayerTime], second: Sequence[LayerTime], most: int = 5
) -> list[LayerTime]:
    """Return the layers of ``second`` whose module takes more time than in ``first``.

    Args:
        first: layers of the baseline.
        second: layers of the other file; layers of one module are summed.
        most: how many are returned.

    Returns:
        the largest loss first: ``ms`` is the loss, ``share`` the loss over the time of all layers
        of ``second``.
    """
    before: dict[str, float] = {}
    after: dict[str, LayerTime] = {}
    for row in first:
        before[row.module] = before.get(row.module, 0.0) + row.ms
    summed: dict[str, float] = {}
    for row in second:
        summed[row.module] = summed.get(row.module, 0.0) + row.ms
        after.setdefault(row.module, row)
    total = sum(summed.values()) or 1.0
    lost = [
        LayerTime(
            name=after[m].name,
            module=m,
            kind=after[m].kind,
            ms=ms - before.get(m, 0.0),
            share=(ms - before.get(m, 0.0)) / total,
        )
        for m, ms in summed.items()
        if ms > before.get(m, 0.0)
    ]
    return sorted(lost, key=lambda r: -r.ms)[:most]
