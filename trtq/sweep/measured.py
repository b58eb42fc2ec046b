"""The figures of a run, from its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from trtq.artifact import FileRecord, read_record
from trtq.engine.manifest import EngineManifest
from trtq.errors import ArtifactError
from trtq.files import ENCODINGS, FP32, QDQ, STAGES
from trtq.records.evaluate import EvaluateRecord
from trtq.records.sweep import WEIGHTS, Measured
from trtq.report.contents import RunRecords, read_run
from trtq.report.summary import weight_bytes
from trtq.tasks import Figure

AGREEMENT = "agreement"


class _Stage(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a stage's own record that is read here."""

    parts: dict[str, str]


def measure(folder: Path, files: Mapping[str, FileRecord], *, valid: bool) -> Measured:
    """Return the figures of the run in ``folder``.

    Args:
        folder: with the records that ``trtq run`` wrote.
        files: all that it wrote.
        valid: whether it said that its figures may be used.

    Raises:
        ArtifactError: a record is missing or damaged.
    """
    run = read_run(folder)
    return Measured(
        scores=_scores(run),
        reference=_reference(run.evaluate),
        sizes=_sizes(run, files),
        latency_ms=_latency(run),
        targets=list(dict.fromkeys(m.device for m in run.engines.values())),
        valid=valid,
    )


def _scores(run: RunRecords) -> list[Figure]:
    """Return the scores, the judged one first; without an evaluation that of the parity gate."""
    if run.evaluate is None:
        value = run.quantize.parity.agreement
        known = [] if value is None else [Figure(name=AGREEMENT, value=value)]
        return [*(run.quantize.alike or ()), *known]
    own = [figure for figure, _ in run.evaluate.scores.values() if figure.value is not None]
    first = run.evaluate.measure
    return sorted(own, key=lambda f: f.name != first)


def _reference(evaluate: EvaluateRecord | None) -> list[Figure]:
    pairs = evaluate.scores.values() if evaluate is not None else ()
    return [theirs for _, theirs in pairs if theirs is not None and theirs.value is not None]


def _sizes(run: RunRecords, files: Mapping[str, FileRecord]) -> dict[str, int]:
    sizes = {n: files[n].bytes for n in (FP32, QDQ, ENCODINGS) if n in files}
    packed = weight_bytes(run, packed=True)[1]
    if packed:
        sizes = {WEIGHTS: round(packed), **sizes}
    return sizes | {_engine(m): m.engine_bytes for m in run.engines.values()}


def _engine(manifest: EngineManifest) -> str:
    return f"engine {manifest.device} {'int8' if manifest.has_codes else manifest.precision}"


def _latency(run: RunRecords) -> dict[str, float]:
    medians = {k: r.rows[0].e2e for k, r in run.bench.items()}
    return {
        k: e2e.median.value
        for k, e2e in medians.items()
        if e2e is not None and e2e.median is not None and e2e.median.value is not None
    }


def changed_input(folder: Path, parts: dict[str, dict[str, str]]) -> str:
    """Return what a run read that is not what its address was made from, "" for nothing.

    Args:
        folder: where ``trtq run`` wrote.
        parts: of the address.
    """
    for stage, wanted in parts.items():
        try:
            read = read_record(folder / STAGES / f"{stage}.json", _Stage, kind="stage record").parts
        except ArtifactError:
            return f"the record of its stage {stage} is missing"
        wrong = [name for name, digest in wanted.items() if read.get(name, digest) != digest]
        if wrong:
            return f"{' and '.join(wrong)} of {stage} changed while the sweep ran"
    return ""
