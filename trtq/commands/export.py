"""``trtq export``: one set of encodings as ONNX for every target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtq.artifact import Environment, FileRecord, Record, environment, header
from trtq.commands.loading import input_of, open_given, open_model
from trtq.data.answers import percent_words
from trtq.data.metrics import sqnr_words
from trtq.errors import UsageError
from trtq.files import ENCODINGS, EXPORT_JSON
from trtq.flow.data import samples_from
from trtq.flow.encoded import require_own
from trtq.flow.inputs import origin_of
from trtq.flow.model import placed
from trtq.flow.profiles import ProfileRow, ProfileWriter, require_formats
from trtq.flow.run import Run
from trtq.graph.device import choose_device
from trtq.graph.feed import count_of
from trtq.platform.target import Target
from trtq.progress import Progress, or_silent
from trtq.quant.encodings import Encodings
from trtq.specs import ExportSpec
from trtq.workspace import Workspace, file_records

BATCH = 8


class ExportRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq export``.

    Attributes:
        encodings_sha256: of what was exported.
        profiles: one row for each target.
        images: samples that ranges were taken from and the files compared on.
        notes: every automatic choice.
        files: written, by name.
        environment: software and machine.
    """

    encodings_sha256: str
    profiles: list[ProfileRow]
    images: int
    notes: list[str]
    files: dict[str, FileRecord]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        worst = max((p.scales_ulp for p in self.profiles), default=0)
        clean = sum(not p.findings for p in self.profiles)
        shares = [p.agreement for p in self.profiles if p.agreement is not None]
        sqnrs = [p.sqnr_db for p in self.profiles if p.sqnr_db is not None]
        least = f"SQNR against torch {sqnr_words(min(sqnrs, default=None))}"
        if shares:
            least = f"agreement with torch {percent_words(min(shares))}"
        return (
            f"{len(self.profiles)} targets; scales equal to {worst} ulp; {clean} files without "
            f"findings; least {least} on {self.images} images (ONNX Runtime, CPU)"
        )


def export_profiles(spec: ExportSpec, progress: Progress | None = None) -> ExportRecord:
    """Write ``OUT/TARGET.onnx`` for every target, and ``export.json``.

    Releases without typed graphs get calibration caches, too.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        UsageError: a target is unknown, or lacks INT8 or FP8 and no fallback is allowed, or torch
            has no such device.
        EncodingsError: the encodings are of another model.
    """
    run = Run(or_silent(progress))
    targets = _targets(spec)
    choose_device(spec.device)
    encodings = Encodings.load(Path(spec.encodings))
    for target in targets:
        require_formats(target, encodings, fallback=spec.fallback)
    work = Workspace(Path(spec.out), EXPORT_JSON, run.progress, run.clock)
    if Path(spec.encodings).resolve().parent == work.folder.resolve():
        raise UsageError(
            f"--out {spec.out} is the folder of the encodings",
            "their own record speaks of that folder",
            "Give another folder",
        )
    writer = _writer(spec, encodings, run)
    with work.locked():
        staging = work.staging()
        encodings.save(staging / ENCODINGS)
        run.progress.begin("Writing profiles", len(targets))
        rows = []
        for target in targets:
            rows.append(writer.write(target, staging))
            run.progress.advance(1)
        names = [*_files(rows), ENCODINGS]
        record = ExportRecord(
            **header("export", spec),
            encodings_sha256=encodings.digest(),
            profiles=rows,
            images=sum(count_of(feed) for feed in writer.batches),
            notes=run.note.lines,
            files=file_records(staging / name for name in names),
            environment=environment(),
        )
        work.publish(names, record)
    return record


def _targets(spec: ExportSpec) -> list[Target]:
    """Return the targets.

    Raises:
        UsageError: there is none, or one is unknown.
    """
    if not spec.target:
        raise UsageError(
            "trtq export needs --target",
            "it can be given several times",
            "trtq targets lists what there is",
        )
    return [Target.parse(t) for t in spec.target]


def _writer(spec: ExportSpec, encodings: Encodings, run: Run) -> ProfileWriter:
    """Return what writes the files of this model."""
    loaded = open_model(spec)
    data = open_given(spec, run.note, limit=spec.images)
    given = input_of(spec, loaded, data)
    model = given.capture(loaded)
    run.note(*model.notes)
    require_own(encodings, model.graph.module, spec.encodings, "export")
    samples = samples_from(data, model)
    drawn = samples.take(spec.images, spec.seed)
    size = BATCH if model.graph.dynamic_batch else 1
    answer = model.answer_kind(samples.classes)
    return ProfileWriter(
        model=placed(model, spec.device, run),
        encodings=encodings,
        batches=list(drawn.inputs(spec.images, size, model.input_names)),
        origin={**origin_of(model, answer), "encodings_sha256": encodings.digest()},
        half=spec.precision == "fp16",
        half_sqnr=spec.half_sqnr,
        note=run.note,
    )


def _files(rows: Sequence[ProfileRow]) -> list[str]:
    """Return the names of the files of profiles."""
    names = []
    for row in rows:
        names.append(row.file)
        if row.cache:
            names += [row.cache, row.cache.replace(".cache", ".fp32.onnx")]
    return list(dict.fromkeys(names))
