"""Measurement, comparison, and the page about them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import Percentiles


class BenchSpec(Spec, frozen=True, kw_only=True):
    """Measurements of ONNX files and engines, and how long they take."""

    file: Annotated[tuple[str, ...], PathDoc(description=".onnx or .engine files.")]
    device: Annotated[
        str,
        Doc(
            description="cpu, cuda:N, rtx:N (TensorRT for RTX inside ONNX Runtime) or ssh:NAME (a "
            "board: the file is built there); engines run on a GPU with every value."
        ),
    ] = "cpu"
    mode: Annotated[
        Literal["latency", "throughput", "paced", "cold"],
        Doc(
            description="One request at a time; several in flight; at a fixed rate with idle time "
            "between; with emptied caches."
        ),
    ] = "latency"
    batch: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...],
        Doc(description="Images in a request; several are swept."),
    ] = (1,)
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="NAME=SHAPE of an input with open axes, such as images=1x3x640x640; "
            "default for engines: the usual shape of the build; repeatable."
        ),
    ] = ()
    duration: Annotated[
        Annotated[float, Meta(gt=0)],
        Doc(description="Shortest measured time after warm-up, seconds."),
    ] = 3.0
    min_samples: Annotated[
        Annotated[int, Meta(ge=10)], Doc(description="Fewest measured requests.")
    ] = 500
    max_duration: Annotated[
        Annotated[float, Meta(gt=0)],
        Doc(description="Maximum measurement time, seconds."),
    ] = 60.0
    percentiles: Percentiles = (50.0, 90.0, 95.0, 99.0)
    rate: Annotated[
        Annotated[float, Meta(gt=0)], Doc(description="Mode paced: requests a second.")
    ] = 30.0
    scenario: Annotated[
        Literal["closed", "single", "multi", "offline", "server"],
        Doc(
            description="Mode throughput: as many in flight as streams, or a pattern of MLPerf "
            "Inference (these are no MLPerf results)."
        ),
    ] = "closed"
    streams: Annotated[
        Annotated[int, Meta(ge=1)], Doc(description="Mode throughput: requests in flight.")
    ] = 2
    latency_bound: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Doc(description="Scenario server: the 99th percentile must remain below it, ms."),
    ] = None
    mlperf_like: Annotated[
        bool, Doc(description="600 s and the number of queries that MLPerf's rules ask for.")
    ] = False
    cuda_graph: Annotated[
        bool,
        Doc(
            description="Launch engines as CUDA graphs where that is possible; the record says "
            "what "
            "came of it."
        ),
    ] = True
    energy: Annotated[
        bool,
        Doc(description="Energy per image: 5 windows under load, idle power before and after."),
    ] = False
    energy_window: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Doc(
            description="Length of such a window, seconds; default: what the sensor needs, 10 "
            "or 20. A "
            "shorter one is marked."
        ),
    ] = None
    energy_repeats: Annotated[
        Annotated[int, Meta(ge=1)], Doc(description="Windows under load.")
    ] = 5
    load: Annotated[
        bool,
        Doc(description="Time up to the first answer in new processes, page cache warm and cold."),
    ] = False
    memory: Annotated[
        bool, Doc(description="Memory of a new process, and the engine's own account.")
    ] = False
    profile: Annotated[
        bool, Doc(description="Time per layer, by module, beside the predicted one.")
    ] = False
    trtexec: Annotated[
        bool, Doc(description="A second opinion on engines from trtexec with the same settings.")
    ] = False
    repeat: Annotated[
        Annotated[int, Meta(ge=1)],
        Doc(description="Repetitions; the model is reloaded for each."),
    ] = 1
    lock_clocks: Annotated[
        bool,
        Doc(description="Lock GPU clocks where permitted; restored on exit, even after a kill."),
    ] = False
    verdict: Annotated[
        bool,
        Doc(
            description="Measure INT8 files against their float baseline, taking turns, and say "
            "whether "
            "they win."
        ),
    ] = True
    baseline: Annotated[
        str | None,
        PathDoc(
            description="That baseline; default: the FP16 engine or the float ONNX file beside "
            "the file."
        ),
    ] = None
    trust: Annotated[
        bool,
        Doc(
            description="Run an engine that has no manifest; loading one can run code that is "
            "in it."
        ),
    ] = False
    out: Annotated[
        str,
        PathDoc(
            description="Folder for bench.json and the samples; default: only the history keeps "
            "the "
            "record."
        ),
    ] = ""


class CompareSpec(Spec, frozen=True, kw_only=True):
    """Files that take turns on one device, the first against each other one."""

    file: Annotated[
        tuple[str, ...],
        PathDoc(description="Two or more .onnx or .engine files, or two records of trtq bench."),
    ]
    device: Annotated[str, Doc(description="cpu, cuda:N or rtx:N, as in trtq bench.")] = "cpu"
    batch: Annotated[Annotated[int, Meta(ge=1)], Doc(description="Images in a request.")] = 1
    shapes: Annotated[
        tuple[str, ...],
        Doc(description="NAME=SHAPE of an input with open axes; repeatable."),
    ] = ()
    margin: Annotated[
        Annotated[float, Meta(ge=0, lt=1)],
        Doc(description="Differences below this fraction count as equal."),
    ] = 0.01
    block: Annotated[
        Annotated[float, Meta(gt=0)], Doc(description="Length of a turn, seconds.")
    ] = 0.05
    max_loads: Annotated[
        Annotated[int, Meta(ge=8)],
        Doc(description="Most times that each file is loaded and timed."),
    ] = 32
    profile: Annotated[
        bool, Doc(description="Name the layers that take more time than in the first file.")
    ] = True
    trust: Annotated[bool, Doc(description="Run engines that have no manifest.")] = False
    out: Annotated[str, PathDoc(description="Folder for compare.json.")] = ""


class GateSpec(Spec, frozen=True, kw_only=True):
    """Regression limits of a record against its baseline."""

    record: Annotated[
        str,
        PathDoc(description="bench.json of the candidate; without it accuracy alone is compared."),
    ] = ""
    baseline: Annotated[str, PathDoc(description="bench.json of the baseline.")] = ""
    max_slowdown: Annotated[
        str, Doc(description="Largest increase of the median of a request: 3% or 0.03.")
    ] = "3%"
    max_energy: Annotated[str | None, Doc(description="Growth of the energy of an image.")] = None
    max_memory: Annotated[str | None, Doc(description="Growth of the memory of the process.")] = (
        None
    )
    accuracy: Annotated[
        str | None,
        PathDoc(
            description="evaluate.json of the candidate, which trtq evaluate --out writes; needs "
            "--max-accuracy-drop or --max-drop."
        ),
    ] = None
    baseline_accuracy: Annotated[
        str | None,
        PathDoc(
            description="The same of the baseline; default: the reference in the candidate's "
            "record."
        ),
    ] = None
    max_accuracy_drop: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Doc(description="Points of the first score: mAP, mIoU or top-1."),
    ] = None
    max_drop: Annotated[
        dict[str, Annotated[float, Meta(ge=0)]],
        Doc(description="NAME=POINTS that one score may be worse by, such as mAP=0.5; repeatable."),
    ] = {}
    summary: Annotated[
        str, PathDoc(description="File to append the table to, such as $GITHUB_STEP_SUMMARY.")
    ] = ""


class ReportSpec(Spec, frozen=True, kw_only=True):
    """Write a page about one run, or about several side by side."""

    run: Annotated[
        tuple[str, ...],
        PathDoc(
            description="Folders that hold quantize.json and what followed; several are compared."
        ),
    ]
    out: Annotated[
        str,
        PathDoc(
            description="The HTML file; default: report.html in the folder, or runs/report.html of "
            "several."
        ),
    ] = ""
    title: Annotated[str, Doc(description="Heading of the page.")] = ""
