"""``trtq analyze``: the loss of each layer at each width, and the cost of each width."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.artifact import spec_values
from trtq.commands.loading import input_of, open_given, open_model
from trtq.flow.analyze import analyze_model, check_analysis, draw_analysis
from trtq.flow.data import samples_from
from trtq.flow.run import Run
from trtq.progress import Progress, or_silent
from trtq.records.analyze import AnalyzeRecord
from trtq.specs import AnalyzeOptions, AnalyzeSpec
from trtq.workers import Workers
from trtq.workspace import Workspace


def analyze(spec: AnalyzeSpec, progress: Progress | None = None) -> AnalyzeRecord:
    """Measure the sensitivity of every layer of a model and write it to ``spec.out``.

    A plot of the losses is written beside the record, as ``.svg``. With several processes, as
    torchrun starts them, the first one writes.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        TrtqError: any of its branches; what was done of a long metric is kept and taken up by the
            next run.
    """
    run, options = Run(or_silent(progress)), AnalyzeOptions.of(spec)
    out = Path(spec.out)
    work = Workspace.for_file(out, run.progress, clock=run.clock)
    data = open_given(spec, run.note, limit=max(spec.calib_images, spec.images))
    loaded = open_model(spec)
    given = input_of(spec, loaded, data)
    if data.source is not None:  # mistakes are found before the capture
        check_analysis(data.make(None, given.preprocess), options)
    model = given.capture(loaded)
    run.note(*model.notes)
    samples = samples_from(data, model)
    run.clock.lap("capture")
    workers = Workers.from_environment()
    record = analyze_model(model, samples, options, run, workers=workers)
    record = msgspec.structs.replace(record, spec=spec_values(spec))
    if workers.rank == 0:
        work.save(record)
        draw_analysis(record, out)
    return record
