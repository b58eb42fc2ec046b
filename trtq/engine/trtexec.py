"""trtexec as a builder: one command line, made for the version that will read it.

An unknown flag makes trtexec print its help and fail, so flags are chosen by version from one
table, never by trial.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from trtq.artifact import scratch
from trtq.engine.failures import explain
from trtq.engine.settings import Built, Settings
from trtq.engine.targets import Target
from trtq.engine.trtexec_log import read_log
from trtq.engine.versions import FLAGS, Version, offers, shown, within
from trtq.engine.worker_process import ended_with
from trtq.errors import EngineError, MissingExtraError, reason
from trtq.paths import path_variable
from trtq.progress import Progress

WORKSPACE_MIB = 1024
USUAL_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")


def find_trtexec() -> str:
    """Return the path of trtexec.

    It is ``$TRTQ_TRTEXEC``, on the PATH, or where NVIDIA's packages put it.

    Raises:
        MissingExtraError: there is none.
    """
    for place in (path_variable("TRTQ_TRTEXEC"), shutil.which("trtexec"), *USUAL_PLACES):
        if place and Path(place).is_file():
            return place
    raise MissingExtraError(
        "There is no trtexec here",
        f"looked at TRTQ_TRTEXEC, the PATH and {', '.join(USUAL_PLACES)}",
        "It comes with TensorRT's tar or Debian package, not with its wheels; or use --backend "
        "tensorrt",
    )


def parse_number(text: str) -> int:
    """Return the number in trtexec's first line.

    The line has ``[TensorRT v8502]`` or ``[TensorRT v100300] [b26]``. Caches name the number in
    their header.

    Four digits are major * 1000 + minor * 100 + patch, five or six major * 10000 + minor * 100 +
    patch.

    Raises:
        EngineError: there is no such line.
    """
    match = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if match is None:
        raise EngineError(
            "Cannot tell which version of trtexec this is",
            f"its first line is {text.strip().splitlines()[:1]}",
        )
    return int(match.group(1))


class TrtexecBuilder:
    """Builds with the trtexec of one release.

    Args:
        executable: its path.
        version: of it; any, where a command line is all that is wanted.
        told: receives what it says while it runs.
    """

    name = "trtexec"

    def __init__(self, executable: str, version: Version, told: Progress) -> None:
        self.executable, self.version, self.told = executable, version, told
        # Its default of 16 MiB before 8.4 leaves most convolutions without a kernel; later ones
        # take what the device has.
        self.workspace = WORKSPACE_MIB if version < (8, 4) else None

    def build(self, source: Path, settings: Settings) -> Built:
        """Run trtexec.

        Raises:
            EngineError: trtexec fails (its error lines), or this machine's GPU is not the target's.
        """
        with scratch("build") as folder:
            plan, report = folder / "plan", folder / "layers.json"
            report_there = report if within(FLAGS["exportLayerInfo"], self.version) else None
            line = self.command(source, plan, settings, report=report_there)
            text, code = self._watch(line)
            log = read_log(text)
            if code or not plan.is_file():
                unknown = [ln for ln in text.splitlines() if ln.startswith("Unknown option")]
                where = f"trtexec cannot build the engine for {settings.target.device}"
                raise explain(where, [*log.errors, *unknown], code, last=f"exit status {code}")
            _require_device(log.capability, settings.target)
            return Built(
                plan=plan.read_bytes(),
                version=log.version or shown(self.version),
                tensors=[],
                log=log.warnings,
                numbers=log.numbers,
                layers=report.read_bytes() if report.is_file() else None,
            )

    def _watch(self, line: list[str]) -> tuple[str, int]:
        """Run a command line and return all it wrote and the exit status.

        The library's messages are passed on while it runs.
        """
        log: list[str] = []
        self.told.begin("trtexec", 0)
        started = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        with ended_with(started) as process:
            assert process.stdout is not None
            for text in process.stdout:
                log.append(text)
                if "] [I] " in text:
                    self.told.status(text.partition("] [I] ")[2].strip()[:80])
                    self.told.advance(0)
            return "".join(log), process.wait()

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return the command line that would build ``out``."""
        return shlex.join(self.command(source, out, settings))

    def command(
        self, source: Path, out: Path, settings: Settings, *, report: Path | None = None
    ) -> list[str]:
        """Return the command line that builds ``source`` with this version of trtexec.

        Raises:
            EngineError: a flag that this version does not have would be needed.
        """
        options, version = settings.options, self.version
        given: list[tuple[str, str | None]] = [("onnx", str(source)), ("saveEngine", str(out))]
        for name, i in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
            if settings.shapes:
                given.append(
                    (
                        name,
                        ",".join(
                            f"{k}:{'x'.join(map(str, v[i]))}" for k, v in settings.shapes.items()
                        ),
                    )
                )
        given += self._precision(settings)
        if settings.calibration is not None:
            given.append(("calib", str(settings.calibration)))
        if version < (8, 4):
            given.append(("workspace", str(settings.workspace or WORKSPACE_MIB)))
        elif (
            settings.workspace is not None
        ):  # a plain number of MiB means the same in every release, a suffix does not
            given.append(("memPoolSize", f"workspace:{settings.workspace}"))
        if options.timing_cache is not None:
            given.append(("timingCacheFile", options.timing_cache))
        if options.optimization_level is not None:
            given.append(("builderOptimizationLevel", str(options.optimization_level)))
        if options.dla is not None:
            given += [
                ("useDLACore", str(options.dla)),
                *([("allowGPUFallback", None)] if options.gpu_fallback else []),
            ]
        given += [("versionCompatible", None)] * options.version_compatible + [
            ("stripWeights", None)
        ] * options.strip_weights
        if options.hardware_compatible != "none":
            given.append(("hardwareCompatibilityLevel", options.hardware_compatible))
        if version >= FLAGS["profilingVerbosity"][0]:
            given.append(("profilingVerbosity", "detailed"))
        if report is not None:
            given.append(("exportLayerInfo", str(report)))
        given.append(
            ("skipInference" if version >= FLAGS["skipInference"][0] else "buildOnly", None)
        )
        for name, _ in given:
            if not within(FLAGS[name], version):
                first, last = FLAGS[name]
                raise EngineError(
                    f"trtexec {shown(version)} has no --{name}",
                    f"it exists from {shown(first)} to {shown(last) if last else 'today'}",
                )
        return [
            self.executable,
            *(f"--{name}" if value is None else f"--{name}={value}" for name, value in given),
        ]

    def _precision(self, settings: Settings) -> list[tuple[str, str | None]]:
        """Return the options that set the precision.

        Weakly typed networks take flags for it. Networks with types in the graph take none, except
        for ``--stronglyTyped`` before 11.
        """
        if settings.typed(self.version):  # a deprecated no-op from 11 on
            return [("stronglyTyped", None)] if self.version < (11, 0) else []
        int8 = settings.quantized or settings.calibration is not None
        given: list[tuple[str, str | None]] = [
            *[("int8", None)] * int8,
            *[("fp16", None)] * settings.half,
        ]
        if settings.half and settings.float_nodes:
            layers = ",".join(f"{n}:fp32" for n in settings.float_nodes)
            given += [
                ("precisionConstraints", "obey"),
                ("layerPrecisions", layers),
                ("layerOutputTypes", layers),
            ]
        return given

    def keeps(self, node: str) -> bool:
        """Whether the command line can keep a node in float32.

        It can from 8.4 on, if the node's name has no characters that separate names.
        """
        return offers("precision by layer", self.version) and not set(node) & set(",:*")


def _require_device(found: str | None, target: Target) -> None:
    if found is not None and found != target.capability:
        raise EngineError(
            f"This machine's GPU is not {target.device}",
            f"trtexec builds for the GPU it runs on, compute capability {found}; the target has "
            f"{target.capability}",
            f"Build on that device, or say what this is: --target sm{found.replace('.', '')}",
        )


def probe_number(executable: str) -> int:
    """Return the number of ``executable``, down to the patch, from the first line it prints.

    Raises:
        EngineError: it cannot be started, or prints no version.
    """
    try:
        done = subprocess.run(
            [executable, "--help"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EngineError(f"Cannot run {executable}", reason(exc)) from exc
    return parse_number(done.stdout + done.stderr)
