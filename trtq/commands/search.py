"""``trtq search``: find the widths that meet budgets and accuracy, and measure them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.artifact import spec_values
from trtq.commands.candidates import Named, candidates_of
from trtq.commands.loading import Note, input_of, open_given, open_model, require_val_masks
from trtq.commands.search_each import Referred, search_each
from trtq.data.opened import Data
from trtq.errors import UsageError
from trtq.files import SEARCH_JSON
from trtq.flow.candidate import Candidate
from trtq.flow.data import samples_from
from trtq.flow.loading import require_no_reading
from trtq.flow.run import Run
from trtq.flow.search import measure_reference, search_models
from trtq.flow.search_checks import check_search, require_labels, require_left
from trtq.flow.search_save import save_search
from trtq.progress import Progress, or_silent
from trtq.quant.formats import read_options
from trtq.records.search import SearchRecord
from trtq.specs import SearchOptions, SearchSpec
from trtq.tasks import find_task
from trtq.workspace import Workspace


def search(spec: SearchSpec, progress: Progress | None = None) -> SearchRecord:
    """Search the widths of one model, or models and widths.

    Writes the chosen model with all records to ``spec.out``. An interrupted search continues:
    analyses are resumed, and files that were measured are not measured again.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        UsageError: constraints that contradict each other, or a budget that no width can meet.
        TrtqError: a stage failed.
    """
    run, options = Run(or_silent(progress)), SearchOptions.of(spec)
    if spec.task is not None:
        find_task(spec.task)  # mistakes are found before the models are opened
    _check_models(spec)
    require_val_masks(spec)
    check_search(options, read_options(options.bits))
    work = Workspace(Path(spec.out), SEARCH_JSON, run.progress, run.clock)
    sets = _open_data(spec, run.note)
    reference = None if spec.reference is None else Referred.read(Path(spec.reference))
    opened = [_open(spec, n, sets, options, run) for n in candidates_of(spec)]
    with work.locked():
        if spec.on is not None:
            reference = reference or measure_reference(opened[0], options, Run(run.progress))
            search_each(spec, spec.on, reference, work)
        searched = search_models(opened, options, run, folder=work.folder, reference=reference)
        record = msgspec.structs.replace(searched.record, spec=spec_values(spec))
        save_search(searched, record, work)
    return record


def _check_models(spec: SearchSpec) -> None:
    """Refuse models and checkpoints that contradict each other.

    Raises:
        UsageError: names what contradicts what.
    """
    if bool(spec.model) == bool(spec.candidates):
        raise UsageError(
            "trtq search needs a MODEL or --candidates",
            "it got both" if spec.model else "it got neither",
        )
    if not (spec.checkpoint or any("=" in c for c in spec.candidates)):
        require_no_reading(spec.checkpoint_match, spec.checkpoint_key)
    if spec.on is not None and not spec.candidates:
        raise UsageError(
            f"Cannot use --on {spec.on}",
            "there is one model, and its tries depend on each other",
            "Leave it out, or name several models with --candidates",
        )
    if spec.candidates and spec.checkpoint:
        raise UsageError(
            "--checkpoint does not go with --candidates", hint="Write each as MODEL=CHECKPOINT"
        )


def _open(
    spec: SearchSpec,
    named: Named,
    sets: tuple[Data, Data | None],
    options: SearchOptions,
    run: Run,
) -> Candidate:
    """Return a candidate, captured, with its samples."""
    data, val = sets
    if named.label:
        run.tell(f"candidate {named.model}")
    own = named.alone(spec)
    loaded = open_model(own)
    given = input_of(own, loaded, data)
    scored = val or data
    if scored.source is not None:  # mistakes are found before the capture
        images = scored.make(None, given.preprocess)
        require_labels(images, options, several=bool(named.label or spec.reference))
        if val is None:
            require_left(images, options)
    model = given.capture(loaded)
    return Candidate(
        model=model,
        data=samples_from(data, model),
        val=None if val is None else samples_from(val, model),
        number=named.number,
        label=named.label,
        folder=Path(named.alone(spec).out),
    )


def _open_data(spec: SearchSpec, note: Note) -> tuple[Data, Data | None]:
    """Return the data for calibration, and those for accuracy where they are others."""
    data = open_given(spec, note)
    if not spec.val:
        return data, None
    index = spec.val_class_index or spec.class_index
    other = msgspec.structs.replace(spec, data=spec.val, class_index=index, masks=spec.val_masks)
    return data, open_given(other, note)
