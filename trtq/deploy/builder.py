"""A board as a builder: the local builders' protocol, but the engine stays on the board."""

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
from trtq.deploy.jobs import advice, do
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
        told: receives progress.
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
        told: Progress,
        power: dict[str, Any],
        *,
        again: bool = False,
    ) -> None:
        self.agent, self.board, self.engine, self.told, self.power = (
            agent,
            board,
            engine,
            told,
            power,
        )
        self.version = board.release
        there = board.has_trtexec
        if not there and not board.tensorrt_python:
            mend = next((m["mend"] for m in board.missing if "trtexec" in m["what"]), "")
            raise BoardError(
                f"Cannot build on {agent.device.name}",
                "it has neither trtexec nor TensorRT's Python module",
                mend,
            )
        self.name = "trtexec" if there else "tensorrt"
        self.executable = board.trtexec["path"] if there and board.trtexec is not None else ""
        self.spelled = TrtexecBuilder(self.executable, self.version, told)
        self.workspace = board.workspace or self.spelled.workspace
        self.again = again
        self.uploads: list[str] = []

    @property
    def target_path(self) -> str:
        """Where the engine will lie."""
        return f"{self.board.home}/{self.engine}"

    def build(self, source: Path, settings: Settings) -> Built:
        """Send the model, build there, and fetch what the builder said.

        Raises:
            EngineError: the builder refuses (its error lines).
            DeviceError: the board went away for good, or refuses.
        """
        digest, board = sha256_file(source), self.board
        name = f"files/{digest}.onnx"
        beside, report = f"{self.target_path}.new", f"{self.target_path}.layers"
        how = digest_of(
            {**self.power, "mode": board.power_mode["name"], "dla": settings.options.dla}
        )[:8]  # times of other clocks mislead
        cache = f"{board.home}/timing.{board.number}.{how}.cache"
        options = msgspec.structs.replace(settings.options, timing_cache=f"{cache}.new")
        caches = {}
        if settings.calibration is not None:
            held = sha256_file(settings.calibration)
            caches[f"files/{held}.cache"] = settings.calibration, held
        asked = replace(
            settings,
            options=options,
            calibration=next((Path(f"{board.home}/{n}") for n in caches), None),
        )
        reports = has_flag("exportLayerInfo", self.version)
        argv = self._argv(
            Path(f"{board.home}/{name}"),
            Path(beside),
            asked,
            Path(f"{report}.new") if reports else None,
        )
        step = {
            "name": "build",
            "argv": argv,
            "fresh": [beside, f"{report}.new", f"{cache}.new"],
            "copies": [[cache, f"{cache}.new"]],
            "makes": [
                [beside, self.target_path],
                [f"{report}.new", f"{report}.gz"],
                [f"{cache}.new", cache],
            ],
        }
        size = source.stat().st_size
        job = {
            "title": f"the build of {self.engine.rpartition('/')[2][:12]}",
            "steps": [step],
            **self.power,
            "needs_bytes": 2 * size + MARGIN_BYTES,
            "again": self.again,
        }
        for there, (path, held) in {name: (source, digest), **caches}.items():
            self.agent.upload(path, there, held)
            self.uploads.append(there)

        def line(text: str) -> None:
            if "] [I] " in text:
                self.told.status(text.partition("] [I] ")[2].strip()[:80])
                self.told.advance(0)

        self.told.begin(f"Building on {self.agent.device.name}", 0)
        key = digest_of({"argv": argv, "model": digest, "engine": self.engine, **self.power})[:32]
        result, lines = do(self.agent, key, job, line=line)
        self.again = False
        log = read_log("\n".join(lines))
        who = f"{'trtexec' if self.executable else 'TensorRT'} on {self.agent.device.name}"
        where = f"{who} cannot build the engine for {settings.target.device}"
        ran = result["steps"][
            0
        ]  # a result has at least one where it failed, and all where it did not
        if not result["ok"]:
            unknown = [ln for ln in lines if ln.startswith("Unknown option")]
            if not ran["rc"]:
                raise EngineError(where, result["why"], advice(result, self.agent))
            raise self._advised(
                explain(
                    where,
                    [*log.errors, *unknown],
                    ran["rc"],
                    last=lines[-1] if lines else result["why"],
                ),
                result,
            )
        made = ran["files"].get(self.target_path)
        if made is None:
            raise EngineError(where, "it ended well and wrote no engine")
        return Built(
            plan=b"",
            version=log.version
            or (dotted(board.number) if board.number is not None else shown(self.version)),
            tensors=[],
            log=log.warnings,
            numbers=log.numbers,
            layers=self._layers(ran["files"].get(f"{report}.gz"), f"{self.engine}.layers.gz"),
            away=(made["sha256"], made["bytes"]),
        )

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
        request = self._python().request(source, out, plain, None)
        request["report"] = str(report) if report is not None else None
        request["apis"] = apis_of(self.version)
        return [self.board.python_path, "-I", self.board.agent, "build-engine", encode(request)]

    def _python(self) -> PythonBuilder:
        return PythonBuilder("tensorrt", self.version, self.told)

    def _layers(self, made: Written | None, name: str) -> bytes | None:
        if made is None:
            return None
        with tempfile.TemporaryDirectory(prefix="trtq-layers-") as folder:
            packed = self.agent.download(
                name, Path(folder) / "layers.gz", digest=made["sha256"], most=MOST_LAYERS
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
            return EngineError(error.message, f"{error.reason.rstrip('.')}; {result['why']}", mend)
        if not isinstance(error, BuilderMemoryError):
            return error
        least = result["watch"]["least_free"] if "watch" in result else None
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
