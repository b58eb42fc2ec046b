"""``trtq.analyze``, ``trtq.search`` and ``trtq.finetune``: objects in, objects out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import nn

from trtq.api import Form, asked_task, listener_of, open_both, quantize, samples
from trtq.data.preprocess import Preprocess
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import UsageError
from trtq.files import FINETUNE_JSON, SEARCH_JSON
from trtq.flow.analyze import analyze_model, draw_analysis
from trtq.flow.candidate import Candidate
from trtq.flow.finetune import Finetuned, Start, finetune_model
from trtq.flow.finetune_save import FILES, save_finetuned
from trtq.flow.model import Model
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.search import Searched, search_models
from trtq.flow.search_checks import check_search
from trtq.flow.search_save import save_search
from trtq.progress import Progress, or_silent
from trtq.python_words import python_words
from trtq.quant.encodings import Encodings
from trtq.quant.formats import read_options
from trtq.records.analyze import AnalyzeRecord
from trtq.records.finetune import FinetuneRecord
from trtq.records.search import SearchRecord
from trtq.scratch import scratch
from trtq.specs import (
    AnalyzeOptions,
    AnalyzeSpec,
    FinetuneOptions,
    FinetuneSpec,
    SearchOptions,
    SearchSpec,
)
from trtq.workspace import Workspace

AnyModel = str | nn.Module | Model | Quantized
Size = tuple[int, int, int]
CHECKPOINT = "checkpoint"


@overload
def analyze(model: AnalyzeSpec, data: Progress | None = None, /) -> AnalyzeRecord: ...
@overload
def analyze(
    model: AnyModel,
    data: object,
    /,
    *,
    out: str | Path | None = None,
    input_size: Size | None = None,
    preprocess: Preprocess | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AnalyzeRecord: ...


@python_words
def analyze(
    model: AnyModel | AnalyzeSpec,
    data: object = None,
    /,
    *,
    out: str | Path | None = None,
    input_size: Size | None = None,
    preprocess: Preprocess | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AnalyzeRecord:
    """Measure how much each layer suffers at each width.

    Args:
        model: an nn.Module in eval mode, a model that ``trtq.load`` captured, its text, or a
            quantized model, whose float model is meant. An :class:`AnalyzeSpec` runs the command
            ``trtq analyze``.
        data: samples, as for ``trtq.quantize``; the metrics ``gradient``, ``hessian`` and
            ``combined`` need targets, unless ``task`` compares all outputs with the model's own.
        out: a JSON file to write; default: none.
        input_size: (C, H, W); default: the model's own, or the inputs of the first samples.
        preprocess: how images become inputs.
        progress: receives progress.
        options: fields of :class:`AnalyzeOptions`: ``metric``, ``bits``, ``images`` ...

    Returns:
        The record, as ``trtq analyze`` writes it.

    Raises:
        UsageError: no width to analyse, or a metric that does not fit the model.
        DataError: the data have no targets, or do not fit.
    """
    if isinstance(model, AnalyzeSpec):
        from trtq.commands.analyze import analyze as run_command

        given = {"out": out, "input_size": input_size, "preprocess": preprocess}
        return run_command(
            model, listener_of(model, data, progress, {**given, "options": options or None})
        )
    name, known = asked_task(options.pop("task", None))
    analyze_options = AnalyzeOptions.make({**_texts(options), "task": name})
    run = Run(or_silent(progress))
    path = None if out is None else Path(out)
    work = None if path is None else Workspace.for_file(path, run.progress)
    form = Form(input_size=input_size, preprocess=preprocess, seed=analyze_options.seed)
    captured, everything = open_both(_float(model), data, form, run)
    record = analyze_model(captured, everything, analyze_options, run, task=known)
    if work is not None and path is not None:
        work.save(record)
        draw_analysis(record, path)
    return record


@overload
def search(model: SearchSpec, data: Progress | None = None, /) -> SearchRecord: ...
@overload
def search(
    model: AnyModel | Sequence[AnyModel],
    data: object,
    /,
    *,
    val: object = None,
    out: str | Path | None = None,
    input_size: Size | None = None,
    preprocess: Preprocess | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Searched: ...


@python_words
def search(
    model: AnyModel | Sequence[AnyModel] | SearchSpec,
    data: object = None,
    /,
    *,
    val: object = None,
    out: str | Path | None = None,
    input_size: Size | None = None,
    preprocess: Preprocess | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Searched | SearchRecord:
    """Find widths that meet every budget, and measure the exported model.

    Args:
        model: as for :func:`analyze`, captured once; several are candidates, the first of them is
            the reference. A :class:`SearchSpec` runs the command ``trtq search`` and returns its
            record.
        data: samples for calibration and analysis, as for ``trtq.quantize``.
        val: samples that accuracy is measured on; default: those of ``data`` that calibration
            leaves over.
        out: a folder for the files of ``trtq search``, from which an interrupted search continues;
            default: no files.
        input_size: (C, H, W); default: the model's own, or the inputs of the first samples.
        preprocess: how images become inputs.
        progress: receives progress.
        options: fields of :class:`SearchOptions`: ``budget``, such as ``{"size": 0.2}`` or
            ``["latency@orin=3ms"]``, ``min_accuracy``, ``task``, ``min_score``, such as
            ``{"mAP": -1.0}``, ``bits`` ...

    Returns:
        The tries and the chosen model in memory; the record for a :class:`SearchSpec`.

    Raises:
        UsageError: constraints that contradict each other, or a budget that no width can meet.
        TrtqError: a stage failed.
    """
    if isinstance(model, SearchSpec):
        from trtq.commands.search import search as run_command

        given = {"val": val, "out": out, "input_size": input_size, "preprocess": preprocess}
        return run_command(
            model, listener_of(model, data, progress, {**given, "options": options or None})
        )
    name, known = asked_task(options.pop("task", None))
    search_options = SearchOptions.make({**_texts(options), "task": name})
    run = Run(or_silent(progress))
    check_search(search_options, read_options(search_options.bits))
    form = Form(input_size=input_size, preprocess=preprocess, seed=search_options.seed)
    work = _workspace(out, SEARCH_JSON, run)
    folder = None if work is None else work.folder
    candidates = list(_candidates(_models(model), (data, val), form, run, folder))
    with nullcontext() if work is None else work.locked():
        searched = search_models(candidates, search_options, run, folder=folder, task=known)
        if work is not None:
            save_search(searched, searched.record, work)
    return searched


def _models(model: AnyModel | Sequence[AnyModel]) -> list[AnyModel]:
    """Return one or several models as a list."""
    if isinstance(model, Sequence) and not isinstance(model, str):
        return list(model)
    return [model]


def _candidates(
    models: Sequence[AnyModel],
    sets: tuple[object, object],
    form: Form,
    run: Run,
    folder: Path | None,
) -> Iterator[Candidate]:
    """Yield every model, captured, with its samples.

    Raises:
        UsageError: there is no model.
    """
    if not models:
        raise UsageError("There is no model to search", hint="Give one or several")
    data, val = (_readable_again(s) for s in sets)
    for number, model in enumerate(models):
        opening = Run()  # the search notes what is to know about each model
        captured, own = open_both(_float(model), data, form, opening)
        if number == 0:
            run.note(*(n for n in opening.note.lines if n not in captured.notes))
        name = captured.name.rpartition(":")[2]
        label = f"{number}-{name}" if len(models) > 1 else ""
        below = folder / "candidates" / label if folder is not None and label else folder
        yield Candidate(
            model=captured,
            data=own,
            val=None if val is None else samples(val, captured),
            number=number,
            label=label,
            folder=below,
        )


def _readable_again(data: object) -> object:
    """Return data that every candidate can read: what can be read only once is kept."""
    return data if data is None or isinstance(data, (str, Path)) else samples(data)


@overload
def finetune(model: FinetuneSpec, data: Progress | None = None, /) -> FinetuneRecord: ...
@overload
def finetune(
    model: AnyModel,
    data: object,
    /,
    *,
    val: object = None,
    encodings: Encodings | str | Path | None = None,
    analysis: AnalyzeRecord | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Finetuned: ...


@python_words
def finetune(
    model: AnyModel | FinetuneSpec,
    data: object = None,
    /,
    *,
    val: object = None,
    encodings: Encodings | str | Path | None = None,
    analysis: AnalyzeRecord | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Finetuned | FinetuneRecord:
    """Train a quantized model further (quantization-aware training).

    Args:
        model: a quantized model; or a float one, as for :func:`analyze`, which starts from
            ``encodings``, or else is quantized with the defaults first. A :class:`FinetuneSpec`
            runs the command ``trtq finetune`` and returns its record.
        data: samples to learn from, with targets unless ``distill`` is 1 or ``task`` is one whose
            answers are no scores of classes. A program's own may vary from pass to pass, and are
            not augmented unless ``augment`` says so.
        val: samples that every epoch and the result are measured on.
        encodings: where training starts.
        analysis: ranks the layers; the worst of them train (``worst``, default: a quarter).
        out: a folder for the files of ``trtq finetune``, from which a stopped run continues;
            default: no files.
        progress: receives progress.
        options: fields of :class:`FinetuneOptions`: ``epochs``, ``lr``, ``task`` ...

    Returns:
        The trained model and its record; the record alone for a :class:`FinetuneSpec`.

    Raises:
        TrtqError: the encodings are of another model, there are no targets, memory ran out, or the
            loss is not finite.
        KeyboardInterrupt: the process was told to stop; with ``out`` the checkpoint was written.
    """
    if isinstance(model, FinetuneSpec):
        from trtq.commands.finetune import finetune as run_command

        given = {"val": val, "encodings": encodings, "analysis": analysis, "out": out}
        return run_command(
            model, listener_of(model, data, progress, {**given, "options": options or None})
        )
    run = Run(or_silent(progress))
    train = _training_samples(data)
    if isinstance(train, TensorSamples) and "augment" not in options:
        options = {**options, "augment": "none"}
        run.note('a program\'s own samples are not augmented: augment="flip" mirrors them')
    name, known = asked_task(options.pop("task", None))
    finetune_options = FinetuneOptions.make({**options, "task": name})
    start = _start(model, train, encodings, run)
    start = replace(start, analysis=analysis)
    sets = (
        samples(train, start.model, note=run.note),
        None if val is None else samples(val, start.model, note=run.note),
    )
    work = _workspace(out, FINETUNE_JSON, run)
    with nullcontext() if work is None else work.locked(), _checkpoints(work) as folder:
        finetuned = finetune_model(start, sets, finetune_options, folder, run, task=known)
        if work is not None:
            work.remove_leftovers(FILES)
            record = save_finetuned(finetuned, finetuned.record, work)
            return Finetuned(record=record, quantized=finetuned.quantized)
    return finetuned


def _training_samples(data: object) -> object:
    """Return data to learn from: a program's own samples may vary from pass to pass."""
    if isinstance(data, (str, Path)):
        return data
    own = samples(data)
    if isinstance(own, TensorSamples):
        own = own.select(range(len(own)))  # the caller's object remains strict
        own.varies = True
    return own


def _start(
    model: AnyModel, train: object, encodings: Encodings | str | Path | None, run: Run
) -> Start:
    """Return where training starts."""
    if isinstance(model, Quantized):
        if encodings is not None:
            raise UsageError(
                "Cannot use encodings with this model", "it is quantized already", "Leave them out"
            )
        return Start(model=model.inputs.model, encodings=model.encodings)
    if encodings is None:
        run.note("the model is not quantized: training starts from trtq.quantize's defaults")
        quantized = quantize(model, train, progress=run.progress)
        return Start(model=quantized.inputs.model, encodings=quantized.encodings)
    captured, _ = open_both(model, train, Form(), run)
    if isinstance(encodings, Encodings):
        return Start(model=captured, encodings=encodings)
    return Start(model=captured, encodings=Encodings.load(Path(encodings)), name=str(encodings))


def _float(model: AnyModel) -> str | nn.Module | Model:
    """Return the float model of a quantized one."""
    return model.inputs.model if isinstance(model, Quantized) else model


def _texts(options: Mapping[str, Any]) -> dict[str, object]:
    """Return options with budgets and widths as the texts that they are on the command line."""
    texts: dict[str, object] = dict(options)
    budget, bits = texts.get("budget"), texts.get("bits")
    if isinstance(budget, Mapping):
        texts["budget"] = tuple(f"{name}={value}" for name, value in budget.items())
    elif isinstance(budget, str):
        texts["budget"] = (budget,)
    if isinstance(bits, (str, int)):
        texts["bits"] = (str(bits),)
    elif isinstance(bits, Iterable):
        texts["bits"] = tuple(str(b) for b in bits)
    return texts


def _workspace(out: str | Path | None, record: str, run: Run) -> Workspace | None:
    """Return the workspace of a folder; None without one."""
    return None if out is None else Workspace(Path(out), record, run.progress, run.clock)


@contextmanager
def _checkpoints(work: Workspace | None) -> Iterator[Path]:
    """Return the folder of checkpoints, which is a temporary one without a workspace."""
    if work is not None:
        yield work.folder / CHECKPOINT
        return
    with scratch("finetune") as folder:
        yield folder
