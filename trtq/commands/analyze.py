"""``trtq analyze``: the loss of each layer at each width, and the cost of each width."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.commands.loading import open_model, open_preprocess
from trtq.flow.analyze import analyze_model, check_analysis, draw_analysis
from trtq.flow.data import open_samples
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.progress import Progress, Silent
from trtq.records.analyze import AnalyzeRecord
from trtq.specs import AnalyzeOptions, AnalyzeSpec
from trtq.workers import Workers
from trtq.workspace import Workspace


def analyze(spec: AnalyzeSpec, progress: Progress | None = None) -> AnalyzeRecord:
    """Measure the sensitivity of every layer of a model and write it to ``spec.out``.

    Raises:
        TrtqError: any of its branches; what was done of a long metric is kept and taken up by the
            next run.
    """
    run, options = Run(progress or Silent()), AnalyzeOptions.of(spec)
    out = Path(spec.out)
    work = Workspace.for_file(out, run.progress, clock=run.clock)
    loaded = open_model(spec)
    preprocess, about = open_preprocess(spec, loaded)
    samples = open_samples(
        spec.data, preprocess=preprocess, class_index=spec.class_index, note=run.note
    )
    check_analysis(samples, options)
    model = Model.of(loaded, preprocess, about)
    run.note(*model.notes)
    run.clock.lap("capture")
    workers = Workers.from_environment()
    record = analyze_model(model, samples, options, run, workers=workers)
    record = msgspec.structs.replace(record, spec=msgspec.to_builtins(spec))
    if workers.rank == 0:
        work.save(record)
        draw_analysis(record, out)
    return record
