"""``trtq advise``: S2's decision matrix (Table IV and section III.C) as a table.

The table looks at data, labels, target and budget. For a Q/DQ file see ``advise_int8``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec

from trtq.artifact import environment, header
from trtq.commands.advise_int8 import advise_int8, quantized_file
from trtq.commands.loading import inputs_of, open_given, open_model, open_preprocess
from trtq.cost.devices import Device, find_device
from trtq.data.adapters import open_data
from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.opened import Data, Request
from trtq.data.preprocess import resolve_preprocess
from trtq.data.samples import Samples
from trtq.errors import ArtifactError, UsageError
from trtq.files import ENCODINGS, EVALUATE_JSON, FP32, QUANTIZE_JSON
from trtq.flow.layer_costs import outline, weights_of
from trtq.flow.model import require_float
from trtq.flow.pricing import Pricing, uniform
from trtq.graph.blocks import family_of
from trtq.graph.capture import capture_inputs
from trtq.known_records import read_known
from trtq.progress import Progress
from trtq.quant.formats import HALF, BitConfig
from trtq.records.advise import AdviseRecord, Facts, Row
from trtq.records.analyze import Outline
from trtq.search.budgets import LATENCY, latency_devices, parse_budgets, read_budgets, within
from trtq.specs import AdviseSpec, ModelInputSpec, option_name, option_words
from trtq.tasks import find_task

FEW, MANY = 128, 5_000  # images: "limited" and "full set" of the table, which gives no numbers
SMALL_LOSS = 0.5  # points: S2 prefers PTQ where INT8 loses less (section III.C)
WIDTHS = (8, 6, 5, 4, 3, 2)
FOR_INT8 = ("engine", "baseline", "measured", "shapes", "batch", "keep_winners", "out")


def _no_int8(f: Facts) -> str | None:
    return f"the {f.target} has no INT8 kernels" if f.int8 is False else None


def _half(f: Facts) -> str | None:
    if max(f.images, f.training) < FEW and (f.bits or 0) >= 8:
        return (
            f"{f.images} images are too few to calibrate with confidence, and the budgets leave "
            "room for FP16 or INT8"
        )
    return None


def _training(f: Facts) -> str | None:
    if f.training < MANY or f.bits is None or f.bits >= 8:
        return None
    if f.bits <= 4:
        return (
            f"the budgets need {f.bits} bits, where rounding cannot be made up for by scaling, "
            f"and {f.training} labelled images are there"
        )
    if f.family in ("vit", "windowed", "hybrid"):
        return f"the budgets need {f.bits} bits, and a model with attentions is sensitive below 8"
    return None


def _select(f: Facts) -> str | None:
    if f.bits is None:
        return "no uniform width meets the budgets"
    if f.int8_change is not None and f.int8_change >= -SMALL_LOSS and f.bits >= 8:
        return None
    if f.bits < 8:
        return f"the budgets need {f.bits} bits on average: which layers can bear it must be found"
    if f.int8_change is not None:
        return (
            f"INT8 everywhere lost {-f.int8_change:.2f} points, more than {SMALL_LOSS}: some "
            "layers must be wider"
        )
    if f.strict and f.labels:
        return (
            f"at most half a point may go, and {f.images} labelled images can tell which layers "
            "cost it"
        )
    return None


def _clipping(f: Facts) -> str | None:
    if f.bits is None or f.bits < 8 or max(f.images, f.training) < FEW:
        return None
    if f.int8_change is not None:
        return f"INT8 by calibration alone was measured and lost {-f.int8_change:.2f} points"
    return f"{max(f.images, f.training)} images give ranges, and 8 bits meet the budgets"


# scenario, data, precision, strategy of S2 Table IV, and when a line fits; the first that fits is
# the advice.
MATRIX: tuple[tuple[str, str, str, str, Callable[[Facts], str | None]], ...] = (
    ("No INT8 arithmetic", "none", "FP16", "FP16 engine, no quantization", _no_int8),
    ("Rapid Prototyping", "Limited", "FP16", "Standard PTQ", _half),
    ("Edge Deployment", "Full Set", "INT8 / INT4", "QAT Fine-Tuning", _training),
    ("High-Accuracy Models", "Full Set", "INT8 / FP16", "QAOF Selection", _select),
    ("High-Throughput CNNs", "Small Set", "INT8", "PTQ + Clipping", _clipping),
)


def advise(spec: AdviseSpec, progress: Progress | None = None) -> AdviseRecord:
    """Return how to quantize a model, or which regions of a quantized one lose from INT8.

    For a float model: the matching lines of S2's Table IV, in trial order, and the commands of the
    first. For a Q/DQ file, the folder of ``trtq quantize`` or an engine: its regions in INT8 and
    in FP16.

    Args:
        spec: what was asked for.
        progress: receives what happens.

    Raises:
        TrtqError: the model, the images, a budget, an engine or the device cannot be read.
    """
    path = quantized_file(spec.model)
    if path is not None:
        return advise_int8(spec, path, progress)
    _require_float_options(spec)
    device = find_device(spec.target) if spec.target else None
    parse_budgets(spec.budget)
    notes: list[str] = []
    source = _images(open_given(spec, notes.append))
    given = Request(text=spec.train or "", note=notes.append)
    train = _images(open_data(given)) if spec.train else source
    # such a task is learned from the float model's answers
    unlabelled = spec.task is not None and find_task(spec.task).kind not in HAVE_PREDICTIONS
    loaded = open_model(spec)
    require_float(loaded.module, loaded.name, "Give the float file that it was made from")
    preprocess, preprocess_notes = open_preprocess(spec, loaded)
    notes += preprocess_notes
    captured = capture_inputs(loaded.module, inputs_of(spec, preprocess.input_size))
    family, counted = family_of(captured.module)
    counts = outline(captured.module, captured.examples, weights_of(captured.module))
    facts = Facts(
        family=family,
        counted=counted,
        images=len(source),
        labels=source.has_targets,
        training=len(train) if train.has_targets or unlabelled else 0,
        target=device.title if device else None,
        int8="int8" in device.peaks if device else None,
        bits=_bits(spec, counts),
        strict=spec.min_accuracy is not None and -SMALL_LOSS <= spec.min_accuracy <= 0,
        int8_change=_measured(spec.result),
    )
    rows = [_row(line, facts) for line in MATRIX]
    taken = next(r for r in rows if r.applies)
    notes += _notes(facts, taken, device)
    return AdviseRecord(
        **header("advise", spec),
        model=loaded.name,
        facts=facts,
        rows=rows,
        strategy=taken.strategy,
        precision=taken.precision,
        commands=_commands(spec, taken.strategy, facts),
        notes=notes,
        environment=environment(),
    )


def _require_float_options(spec: AdviseSpec) -> None:
    """Refuse options of a quantized file, and a float model without images.

    Raises:
        UsageError: names them.
    """
    defaults = {f.name: f.default for f in msgspec.structs.fields(AdviseSpec)}
    given = [n for n in FOR_INT8 if getattr(spec, n) != defaults[n]]
    if given:
        raise UsageError(
            f"{option_name(given[0])} is for a quantized model",
            f"{spec.model} has no Q/DQ pairs",
            "Give what trtq quantize wrote: out/model.qdq.onnx",
        )
    if not spec.data:
        raise UsageError("trtq advise needs --data", hint="See trtq advise --help")


def _images(given: Data) -> Samples:
    """Return images with their labels or boxes.

    Raises:
        UsageError: the samples are no images.
    """
    if given.source is None:
        raise UsageError(
            f"Cannot advise on {given.name}", "its samples are no images", "Give --data IMAGES"
        )
    return given.make(None, resolve_preprocess()[0])


def _row(line: tuple[str, str, str, str, Callable[[Facts], str | None]], facts: Facts) -> Row:
    scenario, data, precision, strategy, fits = line
    why = fits(facts)
    return Row(
        scenario=scenario,
        data=data,
        precision=precision,
        strategy=strategy,
        applies=why is not None,
        why=why or "",
    )


def _bits(spec: AdviseSpec, counts: Outline) -> int | None:
    """Return the widest uniform width that meets every budget.

    16 means FP16; None means that even 2 bits are too many.
    """
    pricing = Pricing(counts, latency_devices(spec.budget))
    budgets = read_budgets(spec.budget, pricing.full())
    for option in (HALF, *(BitConfig(weight=b, input=b) for b in WIDTHS)):
        costs = pricing.totals(uniform(counts, option))
        if within(costs, budgets):
            return option.weight
    return None


def _measured(result: str | None) -> float | None:
    """Return the points that a measured INT8 model lost.

    Raises:
        ArtifactError: nothing was measured there, or it is not INT8.
    """
    if result is None:
        return None
    quantize_record, scored = (
        read_known(Path(result) / QUANTIZE_JSON, "quantize"),
        read_known(Path(result) / EVALUATE_JSON, "evaluate"),
    )
    bits = quantize_record.model.get("bits")
    judged = scored.judged
    if judged is None or judged[1] is None or judged[1].value is None or bits != "w8a8":
        why = (
            f"it is of {bits}" if bits != "w8a8" else "its evaluation has no labels or no reference"
        )
        raise ArtifactError(
            f"Cannot take the INT8 accuracy from {result}",
            why,
            "Give the folder of trtq run at w8a8 with [evaluate]",
        )
    own, reference = judged[0], judged[1].value
    return float(own.gain(reference))


def _notes(facts: Facts, taken: Row, device: Device | None) -> list[str]:
    notes = []
    if facts.bits is None:
        notes.append(
            "no uniform width meets the budgets: a search with --bits 2,4,8 may, a smaller "
            "model will (--candidates)"
        )
    elif facts.bits < 8:
        notes.append(
            "TensorRT has no kernels for convolutions below 8 bits: they run in INT8 "
            "containers, no faster than INT8"
        )
    if taken.strategy.startswith("QAT"):
        notes.append(
            "the search finds widths to start from; its exit code 3 (accuracy does not hold "
            "yet) is what training is for"
        )
    if not facts.labels and facts.training == 0:
        notes.append("without labels accuracy is agreement with the float model")
    if device is None:
        notes.append("no target is given: INT8 kernels are assumed (--target)")
    return notes


PTQ = {
    "Standard PTQ": ("--high-precision", "@anchors"),
    "PTQ + Clipping": ("--calibrator", "mse"),
}  # options of trtq quantize, by strategy


def _commands(spec: AdviseSpec, strategy: str, facts: Facts) -> list[str]:
    """Return the command lines of a strategy."""
    model = _model_words(spec)
    if strategy in PTQ:
        return [_line("quantize", *model, *PTQ[strategy], "--out", "out")]
    if strategy.startswith("FP16"):
        build = (
            f"trtq build out/{FP32} --precision fp16 --backend trtexec "
            f"--target {spec.target or 'TARGET'} --out out/model.engine"
        )
        return [_line("quantize", *model, "--out", "out"), build]
    search = _line("search", *model, *_search_words(spec, facts), "--out", "out")
    if not strategy.startswith("QAT"):
        return [search]
    data = ["--data", spec.train] if spec.train else []
    start = ("--encodings", f"out/{ENCODINGS}", "--out", "qat")
    data += ["--task", spec.task] if spec.task else []
    return [search, _line("finetune", *model, *data, *start)]


def _line(*words: str) -> str:
    return shlex.join(["trtq", *words])


def _model_words(spec: AdviseSpec) -> list[str]:
    """Return the words that name the model and its images."""
    given = msgspec.to_builtins(spec)
    fields = [f for f in msgspec.structs.fields(ModelInputSpec) if f.name != "model"]
    changed = [f.name for f in fields if given[f.name] != f.default]
    return [spec.model, *(w for name in changed for w in option_words(name, given[name]))]


def _search_words(spec: AdviseSpec, facts: Facts) -> list[str]:
    """Return the budgets, the accuracy and the widths of a search."""
    words = [w for budget in spec.budget for w in ("--budget", budget)]
    words += ["--task", spec.task] if spec.task else []
    accuracy = spec.min_accuracy if spec.min_accuracy is not None else -1.0
    words += ["--min-accuracy", f"{accuracy:g}"]
    if not spec.budget:
        words += ["--minimize", f"{LATENCY}@{spec.target}" if spec.target else "size"]
    bits = facts.bits or 0
    words += ["--bits", "8,fp16" if bits >= 8 else "4,6,8" if bits >= 4 else "2,4,6,8"]
    return words + (["--target", spec.target] if spec.target else [])
