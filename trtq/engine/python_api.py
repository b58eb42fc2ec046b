"""TensorRT and TensorRT for RTX through their Python API.

One class serves both modules, always in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trtq.artifact import write_bytes
from trtq.engine.failures import explain
from trtq.engine.request import BuildRequest
from trtq.engine.settings import RTX, Built, Settings, Shapes, TensorRow
from trtq.engine.worker_process import ended_with, start
from trtq.errors import EngineError, UsageError, last_line
from trtq.platform.releases import Version, has_api, parse_version, releases
from trtq.progress import Progress
from trtq.scratch import scratch

MODULES = {RTX: "tensorrt_rtx", "tensorrt": "tensorrt"}


class Event(msgspec.Struct, frozen=True):
    """A line of the worker; which fields it has depends on the event.

    Attributes:
        event: ``log``, ``error``, ``phase``, ``step`` or ``done``.
        severity: of a log line, such as ``warning``.
        text: of a log line or an error.
        name: of a phase, also for its steps.
        steps: how many a phase has.
        node, op: where the parser failed.
        version: of TensorRT, of ``done``.
        tensors: inputs and outputs of the network, of ``done``.
    """

    event: str
    severity: str = ""
    text: str = ""
    name: str = ""
    steps: int = 0
    node: str = ""
    op: str = ""
    version: str = ""
    tensors: list[TensorRow] = []


@dataclass(frozen=True, slots=True)
class Report:
    """Output of a worker.

    Attributes:
        events: without its progress.
        code: its exit status; negative: the signal that ended it.
        stderr: its error output.
    """

    events: list[Event]
    code: int
    stderr: str

    @property
    def done(self) -> Event | None:
        """Its last word, where it wrote a plan."""
        return next((e for e in self.events if e.event == "done"), None)


class PythonBuilder:
    """Builds through ``tensorrt`` (8.5 to 11) or ``tensorrt_rtx``.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the API; ``installed_version`` asks the module.
        progress: receives the state of the build.
    """

    def __init__(self, name: str, version: Version, progress: Progress) -> None:
        self.name, self.version, self.told = name, version, progress
        self.workspace: int | None = None
        self._phase = ""

    def build(self, source: Path, settings: Settings) -> Built:
        """Build in a new process.

        Args:
            source: the ONNX file.
            settings: of the build; a timing cache that it names is written again afterwards.

        Raises:
            EngineError: the parser or the builder refuses (their words, with node names), or the
                process crashed.
            BuilderMemoryError: it ran out of memory.
            MissingKernelError: it has no kernel for a node.
            UsageError: a timing cache with TensorRT for RTX.
        """
        with scratch("build") as folder:
            report = self._watch(self.request(source, folder / "plan", settings, folder))
            done = report.done
            if report.code or done is None or not (folder / "plan").is_file():
                raise _failure(report, settings)
            cache, layers = folder / "timing.cache", folder / "layers.json"
            if settings.options.timing_cache is not None and cache.is_file():
                write_bytes(Path(settings.options.timing_cache), cache.read_bytes())
            return Built(
                plan=(folder / "plan").read_bytes(),
                version=done.version,
                tensors=done.tensors,
                log=[f"{e.severity}: {e.text}" for e in report.events if e.event == "log"],
                layers=layers.read_bytes() if layers.is_file() else None,
            )

    def keeps(self, node: str) -> bool:
        """Whether a node can be kept in float32: all can, by name."""
        return has_api("OBEY_PRECISION_CONSTRAINTS", self.version) and bool(node)

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return the Python that would build ``out``."""
        request = self.request(source, out, settings, None)
        setting = f'import os\nos.environ["TRTQ_TENSORRT"] = "{MODULES[self.name]}"'
        return (
            f"{setting}\nfrom trtq.engine.worker import build_json\n"
            f"build_json({json.dumps(msgspec.json.encode(request).decode())})"
        )

    def request(
        self, source: Path, out: Path, settings: Settings, folder: Path | None
    ) -> BuildRequest:
        """Return the request that a worker reads, here or on a board.

        Args:
            source: the ONNX file, where the worker runs.
            out: the plan to write.
            settings: of the build.
            folder: for the layer report and the new timing cache; None: nothing is written beside
                the plan but the timing cache itself.

        Raises:
            UsageError: a timing cache with TensorRT for RTX.
        """
        options, rtx = settings.options, self.name == RTX
        cache, beside = options.timing_cache, folder is not None
        if rtx and cache is not None:
            raise UsageError(
                "Cannot use a timing cache with TensorRT for RTX",
                "it has no effect there, and setting one needs a GPU",
                "Leave --timing-cache out",
            )
        return BuildRequest(
            onnx=str(source),
            out=str(out),
            shapes=_lists(settings.shapes),
            more=[_lists(shapes) for shapes in settings.more],
            sm=settings.target.sm if rtx else None,
            typed=settings.typed(self.version),
            fp16=settings.half,
            int8=settings.quantized,
            float_nodes=list(settings.float_nodes),
            workspace=settings.workspace,
            level=options.optimization_level,
            version_compatible=options.version_compatible,
            hardware=options.hardware_compatible,
            strip_weights=options.strip_weights,
            dla=options.dla,
            gpu_fallback=options.gpu_fallback,
            timing_cache=cache,
            timing_cache_out=f"{folder}/timing.cache" if beside and cache else cache,
            # A report takes the GPU the plan is for; a plan of TensorRT for RTX says the same by
            # itself.
            report=f"{folder}/layers.json" if beside and not rtx else None,
        )

    def _watch(self, request: BuildRequest) -> Report:
        """Have a worker build, pass its progress on, and return what it said."""
        worker = start(MODULES[self.name])
        with worker.errors, ended_with(worker.process) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            # A worker that has ended already says why in its error output.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(request).decode())
                process.stdin.close()
            events = [e for e in map(_event, process.stdout) if e is not None and self._keep(e)]
            code = process.wait()
            worker.errors.seek(0)
            return Report(events, code, worker.errors.read())

    def _keep(self, event: Event) -> bool:
        """Pass progress on; return whether an event is something else."""
        if event.event == "phase":
            self._phase = event.name
            self.told.begin(f"TensorRT: {event.name}", event.steps)
        elif event.event == "step" and event.name == self._phase:
            self.told.advance(1)
        return event.event in ("log", "error", "done")


def _lists(shapes: Shapes) -> dict[str, list[list[int]]]:
    return {name: [list(s) for s in sizes] for name, sizes in shapes.items()}


def _event(line: str) -> Event | None:
    """Return what a worker said; None for a line of a native library."""
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError:
        return None


def installed_version(name: str) -> Version:
    """Return the release whose Python API is installed here.

    Another process is asked: loading TensorRT takes memory that remains in use. The release of
    TensorRT for RTX is the one that the catalogue knows.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        EngineError: it cannot be told.
    """
    if name == RTX:
        return releases().rtx
    done = subprocess.run(
        [sys.executable, "-c", "import tensorrt; print(tensorrt.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    number = done.stdout.strip()
    if done.returncode or re.match(r"\d+\.\d+(\.|$)", number) is None:
        error_text = last_line(done.stderr) or f"it says {number!r}"
        raise EngineError("Cannot tell which TensorRT is installed", error_text)
    return parse_version(number)


def _failure(report: Report, settings: Settings) -> EngineError:
    where = f"Cannot build the engine for {settings.target.device} (sm{settings.target.sm})"
    refused = [
        f"{e.node}{f' ({e.op})' if e.op else ''}: {e.text}"
        for e in report.events
        if e.event == "error"
    ]
    if refused:
        return EngineError(where, "the ONNX parser refuses " + "; ".join(refused))
    errors = [e.text for e in report.events if e.event == "log" and "error" in e.severity]
    return explain(where, errors, report.code, last=last_line(report.stderr))
