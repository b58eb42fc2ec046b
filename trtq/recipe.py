"""Frozen specs: what each verb can be asked. The command line's options and TOML recipes are made from these fields."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from trtq.errors import UsageError, reason, suggest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound="Spec")
Calibrator = Literal["max", "percentile", "entropy", "mse", "ema"]
Preset = Literal["imagenet", "cifar10", "half"]
FORMS = {"input_size": "3x224x224", "batch": "1:8:32", "mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}  # of texts that stand for numbers
OPSET = 20  # of the ONNX files where nothing asks for less: ONNX Runtime and TensorRT 10, 11 and RTX read it
Backend = Literal["auto", "tensorrt-rtx", "tensorrt", "trtexec"]


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all specs: values are checked when a spec is made, unknown fields are refused."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if isinstance(value, Spec) or (isinstance(value, (tuple, list)) and any(isinstance(v, Spec) for v in value)):
                continue
            try:
                msgspec.convert(msgspec.to_builtins(value), kind, strict=True)
            except msgspec.ValidationError as exc:
                raise UsageError(f"Cannot use {option_name(name)} {_show(value)}", str(exc)) from exc

    @classmethod
    def make(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
        """Return a spec from plain values; texts such as ``3x224x224`` or ``0.5,0.5,0.5`` become tuples.

        Args:
            values: by field.
            where: they stand, for errors; default: the spec's name.

        Raises:
            UsageError: an unknown field (the nearest is suggested), a missing one, or a value out of range.
        """
        fields = cls.__struct_fields__
        hints = get_type_hints(cls, include_extras=True)
        for name in values:
            if name not in fields:
                raise UsageError(f"Unknown setting {name!r} {'in ' + where if where else 'for ' + cls.__name__}", mend=suggest(name, fields))
        parsed = {k: parse_text(v, hints[k], k) for k, v in values.items() if v is not None}
        try:
            return msgspec.convert(parsed, cls, strict=False)
        except msgspec.ValidationError as exc:
            why, _, place = str(exc).partition(" - at `$.")
            name = re.split(r"\W", place)[0]
            if name not in values:  # a field is missing
                raise UsageError(f"Cannot use {where or 'these settings for ' + cls.__name__}", str(exc)) from exc
            form = FORMS.get(name) if get_origin(plain_type(hints[name])) is tuple else None
            what = f"{name} = {_show(values[name])} in {where}" if where else f"{option_name(name)} {_show(values[name])}"
            raise UsageError(f"Cannot use {what}", why, f"Write it like {form}" if form else "") from exc


def _show(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def option_name(field: str) -> str:
    """Return the command-line option of a field."""
    return f"--{field.replace('_', '-')}"


def option_words(field: str, value: Any) -> list[str]:
    """Return the words of a command line that set a field to a plain value (as in a record); none for one that is empty."""
    if value is None or value in ({}, [], ""):
        return []
    option = option_name(field)
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, dict):
        return [w for k, v in value.items() for w in (option, f"{k}={v}")]
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, str) for v in value):
            return [w for v in value for w in (option, v)]
        sep = {"input_size": "x", "batch": ":"}.get(field, ",")
        return [option, sep.join(f"{v:g}" for v in value)]
    return [option, str(value)]


def changed_words(spec: Spec, *without: str) -> list[str]:
    """Return the words of a command line for what differs from the spec's defaults; ``without`` are its positional arguments."""
    defaults = {f.name: f.default for f in msgspec.structs.fields(spec)}
    plain = {n: v for n, v in msgspec.to_builtins(spec).items() if n not in without and getattr(spec, n) != defaults[n]}
    return [w for n, v in plain.items() for w in option_words(n, v)]


def plain_type(kind: Any) -> Any:
    """Return a field's type without its metadata and without None."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    args = [a for a in get_args(kind) if a is not type(None)]
    if get_origin(kind) not in (tuple, dict, Literal, None) and type(None) in get_args(kind) and len(args) == 1:
        return plain_type(args[0])
    return kind


def parse_text(value: Any, kind: Any, name: str) -> Any:
    """Split a text that stands for a tuple of numbers: ``3x224x224``, ``0.5,0.5,0.5``, ``1:8:32``."""
    plain = plain_type(kind)
    if not isinstance(value, str) or get_origin(plain) is not tuple or str in get_args(plain):
        return value
    parts = value.replace("x", ",").replace(":", ",").split(",")
    number = float if float in {plain_type(a) for a in get_args(plain)} else int
    try:
        return [number(p) for p in parts]
    except ValueError as exc:
        raise UsageError(f"Cannot read {option_name(name)} {value!r}", "expected numbers", f"Write it like {FORMS.get(name, '1,8,32')}") from exc


Doc = Meta


# Fields that several specs share.
ModelName = Annotated[
    str, Doc(description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory or path/to/file.py:factory.")
]
Checkpoint = Annotated[str | None, Doc(description="Weights: .safetensors, or .pt/.pth (read without running code).")]
CheckpointMatch = Annotated[Literal["name", "order"], Doc(description="How tensors of the checkpoint find theirs in the model.")]
ModelArg = Annotated[dict[str, str | int | float | bool], Doc(description="Keyword argument of the model's factory, K=V; repeatable.")]
AnalyzeMetric = Annotated[
    Literal["l2", "gradient", "hessian", "jsd", "combined"],
    Doc(
        description="l2: each layer's own output. jsd: the model's output distribution with one layer quantized. gradient: of the loss "
        "under perturbed weights. hessian: trace times weight error. combined: hessian and jsd."
    ),
]
Budgets = Annotated[
    tuple[str, ...],
    Doc(
        description="size=1.9MB or size=0.2, bitops=0.1, energy=0.15, latency@xavier=3ms; a number without a unit is a share of the float "
        "model; repeatable."
    ),
]
Correct = Annotated[
    tuple[str, ...],
    Doc(description="DEVICE=FACTOR on predicted latencies, the factor that trtq cost --profile found; repeatable."),
]
Target = Annotated[
    str | None, Doc(description="A device of the hardware table: widths it has no kernels for are refused, such as fp8 on orin.")
]
Masks = Annotated[
    str | None,
    Doc(description="Masks of class indices, one of the same name for each image: a folder, or one inside a .zip (camvid.zip/trainannot)."),
]
IgnoreIndex = Annotated[Annotated[int, Meta(ge=0, le=65535)], Doc(description="Class index of pixels that count for nothing.")]
InputSize = Annotated[tuple[int, int, int] | None, Doc(description="CxHxW; default: the model's own, else 3x224x224.")]


class InputSpec(Spec, frozen=True, kw_only=True):
    """How images become the model's input."""

    data: Annotated[
        str,
        Doc(
            description="Images: a folder of class folders, a flat folder, a .zip of either or a folder inside one, cifar10:DIR, or digits."
        ),
    ] = ""
    class_index: Annotated[str | None, Doc(description="JSON list of folder names in class order; default: sorted folder names.")] = None
    input_size: InputSize = None
    mean: Annotated[tuple[float, ...] | None, Doc(description="Per channel, for pixels in 0..1.")] = None
    std: Annotated[tuple[float, ...] | None, Doc(description="Per channel, for pixels in 0..1.")] = None
    preset: Annotated[Preset | None, Doc(description="Normalisation by name; default: the model's own, else imagenet.")] = None
    resize: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Short side after resizing, pixels; default: input size / 0.875, or no crop for small inputs."),
    ] = None
    crop: Annotated[Annotated[int, Meta(ge=1)] | None, Doc(description="Side of the centre crop, pixels; default: the input size.")] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic"] | None, Doc(description="Resampling; default: the model's own, else bilinear.")
    ] = None


class ModelInputSpec(InputSpec, frozen=True, kw_only=True):
    """A model and the images it is looked at with."""

    model: ModelName
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    model_arg: ModelArg = {}


class BlocksSpec(Spec, frozen=True, kw_only=True):
    """List what a model is made of."""

    model: ModelName
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    model_arg: ModelArg = {}
    input_size: InputSize = None


class AnalyzeSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Measure how much each layer suffers at each width."""

    out: Annotated[str, Doc(description="The JSON file; the plot is written beside it as .svg.")]
    metric: AnalyzeMetric = "jsd"
    bits: Annotated[tuple[str, ...], Doc(
            description="Widths on offer: 2 to 8 for weights and inputs, pairs like w4a8, w4a16 for weights alone, fp8, fp16; repeatable, "
            "or with commas."
        )] = (
        "2", "4", "6", "8",
    )  # fmt: skip
    images: Annotated[int, Meta(ge=1), Doc(description="How many images the metric looks at.")] = 64
    calib_images: Annotated[int, Meta(ge=1), Doc(description="How many images give the ranges.")] = 256
    calibrator: Annotated[Calibrator, Doc(description="How activations get their range.")] = "mse"
    percentile: Annotated[float, Meta(gt=50, le=100), Doc(description="For --calibrator percentile.")] = 99.99
    targets: Annotated[
        Literal["labels", "model"],
        Doc(description="What the loss of gradient and hessian compares with: labels, or the model's own answer."),
    ] = "labels"
    probes: Annotated[int, Meta(ge=2), Doc(description="Most probes of the Hessian; fewer when the order of layers is stable.")] = 50
    trials: Annotated[int, Meta(ge=1), Doc(description="Perturbations a layer, for gradient.")] = 4
    epsilon: Annotated[float, Meta(gt=0), Doc(description="Perturbations have a standard deviation of this over the weight's norm.")] = 1.0
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per forward pass.")] = 16
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses images, probes and perturbations.")] = 0
    calib_cache: Annotated[
        str | None, Doc(description="Folder for what an interrupted analysis has done; default: $TRTQ_CALIB_CACHE, else ./calib_cache.")
    ] = None


class AllocateSpec(Spec, frozen=True, kw_only=True):
    """Choose a width for every layer."""

    analysis: Annotated[str, Doc(description="What trtq analyze wrote.")]
    out: Annotated[str, Doc(description="The JSON file that trtq quantize --allocation reads.")]
    strategy: Annotated[
        Literal["percentile", "greedy", "pareto", "milp"],
        Doc(
            description="percentile: 25 %, 50 %, 25 % of the layers get three widths. greedy: the most sensitive first. pareto: exact for one "
            "budget, with the whole front. milp: exact for any budgets."
        ),
    ] = "milp"
    bits: Annotated[
        tuple[str, ...], Doc(description="Widths to choose from; default: all that were analysed; repeatable, or with commas.")
    ] = ()
    budget: Budgets = ()
    target: Target = None
    correct: Correct = ()


class SearchSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Find widths that meet every budget, and prove it on the exported model."""

    model: Annotated[
        str, Doc(description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory or path/to/file.py:factory.")
    ] = ""
    out: Annotated[str, Doc(description="Folder for the results.")]
    candidates: Annotated[
        tuple[str, ...],
        Doc(
            description="Several models in place of MODEL, each MODEL or MODEL=CHECKPOINT; repeatable, or with commas. The first is the "
            "reference of shares and of --min-accuracy."
        ),
    ] = ()
    budget: Budgets = ()
    min_accuracy: Annotated[
        Annotated[float, Meta(ge=-100, le=100)] | None,
        Doc(description="Top-1 to keep: 0 or below, points against the float model (-1.0); above 0, percent. Without labels: agreement."),
    ] = None
    minimize: Annotated[
        str | None,
        Doc(
            description="size, bitops, energy or latency@DEVICE: make it as small as --min-accuracy allows; default without a budget: size."
        ),
    ] = None
    val: Annotated[
        str | None, Doc(description="Images that accuracy is measured on; default: those of --data that calibration leaves over.")
    ] = None
    val_class_index: Annotated[str | None, Doc(description="Like --class-index, for --val; default: the same.")] = None
    limit: Annotated[Annotated[int, Meta(ge=1)] | None, Doc(description="Measure on at most this many images, drawn evenly.")] = None
    rounds: Annotated[
        int, Meta(ge=1, le=100), Doc(description="Most allocations that are tried for one model, besides 8 bits everywhere.")
    ] = 8
    metric: AnalyzeMetric = "jsd"
    strategy: Annotated[Literal["milp", "greedy"], Doc(description="How widths are chosen within budgets; see trtq allocate.")] = "milp"
    bits: Annotated[tuple[str, ...], Doc(description="Widths on offer, as for trtq analyze; repeatable, or with commas.")] = ("4", "6", "8")
    target: Target = None
    correct: Correct = ()
    images: Annotated[int, Meta(ge=1), Doc(description="How many images the metric looks at.")] = 64
    calib_images: Annotated[int, Meta(ge=1), Doc(description="How many images give the ranges.")] = 256
    calibrator: Annotated[Calibrator, Doc(description="How activations get their range.")] = "mse"
    methods: Annotated[
        Literal["auto", "never", "always"],
        Doc(description="The family's quantization methods: when accuracy does not hold without them (auto), never, or in every try."),
    ] = "auto"
    attention: Annotated[Literal["auto", "int8", "float"], Doc(description="The products of attentions, as for trtq quantize.")] = "auto"
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per forward pass.")] = 16
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses images, probes and perturbations.")] = 0
    calib_cache: Annotated[
        str | None, Doc(description="Folder of the calibration cache; default: $TRTQ_CALIB_CACHE, else ./calib_cache.")
    ] = None


class AdviseSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Say which way of quantizing fits."""

    target: Target = None
    budget: Budgets = ()
    min_accuracy: Annotated[float | None, Doc(description="Points of top-1 against the float model that may go, such as -1.0.")] = None
    train: Annotated[
        str | None, Doc(description="Labelled images one may train on; default: --data, when it has labels and enough of them.")
    ] = None
    result: Annotated[
        str | None, Doc(description="Folder of a trtq run at w8a8 with [evaluate]: its measured accuracy decides whether PTQ is enough.")
    ] = None


class FinetuneSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Train a quantized model further, with its codes in place."""

    out: Annotated[str, Doc(description="Folder for the results.")]
    encodings: Annotated[str, Doc(description="Where training starts: the encodings.safetensors of trtq quantize or search.")]
    masks: Masks = None
    ignore_index: IgnoreIndex = 255
    val: Annotated[str | None, Doc(description="Labelled images that every epoch and the result are measured on.")] = None
    val_class_index: Annotated[str | None, Doc(description="Like --class-index, for --val; default: the same.")] = None
    val_masks: Annotated[str | None, Doc(description="Like --masks, for --val.")] = None
    val_limit: Annotated[Annotated[int, Meta(ge=1)] | None, Doc(description="Measure on at most this many images, drawn evenly.")] = None
    epochs: Annotated[int, Meta(ge=1), Doc(description="Passes over the images.")] = 3
    limit: Annotated[Annotated[int, Meta(ge=1)] | None, Doc(description="Train on this many images an epoch, drawn anew.")] = None
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images a step, over all processes.")] = 64
    accumulate: Annotated[int, Meta(ge=1), Doc(description="Steps whose gradients are added before the weights move.")] = 1
    optimizer: Annotated[Literal["sgd", "adamw"], Doc(description="sgd: with momentum 0.9.")] = "sgd"
    lr: Annotated[float, Meta(gt=0), Doc(description="Learning rate of weights and biases.")] = 1e-3
    lr_amax: Annotated[float, Meta(gt=0), Doc(description="Learning rate of ranges, which are learned as logarithms (Adam).")] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0), Doc(description="Of weights.")] = 0.0
    schedule: Annotated[
        Literal["cosine", "onecycle", "plateau", "constant"],
        Doc(description="Of both learning rates; plateau divides them by ten when an epoch brought nothing."),
    ] = "cosine"
    learn_amax: Annotated[bool, Doc(description="Ranges learn, too (LSQ).")] = True
    loss: Annotated[
        str | None,
        Doc(description="A loss of your own in place of cross-entropy, package.module:function or file.py:function of (answer, wanted)."),
    ] = None
    class_weights: Annotated[
        Literal["none", "log", "median"],
        Doc(description="Weigh classes by how rare they are: 1 / ln(1.02 + share), or median share / share."),
    ] = "none"
    distill: Annotated[
        float, Meta(ge=0, le=1), Doc(description="Share of the loss that asks for the float model's answers instead of the labels.")
    ] = 0.5
    temperature: Annotated[float, Meta(gt=0), Doc(description="Of the answers that are compared.")] = 2.0
    ema: Annotated[float, Meta(ge=0, lt=1), Doc(description="Average the weights over steps with this decay; 0: do not.")] = 0.0
    patience: Annotated[
        Annotated[int, Meta(ge=1)] | None, Doc(description="Stop when this many epochs in a row brought nothing on --val.")
    ] = None
    freeze: Annotated[tuple[str, ...], Doc(description="Layers whose weights and ranges stay: a shell pattern; repeatable.")] = ()
    sensitivity: Annotated[
        str | None, Doc(description="What trtq analyze wrote: train the layers that --worst ranks by it, and leave the others as they are.")
    ] = None
    worst: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Doc(description="Share of the layers to train, the most sensitive first; default: 0.25. Needs --sensitivity."),
    ] = None
    batch_norm: Annotated[
        Literal["folded", "kept"],
        Doc(
            description="folded: into its convolution before training. kept: taken up again behind it, and folded at the end; bears higher rates."
        ),
    ] = "folded"
    freeze_bn: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Doc(description="With --batch-norm kept: its statistics stay from this epoch on, counted from 0."),
    ] = None
    lower_bits: Annotated[
        tuple[int, ...], Doc(description="Bits that narrower layers take in the first epochs, one number an epoch: 8,6 then their own.")
    ] = ()
    codebook: Annotated[
        Annotated[int, Meta(ge=2, le=8)] | None,
        Doc(
            description="Weights as one of 2^N learned values a layer (k-means by moving averages): simulated, no engine has a kernel for it."
        ),
    ] = None
    device: Annotated[
        str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), Doc(description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    ] = "auto"
    amp: Annotated[
        Literal["none", "bf16", "fp16"], Doc(description="Compute convolutions and products in 16 bits; fp16 scales its gradients.")
    ] = "none"
    compile: Annotated[bool, Doc(description="Let torch.compile fuse the step; the first one takes a minute.")] = False
    weight_storage: Annotated[Literal["int8", "int4"], Doc(description="How weights of 4 bits are stored, as for trtq quantize.")] = "int8"
    augment: Annotated[
        Literal["flip-crop", "flip", "none"], Doc(description="flip-crop: mirrored at random, and moved by up to an eighth.")
    ] = "flip-crop"
    opset: Annotated[int, Meta(ge=13, le=21), Doc(description="Of the ONNX files.")] = 20
    parity_images: Annotated[int, Meta(ge=1), Doc(description="Images the parity gate compares torch and ONNX Runtime on.")] = 32
    seed: Annotated[int, Meta(ge=0), Doc(description="Orders the images and draws the augmentation.")] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(2 <= b <= 8 for b in self.lower_bits) or list(self.lower_bits) != sorted(self.lower_bits, reverse=True):
            raise UsageError(
                f"Cannot use --lower-bits {','.join(map(str, self.lower_bits))}", "expected falling numbers from 8 to 2", "Write 8,6"
            )
        if len(self.lower_bits) >= self.epochs:
            why = f"{len(self.lower_bits)} of {self.epochs} epochs would be at wider widths, and none at their own"
            raise UsageError("Cannot use --lower-bits", why, "Give more --epochs")
        for needed, name, given in (
            (self.batch_norm == "kept", "--batch-norm kept", "--freeze-bn" if self.freeze_bn is not None else None),
            (self.val is not None, "--val", "--val-masks" if self.val_masks else None),
            (self.sensitivity is not None, "--sensitivity", "--worst" if self.worst is not None else None),
            (
                self.loss is None and self.distill < 1.0, "the cross-entropy: no --loss, and --distill below 1",
                "--class-weights" if self.class_weights != "none" else None,
            ),
        ):  # fmt: skip
            if given is not None and not needed:
                raise UsageError(f"{given} needs {name}")


class CostSpec(Spec, frozen=True, kw_only=True):
    """Count what a model costs."""

    model: Annotated[
        str,
        Doc(description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory, path/to/file.py:factory, or FILE.onnx."),
    ]
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    model_arg: ModelArg = {}
    seed: Annotated[int, Meta(ge=0), Doc(description="Of random weights where there is no checkpoint.")] = 0
    input_size: InputSize = None
    allocation: Annotated[str | None, Doc(description="What trtq allocate wrote: the widths to count with.")] = None
    bits: Annotated[
        Annotated[str, Meta(pattern=r"^(w[2-8]a[2-8]|fp16|fp32)$")] | None,
        Doc(description="Widths of every layer without an allocation; default: fp32."),
    ] = None
    device: Annotated[
        str | None, Doc(description="Predict the latency there: a device of the hardware table, such as t4, xavier or rtx3080.")
    ] = None
    batch: Annotated[int, Meta(ge=1), Doc(description="Images a call, for the latency.")] = 1
    engine: Annotated[
        str | None, Doc(description="A TensorRT-RTX engine of the model: predict over its own fused kernels, too. Needs --device.")
    ] = None
    profile: Annotated[
        str | None,
        Doc(
            description="Measured layer times on that device (trtexec --exportProfile): say how far the prediction is off. Needs --device."
        ),
    ] = None


class QuantizeSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Calibrate a model and write Q/DQ ONNX, encodings and a record."""

    out: Annotated[str, Doc(description="Folder for the results.")]
    calibrator: Annotated[Calibrator, Doc(description="How activations get their range.")] = "mse"
    percentile: Annotated[float, Meta(gt=50, le=100), Doc(description="For --calibrator percentile.")] = 99.99
    calib_images: Annotated[int, Meta(ge=1), Doc(description="How many images calibration looks at.")] = 256
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per forward pass; changes memory, not results.")] = 16
    bits: Annotated[
        str,
        Meta(pattern=r"^w[2-8]a[2-8]$"),
        Doc(description="Width of weights and activations, w8a8 to w2a2; the first and the last layer and residual shortcuts keep 8."),
    ] = "w8a8"
    allocation: Annotated[str | None, Doc(description="What trtq allocate wrote: a width for every layer, in place of --bits.")] = None
    method: Annotated[
        tuple[str, ...], Doc(description="A quantization method to apply, by name (trtq methods lists them); repeatable.")
    ] = ()
    method_arg: Annotated[dict[str, str | int | float | bool], Doc(description="Argument of a method, NAME.K=V; repeatable.")] = {}
    preset_quant: Annotated[
        Literal["auto", "none", "cnn", "mobile", "vit", "windowed", "hybrid"],
        Doc(
            description="Methods and fallbacks by family of models: auto takes the family from the graph, none does what is asked and "
            "nothing else. Methods that are asked for replace the family's."
        ),
    ] = "auto"
    min_agreement: Annotated[
        float, Meta(ge=0, le=100), Doc(description="Agreement with float on calibration images below which fallbacks are tried, percent.")
    ] = 90.0
    weight_storage: Annotated[
        Literal["int8", "int4"],
        Doc(description="How weights of 4 bits are stored: int4 halves the file, needs --opset 21, and engines then compute in float."),
    ] = "int8"
    attention: Annotated[
        Literal["auto", "int8", "float"],
        Doc(description="The products of attentions: in INT8 where their softmax can be (auto), always, or never."),
    ] = "auto"
    high_precision: Annotated[
        tuple[str, ...], Doc(description="Layers to leave in float: a shell pattern, @first, @last or @anchors (both); repeatable.")
    ] = ()
    opset: Annotated[
        Annotated[int, Meta(ge=13, le=21)] | None,
        Doc(
            description="Of the ONNX files: 13 for TensorRT 8.0 to 8.3, 16 for 8.4 and 8.5, 17 for 8.6 and 9, 20 for 10 and later; default: "
            "what --target reads, else 20."
        ),
    ] = None
    target: Annotated[
        str | None,
        Doc(
            description="A device the files are for, @ a TensorRT version (xavier, nano@8.2): chooses the opset, refuses INT8 where there is none."
        ),
    ] = None
    seed: Annotated[
        int, Meta(ge=0), Doc(description="Chooses the calibration images, and random weights where there is no checkpoint.")
    ] = 0
    parity_images: Annotated[int, Meta(ge=1), Doc(description="Calibration images the parity gate compares torch and ONNX Runtime on.")] = (
        32
    )
    calib_cache: Annotated[
        str | None, Doc(description="Folder of the calibration cache; default: $TRTQ_CALIB_CACHE, else ./calib_cache.")
    ] = None


class EvaluateSpec(InputSpec, frozen=True, kw_only=True):
    """Accuracy of an ONNX file or an engine, and its agreement with another ONNX file."""

    onnx: Annotated[str, Doc(description="The ONNX file, or an engine (.engine, .plan) on the GPU it was built for.")]
    reference: Annotated[str | None, Doc(description="ONNX file to compare predictions and logits with.")] = None
    provider: Annotated[
        Literal["CPU", "CUDA", "TensorRT", "NvTensorRTRTX"],
        Doc(description="Of ONNX Runtime, for an ONNX file; the last two build an engine of their own."),
    ] = "CPU"
    trust: Annotated[bool, Doc(description="Load an engine that has no manifest: loading one can run code that is in it.")] = False
    rebuild: Annotated[bool, Doc(description="Build an engine of another TensorRT or GPU again, beside it, from the file it came from.")] = False
    limit: Annotated[Annotated[int, Meta(ge=1)] | None, Doc(description="Evaluate at most this many images, drawn evenly.")] = None
    masks: Masks = None
    ignore_index: IgnoreIndex = 255
    exclude: Annotated[str | None, Doc(description="A quantize.json: leave out the images it was calibrated on.")] = None
    out: Annotated[str, Doc(description="Folder for evaluate.json: that of the run, and trtq report shows the accuracy.")] = ""
    batch_size: Annotated[int, Meta(ge=1, le=4096), Doc(description="Images per call.")] = 16


class BuildOptions(Spec, frozen=True, kw_only=True):
    """How an engine is built, whatever it is built from."""

    backend: Annotated[Backend, Doc(description="Builder; auto takes tensorrt-rtx where it covers the target, else tensorrt.")] = "auto"
    precision: Annotated[Literal["fp32", "fp16"], Doc(description="Precision of what is not quantized.")] = "fp32"
    batch: Annotated[tuple[int, int, int] | None, Doc(description="MIN:OPT:MAX for a dynamic batch; default 1:8:32.")] = None
    fallback: Annotated[
        bool,
        Doc(
            description="Where the device or the builder lacks what the model needs (INT8 on a Nano, a kernel for one layer), build what it can "
            "instead, and record it."
        ),
    ] = False
    workspace: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Most scratch memory of a kernel, MiB; halved by itself when the builder runs out. Default: what the device has."),
    ] = None
    optimization_level: Annotated[
        Annotated[int, Meta(ge=0, le=5)] | None, Doc(description="Builder optimization level; default: TensorRT's own, 3.")
    ] = None
    timing_cache: Annotated[
        str | None, Doc(description="Timing cache to read and write: the next build is fast, and takes the same kernels.")
    ] = None
    dla: Annotated[Annotated[int, Meta(ge=0, le=1)] | None, Doc(description="Build for this DLA core of Xavier or Orin.")] = None
    gpu_fallback: Annotated[bool, Doc(description="With --dla: what the DLA cannot do runs on the GPU.")] = True
    version_compatible: Annotated[bool, Doc(description="The engine also loads in later releases of the same major version.")] = False
    hardware_compatible: Annotated[
        Literal["none", "ampere+"], Doc(description="ampere+: the engine also loads on other GPUs from compute capability 8.0 on.")
    ] = "none"
    strip_weights: Annotated[bool, Doc(description="Leave the weights out of the engine; refit it before use.")] = False
    data: Annotated[str | None, Doc(description="Images (as for quantize): what was built is held against the ONNX file on them.")] = None
    check_images: Annotated[int, Meta(ge=1), Doc(description="How many of them.")] = 32


class BuildSpec(BuildOptions, frozen=True, kw_only=True):
    """Build a TensorRT engine from an ONNX file."""

    onnx: Annotated[str, Doc(description="The ONNX file.")]
    target: Annotated[
        str,
        Doc(
            description="A device (trtq targets lists them) or a compute capability (sm86), @ a TensorRT version where it matters: nano@8.2."
        ),
    ]
    out: Annotated[str, Doc(description="The engine file; its manifest is written beside it as FILE.engine.json.")]
    calibration: Annotated[
        str | None,
        Doc(description="A calibration cache, for implicit INT8 of a float file: trtexec up to 10.16 (trtq export-calib writes one)."),
    ] = None


class LintSpec(Spec, frozen=True, kw_only=True):
    """Look for what TensorRT would refuse in an ONNX file, or silently compute in float."""

    onnx: Annotated[str, Doc(description="An ONNX file of any origin.")]
    target: Annotated[str, Doc(description="The device that will read it, @ a TensorRT version: rtx3080, orin@10.3.")]
    fix: Annotated[
        str | None, Doc(description="Write a copy here in which what is mechanical is repaired; values stay what they were.")
    ] = None


class AuditSpec(Spec, frozen=True, kw_only=True):
    """Compare what an ONNX file asks for with what an engine computes in."""

    file: Annotated[
        str, Doc(description="An engine that trtq built with TensorRT-RTX, or the .json of trtexec --exportLayerInfo (8.2 to 11).")
    ]
    onnx: Annotated[str, Doc(description="The ONNX file it was built from.")]
    target: Annotated[
        str | None, Doc(description="A device, @ a TensorRT version: name the rule that probably keeps a module in float.")
    ] = None


class ReportSpec(Spec, frozen=True, kw_only=True):
    """Write a page about one run, or about several side by side."""

    run: Annotated[tuple[str, ...], Doc(description="Folders that hold quantize.json and what followed; several are compared.")]
    out: Annotated[str, Doc(description="The HTML file; default: report.html in the folder, or runs/report.html of several.")] = ""
    title: Annotated[str, Doc(description="Heading of the page.")] = ""


class ExportCalibSpec(Spec, frozen=True, kw_only=True):
    """Write the ranges of a Q/DQ file as a calibration cache of TensorRT."""

    onnx: Annotated[str, Doc(description="The Q/DQ file.")]
    target: Annotated[str, Doc(description="The device, @ the TensorRT version that will read it: xavier@8.5.")]
    out: Annotated[str, Doc(description="The cache file; OUT.json says what is in it and what is not.")]
    network: Annotated[
        str | None, Doc(description="The float ONNX that will be built with it; default: model.fp32.onnx beside the Q/DQ file.")
    ] = None
    release_number: Annotated[
        Annotated[int, Meta(ge=8000, le=999999)] | None,
        Doc(description="The number in the header, down to the patch (8502 for 8.5.2): other releases ignore the cache; default: patch 0."),
    ] = None


class ImportCalibSpec(Spec, frozen=True, kw_only=True):
    """Make a Q/DQ file from a calibration cache of TensorRT and the float ONNX it was made for."""

    cache: Annotated[str, Doc(description="The calibration cache, such as calibration.cache.")]
    onnx: Annotated[str, Doc(description="The float ONNX file it was calibrated with.")]
    out: Annotated[str, Doc(description="Folder for the results.")]


class ImportCheckpointSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Take over the ranges of a model that another tool quantized."""

    ranges: Annotated[
        str, Doc(description="A state dict of pytorch-quantization or ModelOpt (.pt, .pth, .safetensors), or AIMET's NAME_torch.encodings.")
    ]
    out: Annotated[str, Doc(description="Folder for the results.")]
    opset: Annotated[int, Meta(ge=13, le=21), Doc(description="Of the ONNX files.")] = OPSET
    parity_images: Annotated[int, Meta(ge=1), Doc(description="Images the parity gate compares torch and ONNX Runtime on.")] = 32
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses those images.")] = 0


class ExportSpec(ModelInputSpec, frozen=True, kw_only=True):
    """One set of encodings as ONNX for several targets."""

    encodings: Annotated[str, Doc(description="encodings.safetensors of trtq quantize, finetune, search or an import.")]
    target: Annotated[tuple[str, ...], Doc(description="A device, @ a TensorRT version where it matters; repeatable.")]
    out: Annotated[str, Doc(description="Folder for the files, one for each target, named after it.")]
    precision: Annotated[
        Literal["fp32", "fp16"], Doc(description="Of what is not quantized. fp16: in FP32 where the images show that FP16 would harm.")
    ] = "fp16"
    half_sqnr: Annotated[
        Annotated[float, Meta(gt=0)], Doc(description="fp16: a tensor that would keep less than this SQNR stays in FP32, dB.")
    ] = 30.0
    images: Annotated[int, Meta(ge=1), Doc(description="Images that ranges are taken from and the files are compared on.")] = 16
    seed: Annotated[int, Meta(ge=0), Doc(description="Chooses those images.")] = 0
    fallback: Annotated[bool, Doc(description="For a device without INT8, write the float model, and record it.")] = False


Percentiles = Annotated[
    tuple[Annotated[float, Meta(gt=0, lt=100)], ...], Doc(description="Shown beside the median; n/a with the number needed where there are too few samples.")
]


class BenchSpec(Spec, frozen=True, kw_only=True):
    """What to measure of ONNX files and engines, and for how long."""

    file: Annotated[tuple[str, ...], Doc(description=".onnx or .engine files.")]
    device: Annotated[str, Doc(description="cpu, cuda:N or ssh:NAME (a board: the file is built there); engines run on a GPU whatever stands here.")] = "cpu"
    mode: Annotated[
        Literal["latency", "throughput", "paced", "cold"],
        Doc(description="One request at a time; several in flight; at a fixed rate with idle time between; with emptied caches."),
    ] = "latency"
    batch: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Doc(description="Images in a request; several are swept.")] = (1,)
    duration: Annotated[Annotated[float, Meta(gt=0)], Doc(description="Shortest measured time after warm-up, seconds.")] = 3.0
    min_samples: Annotated[Annotated[int, Meta(ge=10)], Doc(description="Fewest measured requests.")] = 500
    max_duration: Annotated[Annotated[float, Meta(gt=0)], Doc(description="Longest measured time, whatever is not known by then, seconds.")] = 60.0
    percentiles: Percentiles = (50.0, 90.0, 95.0, 99.0)
    rate: Annotated[Annotated[float, Meta(gt=0)], Doc(description="Mode paced: requests a second.")] = 30.0
    scenario: Annotated[
        Literal["closed", "single", "multi", "offline", "server"],
        Doc(description="Mode throughput: as many in flight as streams, or a pattern of MLPerf Inference (these are no MLPerf results)."),
    ] = "closed"
    streams: Annotated[Annotated[int, Meta(ge=1)], Doc(description="Mode throughput: requests in flight.")] = 2
    latency_bound: Annotated[
        Annotated[float, Meta(gt=0)] | None, Doc(description="Scenario server: the 99th percentile must stay under it, ms.")
    ] = None
    mlperf_like: Annotated[bool, Doc(description="600 s and the number of queries that MLPerf's rules ask for.")] = False
    cuda_graph: Annotated[bool, Doc(description="Launch engines as CUDA graphs where that is possible; the record says what came of it.")] = True
    energy: Annotated[bool, Doc(description="Energy per image: 5 windows under load, idle power before and after.")] = False
    energy_window: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Doc(description="Length of such a window, seconds; default: what the sensor needs, 10 or 20. A shorter one is marked."),
    ] = None
    energy_repeats: Annotated[Annotated[int, Meta(ge=1)], Doc(description="Windows under load.")] = 5
    load: Annotated[bool, Doc(description="Time up to the first answer in new processes, page cache warm and cold.")] = False
    memory: Annotated[bool, Doc(description="Memory of a new process, and the engine's own account.")] = False
    profile: Annotated[bool, Doc(description="Time per layer, by module, beside the predicted one.")] = False
    trtexec: Annotated[bool, Doc(description="A second opinion on engines from trtexec with the same settings.")] = False
    repeat: Annotated[Annotated[int, Meta(ge=1)], Doc(description="Measure that often, loading anew each time, and show the spread.")] = 1
    lock_clocks: Annotated[bool, Doc(description="Hold the GPU's clocks meanwhile, where permitted; they come back even after a kill.")] = False
    verdict: Annotated[bool, Doc(description="Measure INT8 files against their float baseline, taking turns, and say whether they win.")] = True
    baseline: Annotated[str | None, Doc(description="That baseline; default: the FP16 engine or the float ONNX file beside the file.")] = None
    trust: Annotated[bool, Doc(description="Run an engine that has no manifest; loading one can run code that is in it.")] = False
    out: Annotated[str, Doc(description="Folder for bench.json and the samples; default: only the history keeps the record.")] = ""


class CompareSpec(Spec, frozen=True, kw_only=True):
    """Files that take turns on one device, the first against each other one."""

    file: Annotated[tuple[str, ...], Doc(description="Two or more .onnx or .engine files, or two records of trtq bench.")]
    device: Annotated[str, Doc(description="cpu or cuda:N.")] = "cpu"
    batch: Annotated[Annotated[int, Meta(ge=1)], Doc(description="Images in a request.")] = 1
    margin: Annotated[Annotated[float, Meta(ge=0, lt=1)], Doc(description="A smaller difference is none, as a share.")] = 0.01
    block: Annotated[Annotated[float, Meta(gt=0)], Doc(description="Length of a turn, seconds.")] = 0.05
    max_loads: Annotated[Annotated[int, Meta(ge=8)], Doc(description="Most times that each file is loaded and timed.")] = 32
    profile: Annotated[bool, Doc(description="Name the layers that take more time than in the first file.")] = True
    trust: Annotated[bool, Doc(description="Run engines that have no manifest.")] = False
    out: Annotated[str, Doc(description="Folder for compare.json.")] = ""


class GateSpec(Spec, frozen=True, kw_only=True):
    """What a record may be worse than its baseline by."""

    record: Annotated[str, Doc(description="bench.json of the candidate.")]
    baseline: Annotated[str, Doc(description="bench.json to hold it against.")]
    max_slowdown: Annotated[str, Doc(description="Of the median of a request: 3% or 0.03.")] = "3%"
    max_energy: Annotated[str | None, Doc(description="Growth of the energy of an image.")] = None
    max_memory: Annotated[str | None, Doc(description="Growth of the memory of the process.")] = None
    accuracy: Annotated[str | None, Doc(description="Record of trtq evaluate of the candidate (--json).")] = None
    baseline_accuracy: Annotated[str | None, Doc(description="The same of the baseline; default: the reference in the candidate's record.")] = None
    max_accuracy_drop: Annotated[Annotated[float, Meta(ge=0)] | None, Doc(description="Points of top-1 or mIoU.")] = None
    summary: Annotated[str, Doc(description="File to append the table to, such as $GITHUB_STEP_SUMMARY.")] = ""


class DeployOptions(Spec, frozen=True, kw_only=True):
    """How a model gets onto a board, and what is measured there."""

    power_mode: Annotated[str | None, Doc(description="Power mode meanwhile, by name (MAXN, 15W); set back afterwards. Default: as it is.")] = None
    lock_clocks: Annotated[bool, Doc(description="Pin the clocks meanwhile (jetson_clocks); they come back even after a kill.")] = False
    keep: Annotated[bool, Doc(description="Leave the uploaded model on the board; the engine and its manifest stay anyway.")] = False
    fetch_engine: Annotated[bool, Doc(description="Copy the engine here, too.")] = False
    precision: Annotated[Literal["fp32", "fp16"], Doc(description="Precision of what is not quantized.")] = "fp16"
    batch: Annotated[tuple[int, int, int] | None, Doc(description="MIN:OPT:MAX for a dynamic batch; default 1:8:32.")] = None
    workspace: Annotated[
        Annotated[int, Meta(ge=1)] | None, Doc(description="Most scratch memory of a kernel, MiB; default by the board's memory, less when the builder runs out.")
    ] = None
    optimization_level: Annotated[Annotated[int, Meta(ge=0, le=5)] | None, Doc(description="Builder optimization level (8.6 on).")] = None
    dla: Annotated[Annotated[int, Meta(ge=0, le=1)] | None, Doc(description="Build for this DLA core of Xavier or Orin.")] = None
    gpu_fallback: Annotated[bool, Doc(description="With --dla: what the DLA cannot do runs on the GPU.")] = True
    bench: Annotated[bool, Doc(description="Measure load time, latency and memory there.")] = True
    bench_batch: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Doc(description="Images in a request; several are swept.")] = (1,)
    duration: Annotated[Annotated[float, Meta(gt=0)], Doc(description="Shortest measured time, seconds.")] = 5.0
    min_samples: Annotated[Annotated[int, Meta(ge=10)], Doc(description="Fewest measured requests.")] = 200
    energy: Annotated[bool, Doc(description="Energy per image from the board's power rails: 20 s under load, idle power before and after.")] = False
    cuda_graph: Annotated[bool, Doc(description="Launch as CUDA graphs where that is possible.")] = True
    data: Annotated[str | None, Doc(description="Images (as for quantize) to run on the board and hold against the ONNX file.")] = None
    images: Annotated[Annotated[int, Meta(ge=1)], Doc(description="How many of them.")] = 32
    class_index: Annotated[str | None, Doc(description="JSON list of folder names in class order.")] = None
    again: Annotated[bool, Doc(description="Build and measure even what is there and unchanged.")] = False
    patience: Annotated[Annotated[float, Meta(ge=0)], Doc(description="How long to wait for a board that went away, seconds.")] = 600.0


class DeploySpec(DeployOptions, frozen=True, kw_only=True):
    """One model on a board: built there, measured there, kept there."""

    device: Annotated[str, Doc(description="A device that trtq device add knows, or user@host.")]
    model: Annotated[str, Doc(description="An ONNX file, or a recipe.toml whose Q/DQ file is made first.")]
    out: Annotated[str, Doc(description="Folder for the records; default runs/deploy/DEVICE/MODEL.")] = ""


class FleetSpec(DeployOptions, frozen=True, kw_only=True):
    """Several models on several boards, side by side."""

    model: Annotated[tuple[str, ...], Doc(description="ONNX files or recipes; none: every engine that is on the devices.")] = ()
    devices: Annotated[str, Doc(description="Names of devices, separated by commas; default: every one that was added.")] = ""
    out: Annotated[str, Doc(description="Folder for the records and the table.")] = "runs/fleet"


class EvaluateStage(InputSpec, frozen=True, kw_only=True):
    """The ``[evaluate]`` table of a recipe: which images; the model files come from the chain."""

    limit: Annotated[int, Meta(ge=1)] | None = None
    held_out: bool = True
    masks: Masks = None
    ignore_index: IgnoreIndex = 255


class BuildStage(BuildOptions, frozen=True, kw_only=True):
    """One ``[[build]]`` table of a recipe."""

    target: str
    source: Literal["qdq", "fp32"] = "qdq"


class BenchStage(Spec, frozen=True, kw_only=True):
    """The ``[bench]`` table of a recipe."""

    device: str = "cpu"
    batch: Annotated[int, Meta(ge=1)] = 1
    duration: Annotated[float, Meta(gt=0)] = 3.0
    min_samples: Annotated[int, Meta(ge=10)] = 100
    max_duration: Annotated[float, Meta(gt=0)] = 30.0
    verdict: bool = True


class Recipe(Spec, frozen=True, kw_only=True):
    """The whole chain: quantize, finetune, evaluate, build for each target, bench, report."""

    out: str
    quantize: QuantizeSpec
    finetune: FinetuneSpec | None = None
    evaluate: EvaluateStage | None = None
    build: tuple[BuildStage, ...] = ()
    bench: BenchStage | None = None
    title: str = ""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UsageError: missing or not TOML, with line and column.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return tables
    except FileNotFoundError as exc:
        raise UsageError(f"Cannot read the recipe {path}", "there is no such file") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"Cannot read the recipe {path}", reason(exc)) from exc


def _finetune_of(base: QuantizeSpec, table: Mapping[str, Any], *, where: str) -> FinetuneSpec:
    """Return what ``[finetune]`` asks for; model, images and preprocessing are those of ``[quantize]`` unless it says otherwise."""
    fixed = {"out": f"{base.out}/finetune", "encodings": f"{base.out}/encodings.safetensors"}
    wrong = next((k for k in (*fixed, "model", "checkpoint") if k in table), None)
    if wrong is not None:
        raise UsageError(f"[finetune] cannot set {wrong}", "the chain does: it goes on from [quantize]", "Leave it out")
    own = ("seed", "opset", "parity_images", "weight_storage")
    same = {n: getattr(base, n) for n in (*ModelInputSpec.__struct_fields__, *own) if n != "class_index" or "data" not in table}
    return FinetuneSpec.make({**same, **table, **fixed}, where=where)


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file; relative paths stay relative to the current folder.

    Raises:
        UsageError: not TOML, an unknown table or setting (the nearest is suggested), or a value out of range.
    """
    tables = read_toml(path)
    known = ("out", "title", "quantize", "finetune", "evaluate", "build", "bench")
    for key in tables:
        if key not in known:
            raise UsageError(f"Unknown table or setting {key!r} in {path}", mend=suggest(key, known))
    for key in ("quantize", "finetune", "evaluate", "bench"):
        if key in tables and not isinstance(tables[key], dict):
            raise UsageError(f"{key} in {path} must be a table", f"found {tables[key]!r}", f"Write [{key}]")
    if not all(isinstance(b, dict) for b in (tables.get("build") or []) if not isinstance(tables["build"], dict)):
        raise UsageError(f"build in {path} must be a list of tables", mend="Write [[build]]")
    if "quantize" not in tables:
        raise UsageError(f"The recipe {path} has no [quantize] table", mend="It names the model and the images")
    out = str(tables.get("out") or tables["quantize"].get("out") or f"runs/{path.stem}")
    builds = tables.get("build", [])
    if isinstance(builds, dict):
        builds = [builds]
    stages: dict[str, Any] = {
        "out": out,
        "title": str(tables.get("title", path.stem)),
        "quantize": QuantizeSpec.make({**tables["quantize"], "out": out}, where=f"[quantize] of {path}"),
        "build": tuple(BuildStage.make(b, where=f"[[build]] of {path}") for b in builds),
    }
    if "finetune" in tables:
        stages["finetune"] = _finetune_of(stages["quantize"], tables["finetune"], where=f"[finetune] of {path}")
    if "evaluate" in tables:
        stages["evaluate"] = EvaluateStage.make(tables["evaluate"], where=f"[evaluate] of {path}")
    if "bench" in tables:
        stages["bench"] = BenchStage.make(tables["bench"], where=f"[bench] of {path}")
    return Recipe(**stages)
