"""The result of ``trtq quantize``."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trtq.artifact import Environment, FileRecord, Record
from trtq.data.preprocess import Preprocess
from trtq.export.parity import ParityRecord
from trtq.tasks.base import Figure

WIDTHS = {"w8a8": "INT8", "mixed": "mixed widths, INT8 containers"}


class QuantizerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One quantizer in quantize.json."""

    name: str
    layer: str
    role: str
    format: str
    granularity: str
    amax: float
    amax_min: float
    channels: int | None
    sqnr_db: float | None
    saturated: float
    low: float
    high: float
    histogram: list[int]
    histogram_limit: float
    runs: str
    extra_ops: int
    computes_in: str


class FloatRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor left in float in quantize.json."""

    name: str
    layer: str
    role: str
    reason: str
    low: float | None
    high: float | None


class MethodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One quantization method that was applied: where it ran, its arguments, what it did."""

    name: str
    label: str
    source: str
    arguments: dict[str, str | int | float | bool]
    did: dict[str, Any]


class TryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt and what the quick check saw.

    Attributes:
        figures: what the task says of the answers against the float model's.
    """

    step: str
    figures: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    agreement: float | None
    equal: float | None = None
    sqnr_db: float | None
    exact: bool = False


class ExtremeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor whose channel ranges differ by orders of magnitude.

    Attributes:
        tensor: name of the activation.
        layers: that read it.
        ratio: largest over low channel range.
            A tenth of the channels is below the low range.
        sqnr_db: of the layers' outputs at 8 bits before anything is done, mean of outputs.
        action: ``balanced`` by factors that move into the next layer; ``scaled`` by a method that
            was chosen anyway; ``float``: the layers remain in float.
        why: of the action.
    """

    tensor: str
    layers: list[str]
    ratio: float
    sqnr_db: float
    action: Literal["balanced", "scaled", "float"]
    why: str

    @property
    def words(self) -> str:
        """The tensor for a person."""
        return (
            f"the channel ranges of {self.tensor} differ {self.ratio:,.0f}:1 (largest to lowest "
            f"tenth; {', '.join(self.layers)} read it): {self.action}, {self.why}"
        )


class PresetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The preset: which family and why, what was applied, and what was tried.

    More is tried when the quick check fails. ``taken`` is the attempt that was written, with its
    ``methods``, ``high_precision`` and ``attention``. ``extremes`` are tensors whose channel ranges
    differ by orders of magnitude.
    """

    family: str
    reason: str
    methods: list[str]
    check: str
    passed: bool
    tried: list[TryRecord]
    taken: str
    high_precision: list[str]
    attention: str
    extremes: list[ExtremeRecord] | msgspec.UnsetType = msgspec.UNSET


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that trtq reads of ``model`` in quantize.json.

    Attributes:
        bits: ``w8a8``, another width, or ``mixed``.
        weight_values: number of values of each layer's weight.
    """

    name: str
    bits: str
    weights: str
    weights_sha256: str
    weight_values: dict[str, int] = {}


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that trtq reads of ``data`` in quantize.json: samples and digests."""

    source: str
    ids_digest: str | None = None
    calibration_sha256: list[str] | str | None = None
    random: object = None


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """How ranges were found.

    Attributes:
        images: how many.
        cache: what the calibration cache had, for a person.
        weights: how weights got theirs.
    """

    calibrator: str
    images: int
    cache: str
    weights: str


def _format_words(label: str) -> str:
    """Return what a format that all tensors have is called in a sentence, "" for INT8 and others.

    >>> _format_words("nvfp4"), _format_words("int4:128")
    ('NVFP4', 'INT4 in blocks of 128 (products in float)')
    """
    width, _, block = label.partition(":")
    if block:
        return f"{width.upper()} in blocks of {block} (products in float)"
    return label.upper() if label in ("fp8", "nvfp4") else ""


class QuantizeRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq quantize``; written as quantize.json.

    Attributes:
        task: what the outputs mean; unset where nothing says so.
        alike: what the task says of the answers against the float model's, without labels.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    preprocess: Preprocess | None
    calibration: Calibrated
    preset: PresetRecord | None
    methods: list[MethodRecord]
    quantizers: list[QuantizerRecord]
    left_in_float: list[FloatRecord]
    parity: ParityRecord
    task: str | msgspec.UnsetType = msgspec.UNSET
    alike: list[Figure] | msgspec.UnsetType = msgspec.UNSET
    files: dict[str, FileRecord]
    notes: list[str]
    seconds: dict[str, float]
    environment: Environment

    def __post_init__(self) -> None:
        msgspec.convert(self.model, ModelFacts)
        msgspec.convert(self.data, DataFacts)

    @property
    def facts(self) -> ModelFacts:
        """The model."""
        return msgspec.convert(self.model, ModelFacts)

    @property
    def samples(self) -> DataFacts:
        """The samples of the calibration."""
        return msgspec.convert(self.data, DataFacts)

    @property
    def summary(self) -> str:
        """One line: what was quantized, what was not, and whether torch and ONNX Runtime agree."""
        p = self.parity
        bits = self.facts.bits
        width = WIDTHS.get(bits, f"{bits.upper()}, INT8 containers")
        labels = {q.format for q in self.quantizers}
        if len(labels) == 1 and (named := _format_words(*labels)):
            width = named
        elif not any(q.computes_in.startswith(("INT8", "FP")) for q in self.quantizers):
            width = "codes that no engine has a kernel for (it computes in float)"
        return (
            f"{len(self.quantizers)} tensors in {width}, {len(self.left_in_float)} left in float; "
            f"output against float on {p.images} {self.images_words}: {self._alike}"
            f"{p.answer.words}; "
            f"parity torch/ONNX Runtime {'passed' if p.passed else 'FAILED'}{self._extremes}"
            f"{self._tried()}"
        )

    @property
    def _extremes(self) -> str:
        found = (self.preset.extremes if self.preset is not None else None) or []
        if not found:
            return ""
        worst = max(e.ratio for e in found)
        return f"; {len(found)} tensors with extreme channels (up to {worst:,.0f}:1)"

    @property
    def _alike(self) -> str:
        return "".join(f"{f.words}, " for f in self.alike or ())

    @property
    def images_words(self) -> str:
        """The source of the ranges in words."""
        if self.samples.random:
            return "random inputs (NOT CALIBRATED)"
        return f"calibration {'samples' if self.preprocess is None else 'images'}"

    def _tried(self) -> str:
        more = self.preset.tried[1:] if self.preset is not None else []
        if not more or self.preset is None:
            return ""
        last = (
            "which was enough"
            if self.preset.passed
            else f"NONE of which was enough: {self.preset.taken} was taken"
        )
        return f"; fell back on {', '.join(t.step for t in more)}, {last}"
