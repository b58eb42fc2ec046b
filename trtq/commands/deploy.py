"""``trtq deploy``: build, measure and keep one model on one board.

It can run as often as wanted and repeats only what a change requires.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import onnx

from trtq.artifact import (
    SCHEMA,
    decode_json,
    digest_of,
    ensure_writable_dir,
    environment,
    locked,
    sha256_file,
    write_bytes,
    write_json,
)
from trtq.bench.record import BenchRecord, BenchRow
from trtq.commands.board_export import for_dla, profile_for
from trtq.deploy.agent_client import Agent
from trtq.deploy.board import Board, probe
from trtq.deploy.builder import BoardBuilder
from trtq.deploy.devices import find_device, slug
from trtq.deploy.ledger import board_manifest, is_known_engine, remember_engine
from trtq.deploy.record import Accuracy, DeployRecord
from trtq.engine.build import build_and_look, describe, yardstick
from trtq.engine.job import Job, prepare
from trtq.engine.manifest import EngineManifest, manifest_path
from trtq.errors import ArtifactError, BoardError, EngineError, UsageError
from trtq.export.onnx_file import count_qdq, get_metadata, load_onnx
from trtq.progress import Notes, Progress, Silent
from trtq.specs import BuildSpec, DeployOptions, DeploySpec, changed_words

if TYPE_CHECKING:
    from trtq.data.source import Source

RECORD = "deploy.json"


@dataclass(frozen=True, slots=True)
class Seen:
    """What an earlier deployment of the same thing left here."""

    rows: tuple[BenchRow, ...] = ()
    bench_key: str = ""
    accuracy: Accuracy | None = None
    images_key: str = ""


def deploy(spec: DeploySpec, progress: Progress | None = None) -> DeployRecord:
    """Build an ONNX file on a board, measure it there, and keep the engine there with its manifest.

    A board without INT8 gets the FP16 engine of the same model. What is there and has not changed
    is neither built nor measured again.

    Raises:
        UsageError: an unknown device, or a setting that the board cannot have.
        DeviceError: the board cannot be reached, or refuses.
        EngineError: the builder there refuses, or the engine computes nothing in INT8.
    """
    told, began = progress or Silent(), time.perf_counter()
    device = find_device(spec.device)
    source = Path(spec.model)
    if not source.is_file():
        why = "it is a folder" if source.is_dir() else "there is no such file"
        raise UsageError(f"Cannot deploy {spec.model}", why, "Give an ONNX file or a recipe.toml")
    # Opened before minutes are spent on the board.
    images = _images(spec, told.note) if spec.data is not None else None
    with Agent(device, told, patience_s=spec.patience) as agent:
        board = probe(agent)
        target = board.target
        require_mode(spec, board)
        if spec.dla is not None:
            target.require(
                "DLA",
                doing="build with",
                called="--dla",
                hint="Leave --dla out",
                error=EngineError,
            )
        out = ensure_writable_dir(Path(spec.out or f"runs/deploy/{device.name}/{name_of(source)}"))
        with locked(out / ".trtq.lock", waiting=told.note):
            file = profile_for(source, target, spec.precision if spec.dla is None else "fp32", told)
            asked = _build_spec(spec, file.path, target.name, board, out)
            judged, notes = None, [*file.notes]
            if (
                spec.dla is not None
                and not file.fallback
                and count_qdq(given := load_onnx(file.path))
            ):
                judged = given
                asked = _int8_on_dla(asked, board, out / "dla", notes)
            job = prepare(asked)
            job = replace(job, fallback=job.fallback or file.fallback)
            if images is not None:
                from trtq.commands.evaluate import require_numbers

                require_numbers(images, get_metadata(judged or job.model), source.parent)
            return _Deployment(
                spec, agent, board, job, judged or job.model, out, [*notes, *job.notes], told, began
            ).run()


def _int8_on_dla(asked: BuildSpec, board: Board, folder: Path, notes: list[str]) -> BuildSpec:
    """Ask for a Q/DQ file in the form a DLA takes.

    That is the float file and a calibration cache with the same scales.

    Raises:
        BoardError: the board has no trtexec: only that reads caches here.
    """
    if not board.has_trtexec or board.number is None:
        mend = (
            "on the board: sudo apt-get install libnvinfer-bin; or give the float file, which "
            "runs on the DLA in FP16"
        )
        raise BoardError(
            f"Cannot build INT8 for the DLA of {board.name}",
            "there is no trtexec to read the calibration cache",
            mend,
        )
    plain, cache, said = for_dla(Path(asked.onnx), board.number, folder)
    notes.append(
        "a DLA takes no Q/DQ pairs: the float file goes, with the scales of activations in a "
        f"calibration cache for TRT-{board.number}; "
        "TensorRT takes those of weights from the weights"
    )
    notes += said
    return msgspec.structs.replace(asked, onnx=str(plain), calibration=str(cache))


def name_of(model: Path) -> str:
    """Return the name of a model.

    Many files are called model.qdq.onnx, so the folder is part of it.
    """
    folder = model.resolve().parent.name
    return slug(f"{folder}-{model.stem}" if folder else model.stem)


def require_mode(spec: DeployOptions, board: Board) -> None:
    """Refuse a power mode or pinning that the board cannot have, before any work."""
    if spec.power_mode is None and not spec.lock_clocks:
        return
    modes = board.power_mode["modes"]
    if spec.power_mode is not None and modes and spec.power_mode not in modes:
        near = next((m for m in modes if m.lower() == str(spec.power_mode).lower()), None)
        raise UsageError(
            f"{board.name} has no power mode {spec.power_mode}",
            f"it has {', '.join(modes)}",
            f"Write --power-mode {shlex.quote(near or next(iter(modes)))}",
        )
    already = spec.power_mode in (None, board.power_mode["name"]) and (
        not spec.lock_clocks or board.clocks["pinned"]
    )
    if not board.root and not already:
        raise BoardError(
            f"Cannot set the power mode or the clocks of {board.name}",
            "sudo asks for a password there, and trtq never does",
            next((m["mend"] for m in board.missing if "sudo" in m["what"]), ""),
        )


def _images(spec: DeployOptions, note: Callable[[str], None]) -> Source:
    from trtq.data.source import open_source  # a deployment without images does without

    return open_source(spec.data or "", spec.class_index, note)


def power_of(spec: DeployOptions) -> dict[str, Any]:
    """Return what a job wants of the board.

    The agent decides what must be set for it once the board is the job's own.
    """
    return {"mode": spec.power_mode, "pin": spec.lock_clocks}


def _build_spec(spec: DeploySpec, onnx: Path, target: str, board: Board, out: Path) -> BuildSpec:
    asked = f"{target}@{board.release[0]}.{board.release[1]}"
    return BuildSpec(
        onnx=str(onnx),
        target=asked,
        out=str(out / "engine"),
        backend="trtexec",
        precision=spec.precision,
        batch=spec.batch,
        fallback=True,
        workspace=spec.workspace,
        optimization_level=spec.optimization_level,
        dla=spec.dla,
        gpu_fallback=spec.gpu_fallback,
    )


class _Deployment:
    """One run of ``deploy`` once everything is known."""

    def __init__(
        self,
        spec: DeploySpec,
        agent: Agent,
        board: Board,
        job: Job,
        judged: onnx.ModelProto,
        out: Path,
        notes: list[str],
        told: Progress,
        began: float,
    ) -> None:
        self.judged = judged  # what the engine's answers are compared with
        self.spec, self.agent, self.board, self.job, self.out, self.told, self.began = (
            spec,
            agent,
            board,
            job,
            out,
            told,
            began,
        )
        self.note = Notes(told.note)
        self.note(*dict.fromkeys(notes))
        if job.fallback:
            told.note(job.fallback)
        self.power = power_of(spec)
        mode = spec.power_mode or board.power_mode["name"]
        # What an engine depends on: a plan is good for one release on one board in one mode.
        self.key = digest_of(
            {
                "onnx": job.onnx_sha256,
                "spec": {
                    k: v
                    for k, v in msgspec.to_builtins(job.spec).items()
                    if k not in ("onnx", "out", "calibration")
                },
                "calibration": sha256_file(Path(job.spec.calibration))
                if job.spec.calibration
                else None,
                "tensorrt": board.number,
                "model": board.model,
                "capability": board.capability,
                "mode": mode,
                "memory": round((board.memory.get("MemTotal") or 0) / 2**28),
                "pinned": spec.lock_clocks or board.clocks["pinned"],
            }
        )
        self.engine = f"engines/{self.key[:32]}.engine"
        self.altered = False  # whether what lies there must not be taken

    def run(self) -> DeployRecord:
        """Do what is left to do."""
        seen = self._seen()
        manifest, built = self._manifest()
        path = f"{self.board.home}/{self.engine}"
        missing: dict[str, str] = {}
        rows, measured, bench_key = self._bench(manifest, path, seen, missing)
        accuracy = None
        images_key = self._images_key(manifest)
        if self.spec.data is not None:
            try:
                known = (
                    seen.accuracy if seen.images_key == images_key and not self.spec.again else None
                )
                accuracy = known or self._accuracy(manifest, path)
            except BoardError as exc:
                missing["accuracy"] = exc.reason or exc.message
                self.told.note(f"accuracy n/a: {exc}")
        fetched = ""
        if self.spec.fetch_engine:
            name = f"{Path(self.spec.model).stem}.{self.agent.device.name}.engine"
            fetched = str(
                self.agent.download(
                    self.engine,
                    self.out / name,
                    digest=manifest.engine_sha256,
                    most=manifest.engine_bytes,
                )
            )
            write_json(manifest_path(Path(fetched)), manifest)
        mode = (
            self.board.power_mode["name"]
            if (built or measured) and (self.power["mode"] is not None or self.power["pin"])
            else None
        )
        record = DeployRecord(
            schema=SCHEMA,
            verb="deploy",
            spec={
                **msgspec.to_builtins(self.spec),
                "bench_key": bench_key,
                "images_key": images_key,
            },
            key=self.key,
            device=self.agent.device.name,
            address=self.agent.device.address,
            board=msgspec.to_builtins(self.board),
            onnx=self.job.spec.onnx,
            engine=path,
            fetched=fetched,
            built=built,
            manifest=manifest,
            rows=rows,
            measured=measured,
            accuracy=accuracy,
            unavailable=missing,
            notes=self.note.lines,
            sent=self.agent.sent,
            received=self.agent.received,
            seconds=round(time.perf_counter() - self.began, 3),
            restored=mode,
            environment=environment(),
        )
        write_json(self.out / RECORD, record)
        if measured and rows:
            self._remember(record)
        elif not rows:
            # It is of another engine; the history keeps it.
            (self.out / "bench.json").unlink(missing_ok=True)
        return record

    def _seen(self) -> Seen:
        """Return what deploy.json of an earlier run says; nothing where it cannot be read."""
        try:
            record = decode_json((self.out / RECORD).read_bytes(), DeployRecord)
        except (OSError, msgspec.MsgspecError):
            return Seen()
        said = {n: str(record.spec.get(n, "")) for n in ("bench_key", "images_key")}
        return Seen(tuple(record.rows), said["bench_key"], record.accuracy, said["images_key"])

    def _images_key(self, manifest: EngineManifest) -> str:
        spec = self.spec
        if spec.data is None:
            return ""
        from trtq.data.source import fingerprint

        return digest_of(
            [manifest.engine_sha256, fingerprint(spec.data, spec.class_index), spec.images]
        )

    def _manifest(self) -> tuple[EngineManifest, bool]:
        """Return the manifest of the engine on the board, built where it is not there."""
        there = None if self.spec.again else self._there()
        if there is not None:
            return there, False
        job, told = self.job, self.told
        builder = BoardBuilder(
            self.agent,
            self.board,
            self.engine,
            told,
            self.power,
            again=self.spec.again or self.altered,
        )
        settings = job.settings(builder, self.board.number)
        self.note(*job.unkept(settings))
        outcome = build_and_look(builder, job, settings, told)
        manifest = describe(job, builder, settings, outcome)
        self.agent.ask("manifest", name=f"{self.engine}.json", value=msgspec.to_builtins(manifest))
        self._remember_engine(manifest)
        if not self.spec.keep:
            self.agent.ask("remove", names=builder.uploads)
        return manifest, True

    def _there(self) -> EngineManifest | None:
        """Return the manifest of the engine on the board.

        Where it is not the engine that this workstation knows, return None and add a note.
        """
        answer, device = self.agent.ask("engine", name=self.engine), self.agent.device
        if answer["manifest"] is None:
            if answer["changed"]:
                self._rebuild("the engine on the board was changed since it was built")
            return None
        try:
            manifest = board_manifest(answer["manifest"], device.name)
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

    def _bench(
        self, manifest: EngineManifest, path: str, seen: Seen, missing: dict[str, str]
    ) -> tuple[list[BenchRow], bool, str]:
        """Return the rows, whether they were measured now, and what they depend on."""
        spec = self.spec
        same = bool(seen.rows) and all(
            (r.file, r.file_sha256) == (path, manifest.engine_sha256) for r in seen.rows
        )
        known = (list(seen.rows), False, seen.bench_key) if same else ([], False, "")
        if not spec.bench:
            return known
        if not self.board.has_trtexec:
            missing["latency"] = (
                "there is no trtexec on the board (sudo apt-get install libnvinfer-bin)"
            )
            return known
        key = digest_of(
            {
                "engine": manifest.engine_sha256,
                "mode": spec.power_mode or self.board.power_mode["name"],
                "pinned": spec.lock_clocks,
                **{
                    n: getattr(spec, n)
                    for n in ("bench_batch", "duration", "min_samples", "energy", "cuda_graph")
                },
            }
        )
        if (
            seen.bench_key == key
            and seen.rows
            and all(r.valid for r in seen.rows)
            and not spec.again
        ):
            return list(seen.rows), False, key
        from trtq.deploy.measure import measure

        # Of a measurement that was interrupted the job is found again; one that has ended is not
        # taken for a new one.
        under_way = self.out / ".measuring"
        asked = under_way.read_text().split() if under_way.is_file() else []
        nonce = asked[1] if asked[:1] == [key] and len(asked) == 2 else secrets.token_hex(8)
        write_bytes(under_way, f"{key} {nonce}".encode())
        rows = measure(self.agent, self.board, manifest, path, spec, self.power, self.out, nonce)
        under_way.unlink()
        return rows, True, key

    def _accuracy(self, manifest: EngineManifest, path: str) -> Accuracy:
        """Run images on the board, and the ONNX file on the same images here."""
        import numpy as np

        from trtq.data.answers import kind_in, kind_of_array
        from trtq.data.metrics import predictions
        from trtq.data.preprocess import Preprocess, batches
        from trtq.deploy.accuracy import BATCH, BoardRunner
        from trtq.engine.agreement import answers, check_agreement
        from trtq.engine.runner import OnnxRunner

        spec, job = self.spec, self.job
        metadata = get_metadata(job.model)
        stored = metadata.get("preprocess")
        if stored is None:
            raise BoardError(
                f"Cannot run the images of {spec.data}",
                f"{job.spec.onnx} does not say how images become its input",
            )
        source = _images(spec, self.told.note)
        low, _, high = manifest.batch
        size = high if low == high else min(BATCH, high)
        count = min(spec.images, len(source))
        count -= count % size if low == high and count > size else 0
        indices = source.sample(count, 0)
        images = [
            b.numpy() for b in batches(source, indices, msgspec.convert(stored, Preprocess), size)
        ]
        runner = BoardRunner(
            self.agent, self.board, (path, manifest.engine_sha256), size, dla=spec.dla
        )
        got = runner.run(np.concatenate(images))
        source_model = job.source(
            job.settings(BoardBuilder(self.agent, self.board, self.engine, self.told, self.power)),
            self.board.release,
        )
        # The float file of a cache has no codes to compare with.
        built_from = self.judged if job.spec.calibration else source_model
        agreement = check_agreement(
            self.judged,
            built_from,
            images,
            engine=_Answered(got),
            rebuild=_not_there,
            missing=[],
            yardstick=yardstick(job),
        )
        top, reference, scores = None, None, next(iter(got.values()))
        if source.labels is not None and kind_of_array(scores, kind_in(metadata)) == "classes":
            labels = np.asarray([source.labels[i] for i in indices])
            top = 100.0 * float((predictions(scores.astype(np.float64)) == labels).mean())
            here = answers(OnnxRunner(self.judged), images)
            reference = 100.0 * float((predictions(here[next(iter(here))]) == labels).mean())
        return Accuracy(
            images=len(indices),
            data=str(spec.data),
            top1=top,
            reference_top1=reference,
            agreement=agreement,
        )

    def _remember(self, record: DeployRecord) -> None:
        """Put the rows into bench.json and the history, like those measured here."""
        from trtq.bench.history import remember

        said = shlex.join(
            [
                "trtq",
                "deploy",
                self.spec.device,
                self.spec.model,
                *changed_words(self.spec, "device", "model"),
            ]
        )
        bench = BenchRecord(
            schema=SCHEMA,
            verb="bench",
            spec=record.spec,
            command=said,
            rows=record.rows,
            verdicts=[],
            card=self.board.card(record.rows[0].settings),
            valid=record.valid,
            notes=record.notes,
            seconds=record.seconds,
            environment=record.environment,
        )
        write_json(self.out / "bench.json", bench)
        try:
            remember(bench)
        except ArtifactError as exc:
            self.told.note(str(exc))


class _Answered:
    """A runner with precomputed answers, in the order of the batches."""

    label = "the board"

    def __init__(self, outputs: dict[str, Any]) -> None:
        self.outputs, self.place = outputs, 0

    def run(self, batch: Any) -> dict[str, Any]:
        """Return the answers to the next batch."""
        start = self.place
        self.place += len(batch)
        return {k: v[start : self.place] for k, v in self.outputs.items()}

    @property
    def input_shape(self) -> list[Any]:
        """The input shape is not known here."""
        return []


def _not_there(_: Any) -> Any:
    raise BoardError("tensors on the way are not looked at on boards")
