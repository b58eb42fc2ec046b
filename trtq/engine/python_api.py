"""TensorRT and TensorRT for RTX through their Python API.

One class serves both modules, always in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from trtq.artifact import scratch, write_bytes
from trtq.engine.failures import explain
from trtq.engine.settings import Built, Settings
from trtq.engine.worker_process import ended_with, start
from trtq.errors import EngineError, UsageError, last_line
from trtq.platform.releases import Version, has_api, releases
from trtq.progress import Progress

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


class PythonBuilder:
    """Builds through ``tensorrt`` (8.5 to 11) or ``tensorrt_rtx``.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the API; ``installed_version`` asks the module.
        told: receives progress.
    """

    def __init__(self, name: str, version: Version, told: Progress) -> None:
        self.name, self.version, self.told = name, version, told
        self.workspace: int | None = None

    def build(self, source: Path, settings: Settings) -> Built:
        """Build in a new process.

        Raises:
            EngineError: the parser or the builder refuses (their words, with node names), or the
                process crashed.
        """
        with scratch("build") as folder:
            asked = self.request(source, folder / "plan", settings, folder)
            events, code, stderr = self._watch(asked)
            done = next((e for e in events if e["event"] == "done"), None)
            if code == 0 and done is not None and (folder / "plan").is_file():
                if (
                    settings.options.timing_cache is not None
                    and (folder / "timing.cache").is_file()
                ):
                    write_bytes(
                        Path(settings.options.timing_cache), (folder / "timing.cache").read_bytes()
                    )
                layers = folder / "layers.json"
                return Built(
                    plan=(folder / "plan").read_bytes(),
                    version=str(done["version"]),
                    tensors=done["tensors"],
                    log=[f"{e['severity']}: {e['text']}" for e in events if e["event"] == "log"],
                    layers=layers.read_bytes() if layers.is_file() else None,
                )
            raise _failure(events, code, stderr, settings)

    def keeps(self, node: str) -> bool:
        """Whether a node can be kept in float32: all can, by name."""
        return has_api("OBEY_PRECISION_CONSTRAINTS", self.version) and bool(node)

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return the Python that would build ``out``."""
        asked = self.request(source, out, settings, None)
        setting = f'import os\nos.environ["TRTQ_TENSORRT"] = "{MODULES[self.name]}"'
        return (
            f"{setting}\nimport json\nfrom trtq.engine.worker import build\n"
            f"build(json.loads({json.dumps(json.dumps(asked))}))"
        )

    def request(
        self, source: Path, out: Path, settings: Settings, folder: Path | None
    ) -> dict[str, Any]:
        """Return the request that a worker reads, here or on a board.

        Without a folder for other files, nothing beside the plan is written.
        """
        options, rtx = settings.options, self.name == "tensorrt-rtx"
        if rtx and options.timing_cache is not None:
            raise UsageError(
                "Cannot use a timing cache with TensorRT for RTX",
                "it has no effect there, and setting one needs a GPU",
                "Leave --timing-cache out",
            )
        return {
            "onnx": str(source),
            "out": str(out),
            "shapes": {k: [list(s) for s in v] for k, v in settings.shapes.items()},
            "sm": settings.target.sm if rtx else None,
            "typed": settings.typed(self.version),
            "fp16": settings.half,
            "int8": settings.quantized,
            "float_nodes": list(settings.float_nodes),
            "workspace": settings.workspace,
            "level": options.optimization_level,
            "version_compatible": options.version_compatible,
            "hardware": options.hardware_compatible,
            "strip_weights": options.strip_weights,
            "dla": options.dla,
            "gpu_fallback": options.gpu_fallback,
            "timing_cache": options.timing_cache,
            "timing_cache_out": str(folder / "timing.cache")
            if folder is not None and options.timing_cache
            else options.timing_cache,
            # A report takes the GPU the plan is for; a plan of TensorRT for RTX says the same by
            # itself.
            "report": str(folder / "layers.json") if folder is not None and not rtx else None,
        }

    def _watch(self, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], int, str]:
        """Have a worker build; return its events, exit status and error output.

        Its progress is passed on.
        """
        worker, events = start(MODULES[self.name]), list[dict[str, Any]]()
        with worker.errors, ended_with(worker.process) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(
                BrokenPipeError
            ):  # it has ended already; its error output says why
                process.stdin.write(json.dumps(asked))
                process.stdin.close()
            current = ""
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a native library wrote this
                if not isinstance(event, dict) or "event" not in event:
                    continue
                if event["event"] == "phase":
                    current = event["name"]
                    self.told.begin(f"TensorRT: {current}", event["steps"])
                elif event["event"] == "step" and event["name"] == current:
                    self.told.advance(1)
                elif event["event"] in ("log", "error", "done"):
                    events.append(event)
            code = process.wait()
            worker.errors.seek(0)
            return events, code, worker.errors.read()


def installed_version(name: str) -> Version:
    """Return the release whose Python API is installed here.

    Another process is asked: loading TensorRT takes memory that stays in use.

    Raises:
        EngineError: it cannot be told.
    """
    if name == "tensorrt-rtx":
        return releases().rtx
    done = subprocess.run(
        [sys.executable, "-c", "import tensorrt; print(tensorrt.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    parts = done.stdout.strip().split(".")
    if done.returncode or len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        said = last_line(done.stderr) or f"it says {done.stdout.strip()!r}"
        raise EngineError("Cannot tell which TensorRT is installed", said)
    return int(parts[0]), int(parts[1])


def _failure(
    events: list[dict[str, Any]], code: int, stderr: str, settings: Settings
) -> EngineError:
    where = f"Cannot build the engine for {settings.target.device} (sm{settings.target.sm})"
    parser = [
        f"{e['node']}{' (' + e['op'] + ')' if e['op'] else ''}: {e['text']}"
        for e in events
        if e["event"] == "error"
    ]
    if parser:
        return EngineError(where, "the ONNX parser refuses " + "; ".join(parser))
    errors = [str(e["text"]) for e in events if e["event"] == "log" and "error" in e["severity"]]
    return explain(where, errors, code, last=last_line(stderr))
