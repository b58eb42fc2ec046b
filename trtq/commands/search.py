"""``trtq search``: find the widths that meet budgets and accuracy, and measure them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from trtq.commands.loading import open_model, open_preprocess
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Note, Samples
from trtq.errors import UsageError
from trtq.files import SEARCH_JSON
from trtq.flow.candidate import Candidate
from trtq.flow.data import open_samples
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.flow.search import search_models
from trtq.flow.search_checks import check_search, require_labels, require_left
from trtq.flow.search_save import save_search
from trtq.paths import expand_home
from trtq.progress import Progress, Silent
from trtq.quant.formats import read_options
from trtq.records.search import SearchRecord
from trtq.specs import SearchOptions, SearchSpec
from trtq.workspace import Workspace


def search(spec: SearchSpec, progress: Progress | None = None) -> SearchRecord:
    """Search the widths of one model, or models and widths.

    Writes the chosen model with all records to ``spec.out``. An interrupted search continues:
    analyses are resumed, and files that were measured are not measured again.

    Raises:
        UsageError: constraints that contradict each other, or a budget that no width can meet.
        TrtqError: a stage failed.
    """
    run, options = Run(progress or Silent()), SearchOptions.of(spec)
    _check_models(spec)
    check_search(options, read_options(options.bits))
    work = Workspace(Path(spec.out), SEARCH_JSON, run.progress, run.clock)
    with work.locked():
        candidates = [_open(spec, named, options, run) for named in _named(spec)]
        searched = search_models(candidates, options, run, folder=work.folder)
        record = msgspec.structs.replace(searched.record, spec=msgspec.to_builtins(spec))
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
    if spec.checkpoint_key and not (spec.checkpoint or any("=" in c for c in spec.candidates)):
        raise UsageError("--checkpoint-key needs --checkpoint", "it names a part of that file")
    if spec.candidates and spec.checkpoint:
        raise UsageError(
            "--checkpoint does not go with --candidates", hint="Write each as MODEL=CHECKPOINT"
        )


def _named(spec: SearchSpec) -> Iterator[_Named]:
    texts = [c for text in spec.candidates for c in text.split(",") if c]
    if not texts:
        yield _Named(0, spec.model, spec.checkpoint, "")
    for i, text in enumerate(texts):
        model, _, given = text.partition("=")
        checkpoint = expand_home(given, "--candidates") or None
        # two checkpoints of one model are two candidates
        yield _Named(i, model, checkpoint, f"{i}-{model.rpartition(':')[2]}")


def _open(spec: SearchSpec, named: _Named, options: SearchOptions, run: Run) -> Candidate:
    """Return a candidate, captured, with its samples."""
    if named.label:
        run.tell(f"candidate {named.model}")
    note = run.note if named.number == 0 else None  # the same images as the first one's
    key = spec.checkpoint_key if named.checkpoint else None
    own = msgspec.structs.replace(
        spec, model=named.model, candidates=(), checkpoint=named.checkpoint, checkpoint_key=key
    )
    loaded = open_model(own)
    preprocess, about = open_preprocess(own, loaded)
    data, val = _open_data(spec, preprocess, note)
    require_labels(val or data, options, several=bool(named.label))
    if val is None:
        require_left(data, options)
    out = Path(spec.out)
    return Candidate(
        model=Model.of(loaded, preprocess, about),
        data=data,
        val=val,
        number=named.number,
        label=named.label,
        folder=out / "candidates" / named.label if named.label else out,
    )


def _open_data(
    spec: SearchSpec, preprocess: Preprocess, note: Note | None
) -> tuple[Samples, Samples | None]:
    """Return the samples for calibration, and those for accuracy where they are others."""
    data = open_samples(spec.data, preprocess=preprocess, class_index=spec.class_index, note=note)
    if not spec.val:
        return data, None
    index = spec.val_class_index or spec.class_index
    return data, open_samples(spec.val, preprocess=preprocess, class_index=index, note=note)
