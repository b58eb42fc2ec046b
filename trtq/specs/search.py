"""Cost and sensitivity of layers, and the choice of widths."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from trtq.errors import UsageError
from trtq.specs.base import Doc, PathDoc
from trtq.specs.fields import (
    AnalyzeMetric,
    BatchSize,
    Budgets,
    CalibCache,
    CalibImages,
    Calibrator,
    Correct,
    IgnoreIndex,
    Masks,
    ModelName,
    Percentile,
    Target,
)
from trtq.specs.inputs import ModelInputSpec
from trtq.specs.options import ComputeDevice, Options, TaskName
from trtq.specs.sweep import Address, Executor

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
    Doc(description="Quantize attention matmuls, as for trtq quantize."),
]


class SearchOptions(Options, frozen=True, kw_only=True):
    """Settings of a search, without model and data."""

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
    reference: Annotated[
        str | None,
        PathDoc(
            description="search.json of another search: shares and --min-accuracy refer to its "
            "float model in place of this one's."
        ),
    ] = None
    on: Annotated[
        Executor | None,
        Doc(
            description="With --candidates: search each on its own first, in processes of this "
            "machine, a Ray cluster or Slurm's queue; default: one after the other here."
        ),
    ] = None
    workers: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="With --on: candidates at a time; default: one for each core."),
    ] = None
    address: Address = ""
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
