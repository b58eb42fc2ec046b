"""What a layer costs and suffers, and how widths are chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.errors import UsageError
from trtq.specs.base import Doc, PathDoc, Spec
from trtq.specs.fields import (
    AnalyzeMetric,
    BatchSize,
    Budgets,
    CalibCache,
    CalibImages,
    Calibrator,
    Checkpoint,
    CheckpointKey,
    CheckpointMatch,
    Correct,
    Dynamic,
    IgnoreIndex,
    Input,
    InputSize,
    Masks,
    ModelArg,
    ModelName,
    OrtLibrary,
    Outputs,
    Percentile,
    Target,
)
from trtq.specs.inputs import ModelInputSpec
from trtq.specs.options import ComputeDevice, Options, TaskName

RangesBy = Annotated[Calibrator, Doc(description="How activations get their range.")]
AnalyzedBits = Annotated[
    tuple[str, ...],
    Doc(
        description="Candidate bit widths: 2 to 8 for weights and inputs, pairs like w4a8, w4a16 "
        "for weights alone, w4a16:128 for those in blocks, fp8, nvfp4, fp16; repeatable, or with "
        "commas."
    ),
]
MetricImages = Annotated[int, Meta(ge=1), Doc(description="How many images the metric looks at.")]
LossTargets = Annotated[
    Literal["labels", "model"],
    Doc(
        description="Reference of the loss of gradient and hessian: labels, or the "
        "model's "
        "own answer."
    ),
]
Probes = Annotated[
    int,
    Meta(ge=2),
    Doc(description="Most probes of the Hessian; fewer when the order of layers is stable."),
]
Trials = Annotated[int, Meta(ge=1), Doc(description="Perturbations a layer, for gradient.")]
Epsilon = Annotated[
    float,
    Meta(gt=0),
    Doc(description="Perturbations have a standard deviation of this over the weight's norm."),
]
Seed = Annotated[int, Meta(ge=0), Doc(description="Chooses images, probes and perturbations.")]
AnalysisCache = Annotated[
    str | None,
    PathDoc(
        description="Folder for what an interrupted analysis has done; default: "
        "$TRTQ_CALIB_CACHE, "
        "else ./calib_cache."
    ),
]


class AnalyzeOptions(Options, frozen=True, kw_only=True):
    """How layers are analysed, without which model and which data."""

    metric: AnalyzeMetric = "jsd"
    task: TaskName = None
    bits: AnalyzedBits = (
        "2",
        "4",
        "6",
        "8",
    )
    images: MetricImages = 64
    calib_images: CalibImages = 256
    calibrator: RangesBy = "mse"
    percentile: Percentile = 99.99
    targets: LossTargets = "labels"
    probes: Probes = 50
    trials: Trials = 4
    epsilon: Epsilon = 1.0
    batch_size: BatchSize = 16
    seed: Seed = 0
    calib_cache: AnalysisCache = None
    device: ComputeDevice = "cpu"


def _require_masks(ignored: int | None, masks: str | None) -> None:
    """Refuse an ignored class without masks that have classes.

    Raises:
        UsageError: there are none.
    """
    if ignored is not None and not masks:
        raise UsageError("--ignore-index needs --masks")


class AnalyzeSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Measure how much each layer suffers at each width."""

    out: Annotated[
        str, PathDoc(description="The JSON file; the plot is written beside it as .svg.")
    ]
    metric: AnalyzeMetric = "jsd"
    task: TaskName = None
    masks: Masks = None
    ignore_index: IgnoreIndex | None = None
    bits: AnalyzedBits = (
        "2",
        "4",
        "6",
        "8",
    )
    images: MetricImages = 64
    calib_images: CalibImages = 256
    calibrator: RangesBy = "mse"
    percentile: Percentile = 99.99
    targets: LossTargets = "labels"
    probes: Probes = 50
    trials: Trials = 4
    epsilon: Epsilon = 1.0
    batch_size: BatchSize = 16
    seed: Seed = 0
    calib_cache: AnalysisCache = None
    device: ComputeDevice = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_masks(self.ignore_index, self.masks)


class AllocateOptions(Options, frozen=True, kw_only=True):
    """How widths are chosen, without of which analysis."""

    strategy: Annotated[
        Literal["percentile", "greedy", "pareto", "milp"],
        Doc(
            description="percentile: 25 %, 50 %, 25 % of the layers get three widths. greedy: "
            "the most "
            "sensitive first. pareto: exact for one "
            "budget, with the whole front. milp: exact for any budgets."
        ),
    ] = "milp"
    bits: Annotated[
        tuple[str, ...],
        Doc(
            description="Widths to choose from; default: all that were analysed; repeatable, or "
            "with "
            "commas."
        ),
    ] = ()
    budget: Budgets = ()
    target: Target = None
    correct: Correct = ()


class AllocateSpec(AllocateOptions, frozen=True, kw_only=True):
    """Choose a width for every layer."""

    analysis: Annotated[str, PathDoc(description="Record of trtq analyze.")]
    out: Annotated[str, PathDoc(description="The JSON file that trtq quantize --allocation reads.")]


MinAccuracy = Annotated[
    Annotated[float, Meta(ge=-100, le=100)] | None,
    Doc(
        description="Top-1, mIoU or mAP to keep: 0 or below, points against the float model "
        "(-1.0); above 0, percent. Without labels: agreement."
    ),
]
MinScore = Annotated[
    dict[str, float],
    Doc(
        description="NAME=VALUE of one score to keep in place of --min-accuracy, such as mAP=-1.0: "
        "0 or below, points against the float model; above 0, the score itself."
    ),
]
Minimize = Annotated[
    str | None,
    Doc(
        description="size, bitops, energy or latency@DEVICE: make it as small as "
        "--min-accuracy or --min-score "
        "allows; default without a budget: size."
    ),
]
Limit = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Doc(description="Measure on at most this many images, drawn evenly."),
]
Rounds = Annotated[
    int,
    Meta(ge=1, le=100),
    Doc(description="Most allocations that are tried for one model, besides 8 bits everywhere."),
]
Strategy = Annotated[
    Literal["milp", "greedy"],
    Doc(description="How widths are chosen within budgets; see trtq allocate."),
]
SearchedBits = Annotated[
    tuple[str, ...],
    Doc(description="Candidate bit widths, as for trtq analyze; repeatable, or with commas."),
]
Methods = Annotated[
    Literal["auto", "never", "always"],
    Doc(
        description="The family's quantization methods: when accuracy does not hold without "
        "them "
        "(auto), never, or in every try."
    ),
]
Attention = Annotated[
    Literal["auto", "int8", "float"],
    Doc(description="The products of attentions, as for trtq quantize."),
]


class SearchOptions(Options, frozen=True, kw_only=True):
    """What a search keeps to, without which model and which data."""

    budget: Budgets = ()
    task: TaskName = None
    min_accuracy: MinAccuracy = None
    min_score: MinScore = {}
    minimize: Minimize = None
    limit: Limit = None
    rounds: Rounds = 8
    metric: AnalyzeMetric = "jsd"
    strategy: Strategy = "milp"
    bits: SearchedBits = ("4", "6", "8")
    target: Target = None
    correct: Correct = ()
    images: MetricImages = 64
    calib_images: CalibImages = 256
    calibrator: RangesBy = "mse"
    percentile: Percentile = 99.99
    methods: Methods = "auto"
    attention: Attention = "auto"
    batch_size: BatchSize = 16
    seed: Seed = 0
    calib_cache: CalibCache = None
    device: ComputeDevice = "cpu"

    @property
    def keeps_score(self) -> bool:
        """Whether a score has a limit."""
        return self.min_accuracy is not None or bool(self.min_score)


class SearchSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Find widths that meet every budget, and prove it on the exported model."""

    model: ModelName = ""
    out: Annotated[str, PathDoc(description="Folder for the results.")]
    candidates: Annotated[
        tuple[str, ...],
        PathDoc(
            description="Several models in place of MODEL, each MODEL or MODEL=CHECKPOINT; "
            "repeatable, "
            "or with commas. The first is the "
            "reference of shares and of --min-accuracy."
        ),
    ] = ()
    budget: Budgets = ()
    task: TaskName = None
    masks: Masks = None
    ignore_index: IgnoreIndex | None = None
    min_accuracy: MinAccuracy = None
    min_score: MinScore = {}
    minimize: Minimize = None
    val: Annotated[
        str | None,
        PathDoc(
            description="Images that accuracy is measured on; default: those of --data that "
            "calibration "
            "leaves over."
        ),
    ] = None
    val_class_index: Annotated[
        str | None, PathDoc(description="Like --class-index, for --val; default: the same.")
    ] = None
    val_masks: Annotated[str | None, PathDoc(description="Like --masks, for --val.")] = None
    limit: Limit = None
    rounds: Rounds = 8
    metric: AnalyzeMetric = "jsd"
    strategy: Strategy = "milp"
    bits: SearchedBits = ("4", "6", "8")
    target: Target = None
    correct: Correct = ()
    images: MetricImages = 64
    calib_images: CalibImages = 256
    calibrator: RangesBy = "mse"
    percentile: Percentile = 99.99
    methods: Methods = "auto"
    attention: Attention = "auto"
    batch_size: BatchSize = 16
    seed: Seed = 0
    calib_cache: CalibCache = None
    device: ComputeDevice = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_masks(self.ignore_index, self.masks or self.val_masks)
        if self.val_masks and not self.val:
            raise UsageError("--val-masks needs --val")


class AdviseSpec(ModelInputSpec, frozen=True, kw_only=True):
    """Say which way of quantizing fits, or which layers of a quantized model lose from INT8."""

    model: Annotated[
        str,
        PathDoc(
            description="A float model as for trtq quantize; or a quantized one: a Q/DQ ONNX file, "
            "the folder of trtq quantize, or an engine of it."
        ),
    ]
    target: Target = None
    budget: Budgets = ()
    task: TaskName = None
    min_accuracy: Annotated[
        float | None,
        Doc(description="Points of top-1 against the float model that may go, such as -1.0."),
    ] = None
    train: Annotated[
        str | None,
        PathDoc(
            description="Labelled images one may train on; default: --data, when it has labels and "
            "enough of them."
        ),
    ] = None
    result: Annotated[
        str | None,
        PathDoc(
            description="Folder of a trtq run at w8a8 with [evaluate]: its measured accuracy "
            "decides "
            "whether PTQ is enough."
        ),
    ] = None
    engine: Annotated[
        str | None,
        PathDoc(
            description="Quantized model: its TensorRT-RTX engine; default: one beside the file. "
            "Its kernels are compared with those of --baseline."
        ),
    ] = None
    baseline: Annotated[
        str | None,
        PathDoc(description="Quantized model: the FP16 engine; default: one beside --engine."),
    ] = None
    measured: Annotated[
        tuple[str, ...],
        PathDoc(
            description="Quantized model: bench.json of trtq bench --profile with the layer times "
            "of the INT8 and of the FP16 file on one device (compare.json has none); repeatable."
        ),
    ] = ()
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="Quantized model: NAME=SHAPE of an input with open axes, such as "
            "images=1x3x640x640; repeatable."
        ),
    ] = ()
    batch: Annotated[int, Meta(ge=1), Doc(description="Quantized model: samples in a call.")] = 1
    keep_winners: Annotated[
        bool,
        Doc(
            description="Quantized model: write it with Q/DQ pairs only where INT8 wins. Needs "
            "--out."
        ),
    ] = False
    out: Annotated[
        str | None, PathDoc(description="Quantized model: folder for advise.json and new files.")
    ] = None


class CostSpec(Spec, frozen=True, kw_only=True):
    """Count what a model costs."""

    model: Annotated[
        str,
        PathDoc(
            description="timm:NAME, torchvision:NAME, trtq:fcn_resnet18, package.module:factory, "
            "path/to/file.py:factory, or FILE.onnx."
        ),
    ]
    checkpoint: Checkpoint = None
    checkpoint_match: CheckpointMatch = "name"
    checkpoint_key: CheckpointKey = None
    model_arg: ModelArg = {}
    seed: Annotated[
        int, Meta(ge=0), Doc(description="Seed of random weights where there is no checkpoint.")
    ] = 0
    input_size: InputSize = None
    input: Input = ()
    dynamic: Dynamic = ()
    outputs: Outputs = ()
    ort_library: OrtLibrary = None
    shapes: Annotated[
        tuple[str, ...],
        Doc(
            description="NAME=SHAPE of an ONNX file's input with open axes, such as "
            "images=1x3x640x640; repeatable."
        ),
    ] = ()
    allocation: Annotated[
        str | None, PathDoc(description="Record of trtq allocate: the widths to count with.")
    ] = None
    bits: Annotated[
        Annotated[
            str,
            Meta(pattern=r"^(w[2-8]a[2-8]|fp16|fp32)$", examples=["w8a8", "w4a8", "fp16", "fp32"]),
        ]
        | None,
        Doc(description="Widths of every layer without an allocation; default: fp32."),
    ] = None
    device: Annotated[
        str | None,
        Doc(
            description="Predict the latency there: a device of the hardware table, such as t4, "
            "xavier "
            "or rtx3080."
        ),
    ] = None
    batch: Annotated[int, Meta(ge=1), Doc(description="Images a call, for the latency.")] = 1
    engine: Annotated[
        str | None,
        PathDoc(
            description="A TensorRT-RTX engine of the model: predict over its own fused "
            "kernels, too. "
            "Needs --device."
        ),
    ] = None
    profile: Annotated[
        str | None,
        PathDoc(
            description="Measured layer times on that device (trtexec --exportProfile): say how "
            "far the "
            "prediction is off. Needs --device."
        ),
    ] = None
