"""A board as a builder: the local builders' protocol, but the engine remains on the board."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from trtq.agent import encode
from trtq.artifact import decode_json, digest_of, sha256_file
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Result, Written
from trtq.deploy.board import Board
from trtq.deploy.jobs import BoardJob, JobPower, JobStep, advice, do
from trtq.deploy.stream import MIB, gunzip
from trtq.engine.failures import explain
from trtq.engine.python_api import PythonBuilder
from trtq.engine.settings import Built, Settings
from trtq.engine.trtexec import TrtexecBuilder
from trtq.engine.trtexec_log import dotted, read_log
from trtq.errors import BoardError, BuilderMemoryError, EngineError, reason
from trtq.platform.releases import apis_of, has_flag, shown
from trtq.progress import Progress

MARGIN_BYTES = 64 * MIB
MOST_LAYERS = 64 * MIB  # packed


def digest_in(name: str) -> str:
    """Return the digest in the name of an uploaded file."""
    return name.rpartition("/")[2].partition(".")[0]


class _Layer(msgspec.Struct):
    inputs: list[Any] = msgspec.field(name="Inputs", default_factory=list)


class _Report(msgspec.Struct):
    """The form of a layer report: what is read of it later can be anything but these."""

    layers: list[_Layer | str] = msgspec.field(name="Layers")


class BoardBuilder:
    """Builds with the trtexec of a board, or through its Python where there is none.

    Args:
        agent: on the board.
        board: as it was probed.
        engine: name of the engine in the work folder.
        progress: receives the state of the build.
        power: power mode and pinning of the job.
        again: build even what was built before.

    Raises:
        BoardError: there is nothing to build with.
    """

    def __init__(
        self,
        agent: Agent,
        board: Board,
        engine: str,
        progress: Progress,
        power: JobPower,
        *,
        again: bool = False,
    ) -> None:
        self.agent, self.board, self.engine, self.told, self.power = (
            agent,
            board,
            engine,
            progress,
            power,
        )
        self.version = board.release
        has_trtexec = board.has_trtexec
        if not has_trtexec and not board.tensorrt_python:
            mend = next((m.mend for m in board.missing if "trtexec" in m.what), "")
            raise BoardError(
                f"Cannot build on {agent.device.name}",
                "it has neither trtexec nor TensorRT's Python module",
                mend,
            )
        self.name = "trtexec" if has_trtexec else "tensorrt"
        self.executable = board.trtexec.path if has_trtexec and board.trtexec is not None else ""
        self.spelled = TrtexecBuilder(self.executable, self.version, progress)
        self.workspace = board.workspace or self.spelled.workspace
        self.again = again
        self.uploads: list[str] = []

    @property
    def target_path(self) -> str:
        """The path of the engine."""
        return f"{self.board.home}/{self.engine}"

    def build(self, source: Path, settings: Settings) -> Built:
        """Send the model, build there, and fetch what the builder said.

        Args:
            source: ONNX file here, with all its tensors inside.
            settings: of the build; a calibration cache is sent, too.

        Returns:
            the engine without its bytes: ``away`` has its SHA-256 and size, since it is on the
            board.

        Raises:
            EngineError: the builder refuses (its error lines).
            DeviceError: the board went away for good, or refuses.
        """
        model, calibration = f"files/{sha256_file(source)}.onnx", None
        files = {model: source}
        if settings.calibration is not None:
            calibration = f"files/{sha256_file(settings.calibration)}.cache"
            files[calibration] = settings.calibration
        step = self._step(model, calibration, settings)
        job = BoardJob(
            title=f"the build of {self.engine.rpartition('/')[2][:12]}",
            steps=[step],
            power=self.power,
            needs_bytes=2 * source.stat().st_size + MARGIN_BYTES,
            again=self.again,
        )
        for name, path in files.items():
            self.agent.upload(path, name, digest_in(name))
            self.uploads.append(name)
        self.told.begin(f"Building on {self.agent.device.name}", 0)
        key = digest_of(
            {
                "argv": step.argv,
                "model": digest_in(model),
                "engine": self.engine,
                **msgspec.to_builtins(self.power),
            }
        )[:32]
        result, lines = do(self.agent, key, job, line=self._pass_on)
        self.again = False
        return self._built(result, lines, settings)

    def _step(self, model: str, calibration: str | None, settings: Settings) -> JobStep:
        """Return the one step of the job: the command, and the files that it makes."""
        home, report = self.board.home, f"{self.target_path}.layers"
        # Times of other clocks mislead.
        clocks = {
            **msgspec.to_builtins(self.power),
            "mode": self.board.power_mode.name,
            "dla": settings.options.dla,
        }
        cache = f"{home}/timing.{self.board.number}.{digest_of(clocks)[:8]}.cache"
        board_settings = replace(
            settings,
            options=msgspec.structs.replace(settings.options, timing_cache=f"{cache}.new"),
            calibration=Path(f"{home}/{calibration}") if calibration is not None else None,
        )
        has_report = has_flag("exportLayerInfo", self.version)
        argv = self._argv(
            Path(f"{home}/{model}"),
            Path(f"{self.target_path}.new"),
            board_settings,
            Path(f"{report}.new") if has_report else None,
        )
        return JobStep(
            name="build",
            argv=argv,
            fresh=[f"{self.target_path}.new", f"{report}.new", f"{cache}.new"],
            copies=[(cache, f"{cache}.new")],
            makes=[
                (f"{self.target_path}.new", self.target_path),
                (f"{report}.new", f"{report}.gz"),
                (f"{cache}.new", cache),
            ],
        )

    def _pass_on(self, text: str) -> None:
        """Show a line of the builder as its status."""
        if "] [I] " in text:
            self.told.status(text.partition("] [I] ")[2].strip()[:80])
            self.told.advance(0)

    def _built(self, result: Result, lines: list[str], settings: Settings) -> Built:
        """Return the engine of a job that has ended.

        Args:
            result: of the job.
            lines: what the builder printed.
            settings: of the build, for messages.

        Raises:
            EngineError: there is none; the builder's words.
        """
        log = read_log("\n".join(lines))
        who = f"{'trtexec' if self.executable else 'TensorRT'} on {self.agent.device.name}"
        where = f"{who} cannot build the engine for {settings.target.device}"
        if not result.ok:
            raise self._failure(where, result, lines, log.errors)
        files = result.steps[0].files
        engine = files.get(self.target_path)
        if engine is None:
            raise EngineError(where, "it ended well and wrote no engine")
        number = self.board.number
        return Built(
            plan=b"",
            version=log.version or (shown(self.version) if number is None else dotted(number)),
            tensors=[],
            log=log.warnings,
            numbers=log.numbers,
            layers=self._layers(
                files.get(f"{self.target_path}.layers.gz"), f"{self.engine}.layers.gz"
            ),
            away=(engine.sha256, engine.bytes),
        )

    def _failure(
        self, where: str, result: Result, lines: list[str], errors: list[str]
    ) -> EngineError:
        code = result.steps[0].rc  # a result that failed has at least one step
        if not code:
            return EngineError(where, result.why, advice(result, self.agent))
        unknown = [ln for ln in lines if ln.startswith("Unknown option")]
        last = lines[-1] if lines else result.why
        return self._advised(explain(where, [*errors, *unknown], code, last=last), result)

    def _argv(self, source: Path, out: Path, settings: Settings, report: Path | None) -> list[str]:
        if self.executable:
            return self.spelled.command(source, out, settings, report=report)
        if settings.calibration is not None:
            raise EngineError(
                f"TensorRT on {self.agent.device.name} cannot build INT8 from a cache",
                "its Python module is not given one here",
                "On the board: sudo apt-get install libnvinfer-bin",
            )
        plain = replace(
            settings, options=msgspec.structs.replace(settings.options, timing_cache=None)
        )
        request = msgspec.to_builtins(self._python().request(source, out, plain, None))
        request["report"] = str(report) if report is not None else None
        request["apis"] = apis_of(self.version)
        return [self.board.python_path, "-I", self.board.agent, "build-engine", encode(request)]

    def _python(self) -> PythonBuilder:
        return PythonBuilder("tensorrt", self.version, self.told)

    def _layers(self, report_file: Written | None, name: str) -> bytes | None:
        """Return the layer report of a build, None where it wrote none that can be read."""
        if report_file is None:
            return None
        with tempfile.TemporaryDirectory(prefix="trtq-layers-") as folder:
            packed = self.agent.download(
                name, Path(folder) / "layers.gz", digest=report_file.sha256, most=MOST_LAYERS
            )
            report = gunzip(packed, self.agent.device.name)
        try:
            decode_json(report, _Report)
        except msgspec.MsgspecError as exc:
            self.told.note(
                f"{self.agent.device.name}: the layer report cannot be read ({reason(exc)}): "
                "INT8 coverage is unknown"
            )
            return None
        return report

    def _advised(self, error: EngineError, result: Result) -> EngineError:
        """Say what the board had, where memory or the disk was the reason."""
        mend = advice(result, self.agent)
        if mend:
            return EngineError(error.message, f"{error.reason.rstrip('.')}; {result.why}", mend)
        if not isinstance(error, BuilderMemoryError):
            return error
        least = result.watch.least_free if result.watch is not None else None
        swap = self.board.memory.get("SwapTotal") or 0
        had = f"; {least / 1e6:.0f} MB were free at the least" if least is not None else ""
        mends = [
            "Stop the desktop there (sudo systemctl isolate multi-user.target)"
        ] * self.board.desktop
        mends += ["close what uses CUDA there", "give less with --workspace"]
        if swap < 2 * 2**30:
            mends.append(
                f"add swap for the host's part (there are {swap / 1e9:.1f} GB; pages of the GPU "
                "cannot be swapped)"
            )
        return BuilderMemoryError(error.message, f"{error.reason}{had}", f"{', or '.join(mends)}")

    def keeps(self, node: str) -> bool:
        """Whether a node can be kept in float32."""
        return (self.spelled if self.executable else self._python()).keeps(node)

    def show(self, source: Path, out: Path, settings: Settings) -> str:
        """Return the command line that would run on the board."""
        return (
            self.spelled.show(source, out, settings)
            if self.executable
            else json.dumps(self._argv(source, out, settings, None))
        )
