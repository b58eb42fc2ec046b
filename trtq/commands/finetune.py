"""``trtq finetune``: quantization-aware training of a quantized model, and its export.

The export is that of ``trtq quantize``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from trtq.artifact import read_json, read_record, sha256_file, spec_values
from trtq.commands.loading import (
    ModelInput,
    Note,
    input_of,
    open_given,
    open_model,
    require_val_masks,
)
from trtq.commands.together import together
from trtq.data.opened import Data
from trtq.errors import ArtifactError, UsageError
from trtq.files import FINETUNE_JSON, FP32, QDQ
from trtq.flow.data import samples_from
from trtq.flow.finetune import Start, Training
from trtq.flow.finetune_checks import check_samples
from trtq.flow.finetune_save import FILES, save_finetuned
from trtq.flow.run import Run
from trtq.graph.device import choose_device
from trtq.known_records import known
from trtq.models.load import LoadedModel
from trtq.platform.target import check_files
from trtq.progress import Progress, Silent, or_silent
from trtq.quant.encodings import Encodings
from trtq.records.analyze import AnalyzeRecord
from trtq.records.finetune import FinetuneRecord
from trtq.specs import EvaluateSpec, FinetuneOptions, FinetuneSpec
from trtq.workers import Workers
from trtq.workspace import Workspace

CHECKPOINT = "checkpoint"


def finetune(spec: FinetuneSpec, progress: Progress | None = None) -> FinetuneRecord:
    """Train a quantized model and write its files to ``OUT``.

    The files are ``model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors``, ``curves.svg``
    and ``finetune.json``.

    A run that was stopped continues from ``OUT/checkpoint``; on a CPU with as many threads the
    result is the same to the bit. Started by torchrun, the processes share the images of every
    step; the first writes the files, and all return the same record.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        TrtqError: the encodings are of another model, there are no labels, memory ran out, or the
            loss is not finite.
        KeyboardInterrupt: the process was told to stop; the checkpoint was written.
    """
    workers = Workers.from_environment()
    first, listener = workers.rank == 0, or_silent(progress)
    run = Run(listener if first else Silent())
    device = choose_device(spec.device, workers)
    work = Workspace(Path(spec.out), FINETUNE_JSON, run.progress, run.clock)
    request = _open(spec, run)
    with together(work, workers, device, listener.note):
        training = request.capture(Path(spec.out) / CHECKPOINT, run, workers)
        workers.wait()  # no process writes while another still reads
        training.train()
        record = _write(spec, training, work) if first else None
    return record or read_record(work.folder / FINETUNE_JSON, FinetuneRecord)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Inputs of a training, opened before the folder of its results is created.

    Attributes:
        spec: what was asked for.
        options: how to train.
        given: what the model is captured on.
        loaded: the model.
        sets: to learn from, and to measure on.
        encodings: where training starts.
        analysis: ranks the layers; None trains all.
    """

    spec: FinetuneSpec
    options: FinetuneOptions
    given: ModelInput
    loaded: LoadedModel
    sets: tuple[Data, Data | None]
    encodings: Encodings
    analysis: AnalyzeRecord | None

    def capture(self, folder: Path, run: Run, workers: Workers) -> Training:
        """Return the training.

        Args:
            folder: of the checkpoint.
            run: the listener, the notes and the clock.
            workers: the processes that share every step.

        Raises:
            TrtqError: the model, the encodings and the samples do not fit each other.
        """
        model = self.given.capture(self.loaded)
        run.note(*model.notes)
        data, val = self.sets
        samples = samples_from(data, model), None if val is None else samples_from(val, model)
        start = Start(
            model=model,
            encodings=self.encodings,
            name=self.spec.encodings,
            analysis=self.analysis,
            ranking=str(self.spec.sensitivity),
        )
        return Training(start, samples, self.options, folder, run=run, workers=workers)


def _open(spec: FinetuneSpec, run: Run) -> _Request:
    """Return what a training reads.

    Raises:
        TrtqError: something of it is missing, damaged or contradicts the rest.
    """
    options = FinetuneOptions.of(spec)
    _check_request(spec)
    check_files(options)
    analysis = _analysis(Path(spec.sensitivity)) if spec.sensitivity else None
    data, val = _open_data(spec, run.note)
    loaded = open_model(spec)
    given = input_of(spec, loaded, data)
    if data.source is not None:  # mistakes are found before the capture
        images = None if val is None else val.make(None, given.preprocess)
        check_samples(data.make(None, given.preprocess), images, options)
    return _Request(
        spec=spec,
        options=options,
        given=given,
        loaded=loaded,
        sets=(data, val),
        encodings=Encodings.load(Path(spec.encodings)),
        analysis=analysis,
    )


def _check_request(spec: FinetuneSpec) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        UsageError: names what contradicts what.
    """
    if Path(spec.encodings).resolve().parent == Path(spec.out).resolve():
        raise UsageError(
            f"--out {spec.out} is the folder of the encodings",
            "training would overwrite what it starts from",
            "Give another folder",
        )
    require_val_masks(spec)


def _open_data(spec: FinetuneSpec, note: Note) -> tuple[Data, Data | None]:
    """Return the data to learn from and those to measure on."""
    data = open_given(spec, note)
    if spec.val is None:
        return data, None
    index = spec.val_class_index or spec.class_index
    other = msgspec.structs.replace(spec, data=spec.val, class_index=index, masks=spec.val_masks)
    return data, open_given(other, note)


def _analysis(path: Path) -> AnalyzeRecord:
    """Return the record of an analysis.

    Raises:
        ArtifactError: it is none.
    """
    content = read_json(path, kind="analysis")
    record = known(content, path, kind="analysis") if content.get("verb") == "analyze" else None
    if not isinstance(record, AnalyzeRecord):
        raise ArtifactError(
            f"Cannot rank layers by {path}",
            "trtq analyze did not write it",
            "Analyse this model, with its checkpoint",
        )
    return record


def _write(spec: FinetuneSpec, training: Training, work: Workspace) -> FinetuneRecord:
    """Write the best epoch's files, the record last."""
    work.remove_leftovers(FILES)
    finetuned = training.finish()
    evaluation = finetuned.record.evaluation
    if evaluation is not None:
        evaluation = msgspec.structs.replace(evaluation, spec=_evaluated(spec, work))
    record = msgspec.structs.replace(
        finetuned.record,
        evaluation=evaluation,
        spec=spec_values(spec),
        encodings_sha256=sha256_file(Path(spec.encodings)),
    )
    return save_finetuned(finetuned, record, work)


def _evaluated(spec: FinetuneSpec, work: Workspace) -> dict[str, object]:
    """Return what ``trtq evaluate`` must be asked for to measure the same."""
    evaluate_spec = EvaluateSpec(
        onnx=str(work.folder / QDQ),
        reference=str(work.folder / FP32),
        data=spec.val or "",
        class_index=spec.val_class_index or spec.class_index,
        limit=spec.val_limit,
        masks=spec.val_masks,
        task=spec.task,
        ignore_index=spec.ignore_index,
    )
    return spec_values(evaluate_spec)
