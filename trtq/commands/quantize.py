"""``trtq quantize``: model and samples in, Q/DQ ONNX, encodings and a record out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from trtq.artifact import read_record, spec_values
from trtq.commands.allocation import read_allocation
from trtq.commands.loading import input_of, open_given, open_model
from trtq.commands.together import together
from trtq.errors import UsageError
from trtq.files import MODEL_FILES, QUANTIZE_JSON
from trtq.flow.data import samples_from
from trtq.flow.ptq import check_options
from trtq.flow.quantize import choose_samples, quantize_model
from trtq.flow.run import Run
from trtq.flow.save import write_quantized
from trtq.graph.device import choose_device
from trtq.progress import Progress, Silent, or_silent
from trtq.records.quantize import QuantizeRecord
from trtq.specs import QuantizeOptions, QuantizeSpec
from trtq.workers import Assisted, Workers
from trtq.workspace import Workspace


def quantize(spec: QuantizeSpec, progress: Progress | None = None) -> QuantizeRecord:
    """Quantize a model and write its files to ``OUT``.

    The files are ``model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors`` and
    ``quantize.json``. The record is written last: a folder with quantize.json holds a whole,
    consistent set of files.

    Started by torchrun, the processes share the samples of calibration; the first continues alone
    and writes the files, and all return the same record.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        TrtqError: any of its branches; nothing half-written remains behind.
    """
    workers = Workers.from_environment()
    first, listener = workers.rank == 0, or_silent(progress)
    options = _options(spec)
    run = Run(listener if first else Silent())
    device = choose_device(options.device, workers)
    work = Workspace(Path(spec.out), QUANTIZE_JSON, run.progress, run.clock)
    data = open_given(spec, run.note, limit=spec.calib_images)
    loaded = open_model(spec)
    given = input_of(spec, loaded, data)
    run.clock.lap("load")
    record = None
    with together(work, workers, device, listener.note):
        if first:
            work.remove_leftovers(MODEL_FILES)
        model = given.capture(loaded)
        run.note(*model.notes)
        run.clock.lap("capture")
        samples = choose_samples(samples_from(data, model), options, run)
        if spec.allocation:
            chosen = read_allocation(Path(spec.allocation), model.weights_sha256)
            widths = {name: option.label for name, option in chosen.items()}
            options = msgspec.structs.replace(options, layer_bits=widths)
        with suppress(Assisted):
            quantized = quantize_model(model, samples, options, run, workers=workers)
            record = write_quantized(quantized, work, spec_values(spec))
    return record or read_record(work.folder / QUANTIZE_JSON, QuantizeRecord)


def _options(spec: QuantizeSpec) -> QuantizeOptions:
    """Return how to quantize, after refusing what contradicts itself.

    Raises:
        UsageError: names what contradicts what.
    """
    options = QuantizeOptions.of(spec)
    check_options(options, allocated=bool(spec.allocation))
    if spec.allocation and spec.bits != "w8a8":
        raise UsageError(
            "Give --bits or --allocation, not both",
            f"--bits {spec.bits} and {spec.allocation}",
            "The allocation has the widths",
        )
    return options
