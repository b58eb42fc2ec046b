"""``trtq deploy``: build, measure and keep one model on one board.

It can run as often as wanted and repeats only what a change requires.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtq.artifact import (
    SCHEMA,
    decode_json,
    digest_of,
    environment,
    header,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.bench.record import BenchRecord, BenchRow
from trtq.commands.board_settings import Order, order_build, power_of, require_mode
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import Done, EngineAnswer
from trtq.deploy.board import Board, probe
from trtq.deploy.builder import BoardBuilder
from trtq.deploy.devices import find_device, slug
from trtq.deploy.ledger import board_manifest, is_known_engine, remember_engine
from trtq.deploy.record import Accuracy, DeployRecord
from trtq.engine.build import build_and_look, describe
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.engine.verify import yardstick
from trtq.errors import ArtifactError, BoardError, EngineError, UsageError
from trtq.export.onnx_file import get_metadata
from trtq.files import BENCH_JSON, DEPLOY_JSON
from trtq.progress import Clock, Progress, or_silent
from trtq.specs import DeployOptions, DeploySpec, changed_words
from trtq.workspace import Workspace

if TYPE_CHECKING:
    from trtq.data.opened import Data
    from trtq.export.feeds import AnyArray, Inputs


@dataclass(frozen=True, slots=True)
class Seen:
    """The record of an earlier deployment of the same model."""

    rows: tuple[BenchRow, ...] = ()
    bench_key: str = ""
    accuracy: Accuracy | None = None
    images_key: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """The figures of a deployment.

    Attributes:
        new: they were measured now.
        key: digest of what they depend on.
    """

    rows: list[BenchRow]
    new: bool
    key: str


def deploy(spec: DeploySpec, progress: Progress | None = None) -> DeployRecord:
    """Build an ONNX file on a board, measure it there, and keep the engine there with its manifest.

    A board without INT8 gets the FP16 engine of the same model. Nothing unchanged
    is built or measured again.

    Raises:
        UsageError: an unknown device, or a setting that the board cannot have.
        DeviceError: the board cannot be reached, or refuses.
        EngineError: the builder there refuses, or no layer of the engine runs in INT8.
    """
    progress, clock = or_silent(progress), Clock()
    device, source = find_device(spec.device), Path(spec.model)
    if not source.is_file():
        why = "it is a folder" if source.is_dir() else "there is no such file"
        raise UsageError(f"Cannot deploy {spec.model}", why, "Give an ONNX file or a recipe.toml")
    # Opened before minutes are spent on the board.
    data = _opened(spec, progress.note)
    with Agent(device, progress, patience_s=spec.reconnect_timeout) as agent:
        board = probe(agent)
        require_mode(spec, board)
        if spec.dla is not None:
            board.target.require(
                "DLA",
                doing="build with",
                called="--dla",
                hint="Leave --dla out",
                error=EngineError,
            )
        folder = Path(spec.out or f"runs/deploy/{device.name}/{name_of(source)}")
        work = Workspace(folder, DEPLOY_JSON, progress, clock)
        with work.locked():
            order = order_build(spec, board, work)
            if data is not None:
                _require_fit(spec, order, data, source.parent)
            return _Deployment(spec, agent, board, order, work, data).run()


def name_of(model: Path) -> str:
    """Return the name of a model.

    Many files are called model.qdq.onnx, so the folder is part of it.
    """
    folder = model.resolve().parent.name
    return slug(f"{folder}-{model.stem}" if folder else model.stem)


def _opened(spec: DeployOptions, note: Callable[[str], None]) -> Data | None:
    """Return the data of a deployment; None without any."""
    if spec.data is None:
        given = next((n for n in ("task", "tokenizer") if getattr(spec, n) is not None), None)
        if given is not None:
            raise UsageError(
                f"--{given} needs --data", "without samples nothing is compared", "Add --data DATA"
            )
        return None
    from trtq.commands.board_samples import open_samples  # a deployment without data does without

    return open_samples(spec, note)


def _require_fit(spec: DeployOptions, order: Order, data: Data, folder: Path) -> None:
    """Refuse labels of other classes, and a task without its outputs, before a build.

    Raises:
        DataError, UsageError: say what does not fit.
    """
    if data.source is not None:
        from trtq.commands.evaluate import require_numbers

        require_numbers(data.source, get_metadata(order.judged), folder)
    if spec.task is not None or data.source is None:
        from trtq.commands.board_samples import require_fit, samples_for_board

        require_fit(spec.task, order.judged, order.job, samples_for_board(spec, order.job, data))


class _Deployment:
    """One run of ``deploy`` once everything is known."""

    def __init__(
        self,
        spec: DeploySpec,
        agent: Agent,
        board: Board,
        order: Order,
        work: Workspace,
        data: Data | None,
    ) -> None:
        self.data = data
        self.spec, self.agent, self.board, self.work = spec, agent, board, work
        self.job, self.judged = order.job, order.judged
        self.told, self.note = work.progress, work.note
        self.note(*dict.fromkeys(order.notes))
        if self.job.fallback:
            self.told.note(self.job.fallback)
        self.power = power_of(spec)
        self.mode = spec.power_mode or board.power_mode.name
        self.key = self._key()
        self.engine = f"engines/{self.key[:32]}.engine"
        self.altered = False  # whether the engine on the board must not be used
        self.unavailable: dict[str, str] = {}

    def _key(self) -> str:
        """Return a digest of what an engine depends on.

        A plan is good for one release on one board in one mode.
        """
        job, board = self.job, self.board
        without = ("onnx", "out", "calibration")
        spec = {k: v for k, v in msgspec.to_builtins(job.spec).items() if k not in without}
        cache = job.spec.calibration
        return digest_of(
            {
                "onnx": job.onnx_sha256,
                "spec": spec,
                "calibration": sha256_file(Path(cache)) if cache else None,
                "tensorrt": board.number,
                "model": board.model,
                "capability": board.capability,
                "mode": self.mode,
                "memory": round((board.memory.get("MemTotal") or 0) / 2**28),
                "pinned": self.spec.lock_clocks or board.clocks.pinned,
            }
        )

    def run(self) -> DeployRecord:
        """Do what is left to do."""
        seen = self._seen()
        manifest, built = self._manifest()
        path = f"{self.board.home}/{self.engine}"
        bench = self._bench(manifest, path, seen)
        images_key = self._images_key(manifest)
        accuracy = self._known_accuracy(manifest, path, seen, images_key)
        asked_for_mode = self.power.mode is not None or self.power.pin
        keys = {"bench_key": bench.key, "images_key": images_key}
        first = header("deploy", self.spec)
        first["spec"] |= keys
        record = DeployRecord(
            **first,
            key=self.key,
            device=self.agent.device.name,
            address=self.agent.device.address,
            board=self.board,
            onnx=self.job.spec.onnx,
            engine=path,
            fetched=self._fetch(manifest),
            built=built,
            manifest=manifest,
            rows=bench.rows,
            measured=bench.new,
            accuracy=accuracy,
            unavailable=self.unavailable,
            notes=self.note.lines,
            sent=self.agent.sent,
            received=self.agent.received,
            seconds=self.work.clock.total,
            restored=self.board.power_mode.name
            if (built or bench.new) and asked_for_mode
            else None,
            environment=environment(),
        )
        self.work.save(record)
        if bench.new and bench.rows:
            self._remember(record)
        elif not bench.rows:
            # It is of another engine; the history keeps it.
            (self.work.folder / BENCH_JSON).unlink(missing_ok=True)
        return record

    def _seen(self) -> Seen:
        """Return what deploy.json of an earlier run says; nothing where it cannot be read."""
        try:
            record = decode_json((self.work.folder / DEPLOY_JSON).read_bytes(), DeployRecord)
        except (OSError, msgspec.MsgspecError):
            return Seen()
        bench_key, images_key = (str(record.spec.get(n, "")) for n in ("bench_key", "images_key"))
        return Seen(tuple(record.rows), bench_key, record.accuracy, images_key)

    def _fetch(self, manifest: EngineManifest) -> str:
        """Copy the engine here where that is asked for, and return its path, else ""."""
        if not self.spec.fetch_engine:
            return ""
        name = f"{Path(self.spec.model).stem}.{self.agent.device.name}.engine"
        fetched = self.agent.download(
            self.engine,
            self.work.folder / name,
            digest=manifest.engine_sha256,
            most=manifest.engine_bytes,
        )
        write_json(manifest_path(Path(fetched)), manifest)
        return str(fetched)

    def _images_key(self, manifest: EngineManifest) -> str:
        spec = self.spec
        if spec.data is None:
            return ""
        from trtq.data.adapters import fingerprint

        content = fingerprint(spec.data, spec.class_index, tokenizer=spec.tokenizer)
        named = [spec.task] if spec.task is not None else []
        return digest_of([manifest.engine_sha256, content, spec.images, *named])

    def _manifest(self) -> tuple[EngineManifest, bool]:
        """Return the manifest of the engine on the board, built where it is not there."""
        existing_manifest = None if self.spec.force else self._there()
        if existing_manifest is not None:
            return existing_manifest, False
        job, progress = self.job, self.told
        builder = BoardBuilder(
            self.agent,
            self.board,
            self.engine,
            progress,
            self.power,
            again=self.spec.force or self.altered,
        )
        settings = job.settings(builder, self.board.number)
        self.note(*job.unkept(settings))
        outcome = build_and_look(builder, job, settings, progress)
        manifest = describe(job, builder, settings, outcome)
        self.agent.ask(
            "manifest", Done, name=f"{self.engine}.json", value=msgspec.to_builtins(manifest)
        )
        self._remember_engine(manifest)
        if not self.spec.keep:
            self.agent.ask("remove", Done, names=builder.uploads)
        return manifest, True

    def _there(self) -> EngineManifest | None:
        """Return the manifest of the engine on the board.

        Where it is not the engine that this workstation knows, return None and add a note.
        """
        answer, device = self.agent.ask("engine", EngineAnswer, name=self.engine), self.agent.device
        if answer.manifest is None:
            if answer.changed:
                self._rebuild("the engine on the board was changed since it was built")
            return None
        try:
            manifest = board_manifest(answer.manifest, device.name)
        except BoardError:
            self._rebuild("the manifest on the board is of another version of trtq, or damaged")
            return None
        known = is_known_engine(device, self.engine, manifest)
        if known is False or manifest.onnx_sha256 != self.job.onnx_sha256:
            self._rebuild("the engine on the board is not the one that was built from here")
            return None
        if known is None:
            self._say("another workstation built the engine: its digest is kept here from now on")
            self._remember_engine(manifest)
        return manifest

    def _remember_engine(self, manifest: EngineManifest) -> None:
        """Keep the digest of the engine here.

        A failure to do so is no reason to lose the build.
        """
        try:
            remember_engine(self.agent.device, self.engine, manifest)
        except (ArtifactError, OSError) as exc:
            self._say(f"the digest of the engine is not kept here: {exc}")

    def _rebuild(self, why: str) -> None:
        self.altered = True
        self._say(f"{why}: building again")

    def _say(self, text: str) -> None:
        self.note(f"{self.agent.device.name}: {text}")

    def _bench(self, manifest: EngineManifest, path: str, seen: Seen) -> Rows:
        """Return the figures of the engine, measured where they are not known."""
        same = bool(seen.rows) and all(
            (r.file, r.file_sha256) == (path, manifest.engine_sha256) for r in seen.rows
        )
        known = Rows(list(seen.rows), False, seen.bench_key) if same else Rows([], False, "")
        if not self.spec.bench:
            return known
        if not self.board.has_trtexec:
            self.unavailable["latency"] = (
                "there is no trtexec on the board (sudo apt-get install libnvinfer-bin)"
            )
            return known
        key = self._bench_key(manifest)
        valid = bool(seen.rows) and all(r.valid for r in seen.rows)
        if seen.bench_key == key and valid and not self.spec.force:
            return Rows(list(seen.rows), False, key)
        return Rows(self._measure(manifest, path, key), True, key)

    def _bench_key(self, manifest: EngineManifest) -> str:
        names = ("bench_batch", "duration", "min_samples", "energy", "cuda_graph")
        return digest_of(
            {
                "engine": manifest.engine_sha256,
                "mode": self.mode,
                "pinned": self.spec.lock_clocks,
                **{n: getattr(self.spec, n) for n in names},
            }
        )

    def _measure(self, manifest: EngineManifest, path: str, key: str) -> list[BenchRow]:
        """Measure the engine.

        The job of a measurement that was interrupted is found again; one that has ended is not
        mistaken for a new one.
        """
        from trtq.deploy.measure import measure

        folder = self.work.folder
        under_way = folder / ".measuring"
        before = under_way.read_text().split() if under_way.is_file() else []
        nonce = before[1] if before[:1] == [key] and len(before) == 2 else secrets.token_hex(8)
        write_bytes(under_way, f"{key} {nonce}".encode())
        rows = measure(self.agent, self.board, manifest, path, self.spec, self.power, folder, nonce)
        under_way.unlink()
        return rows

    def _known_accuracy(
        self, manifest: EngineManifest, path: str, seen: Seen, key: str
    ) -> Accuracy | None:
        """Return the accuracy on the images, None where none are given or they cannot be run."""
        if self.data is None:
            return None
        if seen.accuracy is not None and seen.images_key == key and not self.spec.force:
            return seen.accuracy
        try:
            return self._accuracy(self.data, manifest, path)
        except (BoardError, UsageError) as exc:
            self.unavailable["accuracy"] = exc.marked(exc.reason or exc.message)
            self.told.note(f"accuracy n/a: {exc.coded}")
            return None

    def _accuracy(self, data: Data, manifest: EngineManifest, path: str) -> Accuracy:
        """Run samples on the board, and the ONNX file on the same samples here."""
        from trtq.commands.board_accuracy import Compared, compare_on_samples
        from trtq.commands.board_samples import samples_for_board
        from trtq.deploy.accuracy import BATCH, BoardRunner

        spec, job = self.spec, self.job
        samples = samples_for_board(spec, job, data)
        low, _, high = manifest.batch
        size = high if low == high else min(BATCH, high)
        builder = BoardBuilder(self.agent, self.board, self.engine, self.told, self.power)
        compared = Compared(
            judged=self.judged,
            # The float file of a cache has no codes to compare with.
            built_from=self.judged
            if job.spec.calibration
            else job.source(job.settings(builder), self.board.release),
            yardstick=yardstick(job),
            job=job,
            data=str(spec.data),
            task=spec.task,
        )
        engine = (path, manifest.engine_sha256)
        runner = BoardRunner(self.agent, self.board, engine, size, dla=spec.dla)

        def answers(batches: Sequence[Inputs]) -> dict[str, AnyArray]:
            return runner.run(batches, manifest.input_slots)

        return compare_on_samples(compared, samples, size, answers)

    def _remember(self, record: DeployRecord) -> None:
        """Put the rows into bench.json and the history, like those measured here."""
        from trtq.bench.history import remember

        words = changed_words(self.spec, "device", "model")
        bench = BenchRecord(
            schema=SCHEMA,
            verb="bench",
            spec=record.spec,
            command=shlex.join(["trtq", "deploy", self.spec.device, self.spec.model, *words]),
            rows=record.rows,
            verdicts=[],
            card=self.board.card(record.rows[0].settings),
            valid=record.valid,
            notes=record.notes,
            seconds=record.seconds,
            environment=record.environment,
        )
        write_json(self.work.folder / BENCH_JSON, bench)
        try:
            remember(bench)
        except ArtifactError as exc:
            self.told.note(exc.coded)
