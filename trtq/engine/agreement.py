"""After a build: does what was built compute what the ONNX file says? On the same images, with what can run here.

The yardstick is the file in ONNX Runtime, every Q/DQ pair as written. Held against it: the model that was really built (FP16 types,
pairs taken out), in ONNX Runtime, and the engine, where its GPU is. A difference must stay below the quantization error of the file
itself, or 30 dB below the signal for a float file. When it does not, tensors on the way are compared, and the first that differs is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from trtq.data.metrics import Array, predictions, ratio_db
from trtq.engine.runner import OnnxRunner, Runner
from trtq.errors import AgreementError
from trtq.export.lint_view import View
from trtq.export.onnx_file import count_qdq
from trtq.export.strip import strip_qdq

FLOAT_SQNR_DB = 30.0
PARTING_DB = 10.0
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Opener = Callable[[onnx.ModelProto], Runner]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One runner against the file in ONNX Runtime.

    Attributes:
        runner: what ran.
        agreement: share of equal predictions, percent.
        sqnr_db: signal to difference; None when there is none.
        margin_db: how far the difference lies below the file's own quantization error; None for a float file.
        parts_at: the first tensor that differs, "" when it agrees.
        passed: within the margin.
    """

    runner: str
    agreement: float
    sqnr_db: float | None
    margin_db: float | None
    parts_at: str
    passed: bool


class AgreementRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, on how many images, and what could not be.

    Attributes:
        images: how many.
        yardstick: what the others were held against.
        comparisons: one for each runner.
        missing: what did not run, and why.
    """

    images: int
    yardstick: str
    comparisons: list[Comparison]
    missing: list[str]

    @property
    def summary(self) -> str:
        """A few words for a person."""
        said = [
            f"{c.runner}: {c.agreement:.1f} % equal predictions, " + ("no difference" if c.sqnr_db is None else f"{c.sqnr_db:.1f} dB")
            for c in self.comparisons
        ]
        return "; ".join([*(said or ["nothing but the file itself ran"]), *self.missing])


def check_agreement(
    model: onnx.ModelProto, source: onnx.ModelProto, images: Sequence[Array], *, engine: Opener | None, missing: Sequence[str]
) -> AgreementRecord:
    """Compare on the same images.

    Args:
        model: the ONNX file.
        source: the model that was built.
        images: batches, float32 [N, C, H, W].
        engine: makes an engine of a model like ``source`` and returns what runs it; None where no engine can run.
        missing: why something is not compared, for the record.
    """
    yardstick = OnnxRunner(model)
    wanted = [_answer(yardstick, b) for b in images]
    error = _quantization_error(model, images, wanted)
    opened: list[tuple[str, Opener]] = []
    if source.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True):
        opened.append(("what was built, in ONNX Runtime", OnnxRunner))
    if engine is not None:
        opened.append(("engine", engine))
    comparisons = [_compare(name, opener, model, source, images, wanted, error) for name, opener in opened]
    return AgreementRecord(
        images=sum(map(len, images)), yardstick="the ONNX file in ONNX Runtime, pairs computed as written", comparisons=comparisons,
        missing=list(missing),
    )  # fmt: skip


def require_agreement(record: AgreementRecord) -> None:
    """Raise when something that ran computes something else.

    Raises:
        AgreementError: says how far apart, and the first tensor that differs.
    """
    for c in record.comparisons:
        if not c.passed:
            far = "it is NaN or infinite" if c.sqnr_db is None else f"the difference is {-c.sqnr_db:.1f} dB of the signal"
            own = "" if c.margin_db is None else f", {-c.margin_db:.1f} dB above the quantization error of the file itself"
            raise AgreementError(
                "The engine does not compute what the ONNX file says", f"{c.runner}: {far}{own}; they part first at {c.parts_at}",
                "Keep that layer in float: trtq quantize ... --high-precision LAYER, or build with --precision fp32",
            )  # fmt: skip


def _answer(runner: Runner, batch: Array) -> Array:
    return next(iter(runner.run(batch).values())).astype(np.float64)


def _quantization_error(model: onnx.ModelProto, images: Sequence[Array], wanted: Sequence[Array]) -> float | None:
    """Return the SQNR of the file against itself without pairs, dB; None for a float file."""
    if not count_qdq(model):
        return None
    plain = OnnxRunner(strip_qdq(model))
    full = [_answer(plain, b) for b in images]
    return ratio_db(sum(float(np.sum(f**2)) for f in full), sum(float(np.sum((f - w) ** 2)) for f, w in zip(full, wanted, strict=True)))


def _compare(
    name: str, opener: Opener, model: onnx.ModelProto, source: onnx.ModelProto, images: Sequence[Array], wanted: Sequence[Array],
    error: float | None,
) -> Comparison:  # fmt: skip
    runner = opener(source)
    got = [_answer(runner, b) for b in images]
    sqnr = _sqnr(wanted, got)
    floor = FLOAT_SQNR_DB if error is None else min(error, FLOAT_SQNR_DB)
    passed = sqnr >= floor
    equal = np.concatenate([predictions(w) == predictions(g) for w, g in zip(wanted, got, strict=True)])
    return Comparison(
        runner=name, agreement=100.0 * float(equal.mean()), sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
        margin_db=round(sqnr - error, 3) if error is not None and math.isfinite(sqnr - error) else None,
        parts_at="" if passed else first_parting(opener, model, source, images[0]), passed=passed,
    )  # fmt: skip


def _sqnr(wanted: Sequence[Array], got: Sequence[Array]) -> float:
    with np.errstate(all="ignore"):
        noise = sum(float(np.sum((w - g) ** 2)) for w, g in zip(wanted, got, strict=True))
    return ratio_db(sum(float(np.sum(w**2)) for w in wanted), noise) if math.isfinite(noise) else -math.inf


def first_parting(opener: Opener, model: onnx.ModelProto, source: onnx.ModelProto, batch: Array) -> str:
    """Return the first tensor on the way that differs by much more than those before it.

    Results of convolutions and products, and what every Q/DQ pair gives, are made outputs of both; in an engine that can change what
    is fused, so an answer of "the output" means that the tapped engine computes the right thing.
    """
    there = {o for n in source.graph.node for o in n.output}
    view = View(model)
    taps = {
        n.output[0]: n.name or n.output[0]
        for n in model.graph.node
        if n.output[0] in there and (n.op_type in COMPUTE or (n.op_type == "DequantizeLinear" and not view.is_weight(n.output[0])))
    }
    ours, theirs = (run(_tapped(m, list(taps))).run(batch) for run, m in ((OnnxRunner, model), (opener, source)))
    best = math.inf
    for tensor, name in taps.items():
        sqnr = _sqnr([ours[tensor].astype(np.float64)], [theirs[tensor].astype(np.float64)])
        if sqnr < FLOAT_SQNR_DB and sqnr < best - PARTING_DB:
            return str(name)
        best = min(best, sqnr)
    return "the output, after the last of them"


def _tapped(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known = {o.name for o in model.graph.output}
    result.graph.output.extend(helper.make_tensor_value_info(t, types.get(t, TensorProto.FLOAT), None) for t in tensors if t not in known)
    return result
