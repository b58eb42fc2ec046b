"""Records as a report reads them, with the types of what it reads in their open parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trtq.artifact import FileRecord, check_record, read_json, read_record
from trtq.bench.record import BenchRecord
from trtq.engine.manifest import EngineManifest
from trtq.files import (
    ALLOCATION_JSON,
    ANALYSIS_JSON,
    ENCODINGS,
    EVALUATE_JSON,
    FINETUNE_FOLDER,
    FINETUNE_JSON,
    FRONTIER_JSON,
    MANIFEST_SUFFIX,
    QDQ,
    QUANTIZE_JSON,
    SEARCH_JSON,
    bench_json,
)
from trtq.known_records import known
from trtq.records.allocate import AllocateRecord
from trtq.records.analyze import AnalyzeRecord
from trtq.records.evaluate import EvaluateRecord
from trtq.records.finetune import FinetuneRecord
from trtq.records.quantize import DataFacts, ModelFacts, QuantizeRecord
from trtq.records.search import Frontier, SearchRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SearchFolder:
    """The records that a search left beside its chosen files.

    Attributes:
        record: search.json.
        frontier: frontier.json: measured accuracy against costs.
        allocation: allocation.json: the widths that were chosen.
        analysis: analysis.json: the losses that they were chosen by.
    """

    record: SearchRecord
    frontier: Frontier
    allocation: AllocateRecord
    analysis: AnalyzeRecord


@dataclass(slots=True)
class RunRecords:
    """The records of one folder.

    Attributes:
        model, images: what is read of the open parts of quantize.json.
        evaluate: None when the recipe has no evaluation.
        engines: manifests by file name of the engine, in name order.
        bench: by ``fp32`` and ``qdq``.
        training: finetune/finetune.json, when it started from the encodings here; what was
            evaluated and built is then its result.
        search: of the search that chose the files here, None when there was none.
    """

    quantize: QuantizeRecord
    model: ModelFacts
    images: DataFacts
    evaluate: EvaluateRecord | None
    engines: dict[str, EngineManifest]
    bench: dict[str, BenchRecord]
    training: FinetuneRecord | None
    search: SearchFolder | None = None


def read_run(folder: Path) -> RunRecords:
    """Return the records in ``folder`` that belong together.

    Args:
        folder: of a run. Engines, measurements, an evaluation and a training of other files than
            those that quantize.json names are left out.

    Raises:
        ArtifactError: there is no quantize.json, or a record is damaged.
    """
    quantize = _read(folder / QUANTIZE_JSON, "quantize", QuantizeRecord)
    evaluation, trained = folder / EVALUATE_JSON, folder / FINETUNE_FOLDER / FINETUNE_JSON
    measured = {k: folder / bench_json(k) for k in ("fp32", "qdq")}
    bench = {k: _read(p, "bench", BenchRecord) for k, p in measured.items() if p.is_file()}
    run = RunRecords(
        quantize=quantize,
        model=quantize.facts,
        images=quantize.samples,
        evaluate=_read(evaluation, "evaluate", EvaluateRecord) if evaluation.is_file() else None,
        engines={
            path.stem: _read(path, "build", EngineManifest)
            for path in sorted(folder.glob(f"*{MANIFEST_SUFFIX}"))
        },
        bench={k: record for k, record in bench.items() if record.rows},
        training=_read(trained, "finetune", FinetuneRecord) if trained.is_file() else None,
    )
    _drop_strangers_(run)
    run.search = _read_search(folder, run.quantize)
    return run


def machine_of(record: BenchRecord) -> str:
    """Return the name of the CPU that a record was measured on.

    Returns:
        ``unknown CPU`` where the record does not name it.
    """
    return record.card.cpu or "unknown CPU"


def _read(path: Path, verb: str, kind: type[T]) -> T:
    """Return the record of one verb, once everything that a report reads in it has its type.

    Raises:
        ArtifactError: it is missing, damaged, of another verb or of a newer trtq.
    """
    content = read_json(path, kind=f"{verb} record")
    record = known(content, path, verb, kind=f"{verb} record")
    assert isinstance(record, kind)
    if isinstance(record, (QuantizeRecord, FinetuneRecord)):
        for name in (QDQ, ENCODINGS):  # files that it must vouch for
            check_record(
                record.files.get(name), path, FileRecord, kind=f"{verb} record (files: {name})"
            )
    return record


def _read_search(folder: Path, quantize: QuantizeRecord) -> SearchFolder | None:
    """Return the records of the search that chose these files, None when there was none."""
    names = (SEARCH_JSON, FRONTIER_JSON, ALLOCATION_JSON, ANALYSIS_JSON)
    if not quantize.spec.get("allocation") or not all((folder / n).is_file() for n in names):
        return None
    search = SearchFolder(
        record=_read(folder / SEARCH_JSON, "search", SearchRecord),
        frontier=read_record(folder / FRONTIER_JSON, Frontier, kind="frontier"),
        allocation=_read(folder / ALLOCATION_JSON, "allocate", AllocateRecord),
        analysis=_read(folder / ANALYSIS_JSON, "analyze", AnalyzeRecord),
    )
    return search if search.record.qdq_sha256 == quantize.files[QDQ].sha256 else None


def _drop_strangers_(run: RunRecords) -> None:
    """Keep only what was made from the files that this quantize.json vouches for.

    A folder may hold leftovers of another run.
    """
    own = run.quantize.files
    if run.training is not None and run.training.encodings_sha256 != own[ENCODINGS].sha256:
        run.training = None
    used = {m.onnx_sha256 for m in run.engines.values()} | {
        b.rows[0].file_sha256 for b in run.bench.values()
    }
    if run.evaluate is not None:
        used.add(run.evaluate.onnx_sha256)
    if own[QDQ].sha256 in used:
        # The measured file is the one before training: the training belongs to another run.
        run.training = None
    trained = run.training.files if run.training is not None else {}
    files = {f.sha256 for f in (*own.values(), *trained.values())}
    run.engines = {k: m for k, m in run.engines.items() if m.onnx_sha256 in files}
    run.bench = {k: b for k, b in run.bench.items() if b.rows[0].file_sha256 in files}
    if run.evaluate is not None and run.evaluate.onnx_sha256 not in files:
        run.evaluate = None
