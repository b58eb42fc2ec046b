"""Quantize a captured model with samples, in memory."""

from __future__ import annotations

from dataclasses import replace

from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.samples import ImageSamples, Samples
from trtq.errors import UsageError
from trtq.export.parity import (
    FORCED_IMAGES,
    USUAL_MARGIN_DB,
    ParityRecord,
    require_parity,
    require_same_float,
    require_varying,
)
from trtq.flow.inputs import Inputs
from trtq.flow.model import Model, placed, require_float, stored_ranges
from trtq.flow.pair import mark_fp16_ranges_
from trtq.flow.paper_recipe import attempt_recipe
from trtq.flow.presets import attempt_preset
from trtq.flow.ptq import check_options
from trtq.flow.quantized import Quantized
from trtq.flow.run import Run
from trtq.flow.task import bind_task
from trtq.quant.calibrators import AUTO, require_merge
from trtq.records.quantize import RecipeRecord
from trtq.specs import QuantizeOptions
from trtq.tasks import Task
from trtq.workers import Workers

FEW_IMAGES = 32
USUAL_IMAGES = QuantizeOptions().calib_images
COMPARED = {"values": "SQNR and cosine", "indices": "equal integers"}


def quantize_model(
    model: Model,
    samples: Samples,
    options: QuantizeOptions,
    run: Run | None = None,
    *,
    task: Task | None = None,
    workers: Workers | None = None,
) -> Quantized:
    """Return a model with a number format for every tensor of it.

    Args:
        model: captured, float32; it is not changed.
        samples: for calibration, all of them are used (:func:`choose_samples` draws some).
        options: how to quantize.
        run: the listener, the notes and the clock.
        task: what the outputs mean; default: that of the options, else what is known of the model.
        workers: processes that calibrate together, joined; each has a run of the samples.

    Raises:
        Assisted: this is not the first of several processes, and has calibrated its share.
        TrtqError: nothing to quantize, a method that does not fit, calibration or export failed,
            or torch and ONNX Runtime do not compute the same.
    """
    run, workers = run or Run(), workers or Workers()
    check_options(options)
    _require_shares(samples, options, workers)
    _require_float(model, options, run)
    model = placed(_with_preprocess(model, samples), options.device, run, workers)
    answer = model.answer_kind(samples.classes, scored=samples.dense)
    task = bind_task(task or options.task, model, samples, run)
    inputs = Inputs(
        model=model, samples=samples, answer=answer, run=run, task=task, workers=workers
    )
    fp32 = inputs.export(model.graph.module, options, precision="fp32")
    first = next(inputs.images(FORCED_IMAGES, options.batch_size))
    require_same_float(model.graph.module, fp32, first)
    if answer not in HAVE_PREDICTIONS and (task is None or task.agreement() is None):
        run.note(
            f"the output is not known to be scores of classes: it is compared by {COMPARED[answer]}"
        )
    recipe: RecipeRecord | None = None
    if options.recipe_quant is None:
        done, preset = attempt_preset(inputs, options)
    else:
        (done, recipe), preset = attempt_recipe(inputs, options), None
    require_parity(done.parity)
    if samples.drawn or model.random_weights:
        note_constant(done.parity, run)
    else:
        require_varying(done.parity)
    note_margin(done.parity, run)
    mark_fp16_ranges_(inputs, (fp32, done.qdq))
    return Quantized(
        inputs=inputs, asked=options, done=done, preset=preset, fp32=fp32, recipe=recipe
    )


def _require_shares(samples: Samples, options: QuantizeOptions, workers: Workers) -> None:
    """Refuse several processes where one would have no sample, or where ranges do not merge.

    Raises:
        UsageError: names both numbers, or the calibrator.
    """
    if len(samples) < workers.world:
        raise UsageError(
            f"Cannot calibrate with {workers.world} processes",
            f"there are {len(samples)} calibration samples",
            f"Start at most {len(samples)}: torchrun --nproc-per-node {len(samples)} ...",
        )
    if options.calibrator != AUTO:
        require_merge(options.calibrator, workers)


def _require_float(model: Model, options: QuantizeOptions, run: Run) -> None:
    """Refuse a model that is quantized already, unless its ranges are to be replaced.

    Raises:
        UsageError: it has ranges of its own.
    """
    if not options.requantize:
        require_float(model.module, model.name, "Replace them: --requantize")
        return
    count = stored_ranges(model.module)
    if count:
        run.note(f"the {count} ranges of {model.name} are replaced")
    else:
        run.note(f"{model.name} has no Q/DQ pairs: requantize changes nothing")


def _with_preprocess(model: Model, samples: Samples) -> Model:
    """Return a model that says how the images were made that calibrate it.

    Raises:
        UsageError: it says something else already.
    """
    if samples.preprocess is None or samples.preprocess == model.preprocess:
        return model
    if model.preprocess is None:
        return replace(model, preprocess=samples.preprocess)
    raise UsageError(
        f"The images of {samples.name} are not made as {model.name} takes them",
        f"they have {samples.preprocess}, the model has {model.preprocess}",
        "Open them with the model: trtq.samples(data, model)",
    )


def note_constant(parity: ParityRecord, run: Run) -> None:
    """Note an answer that is the same for every sample where random numbers may be the reason."""
    if parity.constant:
        run.note(
            f"the model gives the same answer for every one of {parity.images} samples: the "
            "comparison with the float model says nothing"
        )


def note_margin(parity: ParityRecord, run: Run) -> None:
    """Note a drift between torch and ONNX Runtime that comes near the quantization error."""
    if parity.margin_db is not None and parity.margin_db < USUAL_MARGIN_DB:
        run.note(
            f"torch and ONNX Runtime differ by {abs(parity.margin_db):.1f} dB "
            f"{'less' if parity.margin_db > 0 else 'more'} than the quantization error (usual: at "
            f"least {USUAL_MARGIN_DB:g} dB less): step by step their codes are equal but for ties, "
            "which multiply in a deep model"
        )


def choose_samples(samples: Samples, options: QuantizeOptions, run: Run) -> Samples:
    """Return the samples to calibrate on, and say where they are few.

    Args:
        samples: all that there are.
        options: how many, and the seed.
        run: receives the notes.
    """
    chosen = samples.take(options.calib_images, options.seed)
    noun = "images" if isinstance(samples, ImageSamples) else "samples"
    if chosen.drawn:  # their number says nothing
        return chosen
    if len(chosen) < options.calib_images:
        wanted = f"{options.calib_images} were asked for"
        if options.calib_images == USUAL_IMAGES:
            wanted = f"fewer than the default of {USUAL_IMAGES}"
        run.note(f"{samples.name} has {len(chosen)} {noun}, {wanted}: all are used")
    if len(chosen) < FEW_IMAGES:
        run.note(
            f"{len(chosen)} calibration {noun} are few, ranges may be too narrow: 256 or more "
            "are usual"
        )
    return chosen
