"""``trtq search``: find the widths that meet budgets and accuracy, and measure them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.artifact import spec_values
from trtq.commands.loading import Note, input_of, open_given, open_model, require_val_masks
from trtq.data.opened import Data
from trtq.errors import UsageError
from trtq.files import SEARCH_JSON
from trtq.flow.candidate import Candidate
from trtq.flow.data import samples_from
from trtq.flow.loading import require_no_reading
from trtq.flow.run import Run
from trtq.flow.search import search_models
from trtq.flow.search_checks import check_search, require_labels, require_left
from trtq.flow.search_save import save_search
from trtq.paths import expand_home
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
    candidates = [_open(spec, named, sets, options, run) for named in _named(spec)]
    with work.locked():
        searched = search_models(candidates, options, run, folder=work.folder)
        record = msgspec.structs.replace(searched.record, spec=spec_values(spec))
        save_search(searched, record, work)
    return record


class _Named(NamedTuple):
    """A candidate as it is written."""

    number: int
    model: str
    checkpoint: str | None
    label: str


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
    if spec.candidates and spec.checkpoint:
        raise UsageError(
            "--checkpoint does not go with --candidates", hint="Write each as MODEL=CHECKPOINT"
        )


def _named(spec: SearchSpec) -> Iterator[_Named]:
    """Yield the candidates in order; without any, the model alone, with the label ""."""
    texts = [c for text in spec.candidates for c in text.split(",") if c]
    if not texts:
        yield _Named(0, spec.model, spec.checkpoint, "")
    for i, text in enumerate(texts):
        model, _, given = text.partition("=")
        checkpoint = expand_home(given, "--candidates") or None
        # two checkpoints of one model are two candidates
        yield _Named(i, model, checkpoint, f"{i}-{model.rpartition(':')[2]}")


def _open(
    spec: SearchSpec,
    named: _Named,
    sets: tuple[Data, Data | None],
    options: SearchOptions,
    run: Run,
) -> Candidate:
    """Return a candidate, captured, with its samples."""
    data, val = sets
    if named.label:
        run.tell(f"candidate {named.model}")
    own = msgspec.structs.replace(
        spec, model=named.model, candidates=(), checkpoint=named.checkpoint
    )
    if not named.checkpoint:  # it is about the checkpoints of others
        own = msgspec.structs.replace(own, checkpoint_key=None, checkpoint_match="name")
    loaded = open_model(own)
    given = input_of(own, loaded, data)
    scored = val or data
    if scored.source is not None:  # mistakes are found before the capture
        images = scored.make(None, given.preprocess)
        require_labels(images, options, several=bool(named.label))
        if val is None:
            require_left(images, options)
    model = given.capture(loaded)
    out = Path(spec.out)
    return Candidate(
        model=model,
        data=samples_from(data, model),
        val=None if val is None else samples_from(val, model),
        number=named.number,
        label=named.label,
        folder=out / "candidates" / named.label if named.label else out,
    )


def _open_data(spec: SearchSpec, note: Note) -> tuple[Data, Data | None]:
    """Return the data for calibration, and those for accuracy where they are others."""
    data = open_given(spec, note)
    if not spec.val:
        return data, None
    index = spec.val_class_index or spec.class_index
    other = msgspec.structs.replace(spec, data=spec.val, class_index=index, masks=spec.val_masks)
    return data, open_given(other, note)
