"""trtexec as a builder: one command line, made for the version that will read it.

An unknown flag makes trtexec print its help and fail, so flags are chosen by version from one
table, never by trial.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trtq.engine.failures import explain
from trtq.engine.settings import Built, Settings, Shapes
from trtq.engine.trtexec_log import read_log
from trtq.engine.worker_process import ended_with
from trtq.errors import EngineError, MissingExtraError, reason
from trtq.paths import path_variable
from trtq.platform.releases import Version, has_flag, offers, releases, shown
from trtq.platform.target import Target
from trtq.progress import Progress
from trtq.scratch import scratch
from trtq.specs import BuildOptions

Flag = tuple[str, str | None]  # its name, and its value where it takes one
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
        progress: receives what it says while it runs.
    """

    name = "trtexec"

    def __init__(self, executable: str, version: Version, progress: Progress) -> None:
        self.executable, self.version, self.told = executable, version, progress
        # Its default of 16 MiB before 8.4 leaves most convolutions without a kernel; later ones
        # take what the device has.
        self.workspace = None if has_flag("memPoolSize", version) else WORKSPACE_MIB

    def build(self, source: Path, settings: Settings) -> Built:
        """Run trtexec.

        Args:
            source: the ONNX file.
            settings: of the build.

        Raises:
            EngineError: trtexec fails (its error lines), or this machine's GPU is not the target's.
            BuilderMemoryError: it ran out of memory.
            MissingKernelError: it has no kernel for a node.
        """
        with scratch("build") as folder:
            plan, report = folder / "plan", folder / "layers.json"
            report_there = report if has_flag("exportLayerInfo", self.version) else None
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

        Args:
            source: the ONNX file.
            out: the engine to write.
            settings: of the build.
            report: file for the layer report; None for none.

        Raises:
            EngineError: a flag that this version does not have would be needed.
        """
        given = [
            ("onnx", str(source)),
            ("saveEngine", str(out)),
            *_shapes(settings),
            *self._precision(settings),
            *self._memory(settings),
            *_options(settings.options),
            *self._adjustment(settings.options),
            *self._afterwards(report),
        ]
        for name, _ in given:
            self._require_flag(name)
        return [
            self.executable,
            *(f"--{name}" if value is None else f"--{name}={value}" for name, value in given),
        ]

    def _require_flag(self, name: str) -> None:
        """Refuse a flag that this version does not have.

        Raises:
            EngineError: names the releases that have it.
        """
        if not has_flag(name, self.version):
            first, last = releases().flags[name]
            raise EngineError(
                f"trtexec {shown(self.version)} has no --{name}",
                f"it exists from {shown(first)} to {shown(last) if last else 'today'}",
            )

    def _memory(self, settings: Settings) -> list[Flag]:
        """Return the option that limits the scratch memory of a kernel."""
        if has_flag("workspace", self.version) and not has_flag("memPoolSize", self.version):
            return [("workspace", str(settings.workspace or WORKSPACE_MIB))]
        if settings.workspace is None:
            return []
        # A plain number of MiB means the same in every release, a suffix does not.
        return [("memPoolSize", f"workspace:{settings.workspace}")]

    def _adjustment(self, options: BuildOptions) -> list[Flag]:
        """Return the option that lets the parser rewrite layers for a DLA, where there is one."""
        wanted = options.dla is not None and has_flag("adjustForDLA", self.version)
        return [("adjustForDLA", None)] * wanted

    def _afterwards(self, report: Path | None) -> list[Flag]:
        """Return the options for what follows the build: the layer report, and no inference."""
        verbose = has_flag("profilingVerbosity", self.version)
        only = "skipInference" if has_flag("skipInference", self.version) else "buildOnly"
        return [
            *[("profilingVerbosity", "detailed")] * verbose,
            *([("exportLayerInfo", str(report))] if report is not None else []),
            (only, None),
        ]

    def _precision(self, settings: Settings) -> list[Flag]:
        """Return the options that set the precision.

        Weakly typed networks take flags for it. Networks with types in the graph take none, except
        for ``--stronglyTyped`` as long as there are weakly typed ones.
        """
        if settings.typed(self.version):
            return [("stronglyTyped", None)] * has_flag("fp16", self.version)
        int8 = settings.quantized or settings.calibration is not None
        given: list[Flag] = [
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
        if settings.calibration is not None:
            given.append(("calib", str(settings.calibration)))
        return given

    def keeps(self, node: str) -> bool:
        """Whether the command line can keep a node in float32.

        It can from 8.4 on, if the node's name has no characters that separate names.
        """
        return offers("precision by layer", self.version) and not set(node) & set(",:*")


def _shapes(settings: Settings) -> list[Flag]:
    """Return the options that give the shapes of dynamic inputs."""
    profiles = [_profile(shapes) for shapes in (settings.shapes, *settings.more) if shapes]
    if len(profiles) < 2:
        return [flag for given in profiles for flag in given]
    return [flag for k, given in enumerate(profiles) for flag in (("profile", str(k)), *given)]


def _profile(shapes: Shapes) -> list[Flag]:
    return [
        (flag, spell_shapes({name: sizes[i] for name, sizes in shapes.items()}))
        for i, flag in enumerate(("minShapes", "optShapes", "maxShapes"))
    ]


def spell_shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return shapes as trtexec takes them: ``left:1x3x8x8,right:1x3x8x8``."""
    return ",".join(f"{spell_name(n)}:{'x'.join(map(str, s))}" for n, s in shapes.items())


def spell_name(name: str) -> str:
    """Return the name of an input as trtexec takes it: quoted where a character separates."""
    return f"'{name}'" if set(name) & set(",:") else name


def _options(options: BuildOptions) -> list[Flag]:
    """Return the flags of what the user chose, in a fixed order."""
    level, core = options.optimization_level, options.dla
    hardware = options.hardware_compatible
    rows: list[tuple[bool, str, str | None]] = [
        (options.timing_cache is not None, "timingCacheFile", options.timing_cache),
        (level is not None, "builderOptimizationLevel", str(level)),
        (core is not None, "useDLACore", str(core)),
        (core is not None and options.gpu_fallback, "allowGPUFallback", None),
        (options.version_compatible, "versionCompatible", None),
        (options.strip_weights, "stripWeights", None),
        (hardware != "none", "hardwareCompatibilityLevel", hardware),
    ]
    return [(name, value) for given, name, value in rows if given]


def _require_device(capability: str | None, target: Target) -> None:
    if capability is not None and capability != target.capability:
        raise EngineError(
            f"This machine's GPU is not {target.device}",
            f"trtexec builds for the GPU it runs on, compute capability {capability}; the target "
            f"has {target.capability}",
            f"Build on that device, or say what this is: --target sm{capability.replace('.', '')}",
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
