"""The parity gate: torch's simulation must agree with ONNX Runtime on the exported file.

The two sum float32 in different orders, so a value on the edge between two codes may fall to either
side. Two rules:

* Predictions: equal on at least 99.5 % of the images whose two best classes lie further apart than
  the drift explains.
* Codes: torch runs with ONNX Runtime's own quantized tensors as inputs of every step; the codes it
  finds at each quantizer must equal ONNX Runtime's except for scattered ties of one code. This
  locates a wrong scale, axis or op.

How far the two answers drift apart at the output (``margin_db``) is reported, and below 8 dB noted,
but it does not decide: in a deep network one tie makes others, so the drift grows with depth until
it approaches the rounding noise, and the smaller the systematic part of the quantization error, the
smaller the margin (docs/decisions.md has the measurement).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import fx

from trtq.data.answers import Kind, OutputComparison, compare_answers, percent_words
from trtq.data.metrics import Array, predictions, ratio_db
from trtq.errors import ExportError, ParityError
from trtq.export.ort import open_session, run_batch
from trtq.graph.normalize import operands
from trtq.quant.fake_quantize import FAKE_QUANTIZE, positions, spacing
from trtq.quant.histogram import NUM_BINS, Histogram, dense_view, new_scratch

MIN_EQUAL = 99.5
USUAL_MARGIN_DB = 8.0
MAX_TIE_CODES = 1.5
MAX_TIE_SHARE = 0.005
LEAST_RUNTIME_DB = 0.0  # drift of ties grows with depth, but an answer of the other sign is none
OUTPUT_REL_DIFF = 1e-3
FORCED_IMAGES = 4
DECISIVE = 6.0  # distance of the two best logits in units of the root mean square drift
COARSE_BINS = 64
MIN_AXES = 2
# of a selection's rows: those at its end, and those that rounding to two digits tells apart
MAX_OTHER_ROWS = 0.2


class ParityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate measured.

    Attributes:
        images: how many calibration images were compared.
        kind: what the output is; only ``classes`` and ``pixels`` have predictions.
        equal_predictions: share of equal predictions of simulation and ONNX Runtime, percent; None
            where there are none.
        near_ties: predictions that differ although nothing is wrong: their two best classes are
            closer than the drift.
        quantization_sqnr_db: signal to (float - simulation); None when they are equal.
        runtime_sqnr_db: signal to (simulation - ONNX Runtime); None when they are equal bit by bit.
        margin_db: how far the runtimes' difference lies below the quantization error; None when
            either is zero.
        agreement: share of equal predictions of float and simulation, percent; None where there are
            none.
        equal: share of equal integers of float and simulation, percent; None for floats.
        cosine: of float and simulation over all values; None for integers, and where either is
            zero.
        comparable: float and simulation give the same shapes, all finite.
        constant: the float model gave the same answer for every image.
        first_divergence: the first quantizer whose codes differ by more than ties; None when there
            is none.
        passed: both rules hold.
        reason: which rule failed, empty when none did.
    """

    images: int
    kind: Kind = "classes"
    equal_predictions: float | None
    near_ties: int
    quantization_sqnr_db: float | None
    runtime_sqnr_db: float | None
    margin_db: float | None
    agreement: float | None
    equal: float | None = None
    cosine: float | None = None
    comparable: bool = True
    constant: bool = False
    first_divergence: str | None
    passed: bool
    reason: str = ""

    @property
    def answer(self) -> OutputComparison:
        """The comparison of the simulation's answers with the float model's."""
        return OutputComparison(
            name="output",
            kind=self.kind,
            sqnr_db=self.quantization_sqnr_db,
            cosine=self.cosine,
            agreement=self.agreement,
            equal=self.equal,
            finite=self.comparable,
            constant=self.constant,
        )


class QuantizerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one quantizer did to its tensor on the compared images.

    Attributes:
        sqnr_db: signal to its own rounding and clipping error; None when exact or never active.
        saturated: share of values beyond the outermost code, 0 to 1.
        histogram: counts of magnitudes in 64 equal bins over [0, histogram_limit); empty for
            weights.
        histogram_limit: upper edge of the last bin.
        low, high: smallest and largest value.
    """

    sqnr_db: float | None
    saturated: float
    histogram: list[int] = []
    histogram_limit: float = 0.0
    low: float = 0.0
    high: float = 0.0


class _Probe(fx.Interpreter):
    """Runs the simulation and measures every activation's fake-quantize call on the way."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sums: dict[str, list[float]] = {}
        self.hists: dict[str, Histogram] = {}
        self.scratch = new_scratch()
        self.weights: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is not FAKE_QUANTIZE:
            return super().run_node(n)
        if (
            n in self.weights
            # a constant: quantized once; what it loses is measured against the weight as given,
            # elsewhere
        ):
            return self.weights[n]
        result = super().run_node(n)
        if isinstance(operands(n)[0], fx.Node) and operands(n)[0].op == "get_attr":
            self.weights[n] = result
            return result
        self._measure(result, *self.fetch_args_kwargs_from_env(n)[0])
        return result

    def _measure(
        self,
        result: torch.Tensor,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        axis: int | None,
        qmin: int,
        qmax: int,
        name: str,
        kind: str,
    ) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        sums = self.sums.setdefault(name, [0.0, 0.0, 0.0, 0.0, low, high])
        sums[0] += _energy(x)
        sums[1] += _energy(x - result)
        if (
            kind not in ("uniform", "fp8")
            or high > (qmax + 0.5) * float(scale)
            or low < (qmin - 0.5) * float(scale)
        ):
            where = positions(x, scale, zero_point, axis, kind)
            sums[2] += float(((where > qmax + 0.5) | (where < qmin - 0.5)).sum())
        sums[3] += x.numel()
        sums[4], sums[5] = min(sums[4], low), max(sums[5], high)
        self.hists.setdefault(name, Histogram()).add(x, max(abs(low), abs(high)), self.scratch)

    def stats(self) -> dict[str, QuantizerStats]:
        """Return what was measured, by quantizer name."""
        found = {}
        for name, (signal, noise, saturated, count, low, high) in self.sums.items():
            value = ratio_db(signal, noise)
            hist = self.hists[name]
            coarse = hist.counts.reshape(COARSE_BINS, NUM_BINS // COARSE_BINS).sum(axis=1).tolist()
            found[name] = QuantizerStats(
                sqnr_db=round(value, 3) if math.isfinite(value) else None,
                saturated=saturated / max(count, 1.0),
                histogram=coarse,
                histogram_limit=hist.limit,
                low=low,
                high=high,
            )
        return found


def _energy(x: torch.Tensor) -> float:
    """Return the sum of squares.

    Dot products in float32 are blocked, so their error stays near 1e-6.
    """
    flat = dense_view(x)
    return float(torch.dot(flat, flat))


def check_parity(
    graph: fx.GraphModule,
    simulated: fx.GraphModule,
    exported: onnx.ModelProto,
    batches: Sequence[torch.Tensor],
    *,
    known: Kind | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ParityRecord, dict[str, QuantizerStats]]:
    """Compare float, simulation and exported file on ``batches``.

    The second result is what each activation quantizer did.

    Args:
        graph: captured, float.
        simulated: with fake-quantize calls.
        exported: the Q/DQ model.
        batches: float32, [N, C, H, W].
        known: what the output is.
        progress: called with the number of images after each batch.
    """
    session = open_session(exported)
    probe = _Probe(simulated)
    full, sim, run = [], [], []
    with torch.inference_mode():
        for batch in batches:
            fast = batch.contiguous(memory_format=torch.channels_last)
            full.append(graph(fast).numpy())
            sim.append(probe.run(fast).numpy())
            run.append(run_batch(session, batch.numpy())[0])
            if progress:
                progress(len(batch))
    where = first_divergence(simulated, exported, batches[0][:FORCED_IMAGES])
    return judge(
        np.concatenate(full), np.concatenate(sim), np.concatenate(run), where, known
    ), probe.stats()


def require_same_float(
    graph: fx.GraphModule, exported: onnx.ModelProto, batch: torch.Tensor
) -> None:
    """Refuse a float file that does not compute what the graph computes.

    This check precedes any calibration.

    Args:
        graph: captured, float.
        exported: the same as ONNX.
        batch: some images, [N, C, H, W].

    Raises:
        ExportError: says how far apart the two are.
    """
    with torch.inference_mode():
        wanted = graph(batch).numpy()
    got = run_batch(open_session(exported), batch.numpy())[0]
    if same_answer(wanted, got) or (_selects(graph) and _same_rows(wanted, got)):
        return
    far = f"its output is {list(got.shape)}, the model's {list(wanted.shape)}"
    if wanted.shape == got.shape:
        off = np.abs(np.subtract(wanted, got, dtype=np.float64)).max(initial=0.0)
        far = (
            f"outputs differ by {off:.2e}, their largest value is "
            f"{np.abs(wanted).max(initial=0.0):.2e}"
        )
    raise ExportError(
        "The float ONNX file does not compute what the model computes",
        far,
        "Write the ops that torch.onnx wrote (named above) with others, or report this: it is "
        "an error of trtq or of torch.onnx",
    )


SELECTIONS = (
    "topk",
    "sort",
    "argsort",
    "argmax",
    "argmin",
    "nms",
    "nonzero",
    "max_dim",
    "masked_select",
)


def _selects(graph: fx.GraphModule) -> bool:
    """Whether a graph selects among its values.

    Where two values are nearly equal, rounding decides which comes first.
    """
    names = (
        str(getattr(n.target, "_schema", n.target))
        .split("(")[0]
        .replace(".dim", "_dim")
        .split("::")[-1]
        for n in graph.graph.nodes
    )
    return any(name.split(".")[0] in SELECTIONS for name in names)


def _same_rows(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> bool:
    """Whether two answers share nearly all rows (along the last axis), in any order."""
    if wanted.ndim < MIN_AXES or wanted.shape[-1:] != got.shape[-1:]:
        return False
    size = max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
    a, b = (
        np.round(v.reshape(-1, v.shape[-1]).astype(np.float64) / size, 2) for v in (wanted, got)
    )
    missing = len({row.tobytes() for row in a} ^ {row.tobytes() for row in b})
    return missing <= max(2.0, MAX_OTHER_ROWS * len(a))


def judge(
    full: Array, sim: Array, run: Array, where: str | None, known: Kind | None = None
) -> ParityRecord:
    """Apply the gate's rules.

    Args:
        full: outputs of the float model, [N, ...].
        sim: of the simulation.
        run: of the runtime.
        where: what :func:`first_divergence` found.
        known: what the output is; predictions are compared where it is scores of classes.
    """
    quantized, runtime = (
        compare_answers("output", full, sim, known),
        compare_answers("output", sim, run, known),
    )
    decided, near_ties, allowed = (
        _predictions(sim, run) if runtime.agreement is not None else (0, 0, 0)
    )
    runtime_db = None
    if runtime.finite and runtime.kind != "indices":
        runtime_db = ratio_db(_squares(full), _squares(np.subtract(sim, run, dtype=np.float64)))
    margin = (
        None if runtime_db is None or quantized.sqnr_db is None else runtime_db - quantized.sqnr_db
    )
    reason = ""
    if not all(np.isfinite(a).all() for a in (full, sim, run)):
        reason = "the outputs are NaN or infinite"
    elif where is not None:
        reason = "given the same quantized tensors, torch and ONNX Runtime find different codes"
    elif decided > allowed:
        reason = f"{decided} predictions differ that were no near ties, at most {allowed} may"
    elif runtime.equal is not None and runtime.equal < MIN_EQUAL and (sim != run).sum() > 1:
        reason = (
            f"only {percent_words(runtime.equal, 2)} of the integers are equal, at least "
            f"{MIN_EQUAL} % must be"
        )
    elif runtime_db is not None and runtime_db < LEAST_RUNTIME_DB and sim.shape == run.shape:
        reason = f"torch and ONNX Runtime differ by more than the signal: {runtime_db:.1f} dB"
    return ParityRecord(
        images=len(full),
        kind=quantized.kind,
        near_ties=near_ties,
        equal_predictions=runtime.agreement,
        agreement=quantized.agreement,
        equal=quantized.equal,
        cosine=quantized.cosine,
        quantization_sqnr_db=quantized.sqnr_db,
        runtime_sqnr_db=_finite(runtime_db),
        margin_db=_finite(margin),
        comparable=quantized.finite,
        constant=quantized.constant,
        first_divergence=where,
        passed=not reason,
        reason=reason,
    )


def _predictions(sim: Array, run: Array) -> tuple[int, int, int]:
    """Return the numbers of decided and of near-tied predictions that differ, and a limit.

    The limit is the number of decided predictions that may differ.
    """
    p_sim, p_run = predictions(sim), predictions(run)
    best = np.partition(sim, -2, axis=1)
    drift = float(np.sqrt(np.mean(np.square(np.subtract(sim, run, dtype=np.float64)))))
    decisive = best.take(-1, axis=1) - best.take(-2, axis=1) > DECISIVE * drift
    decided = int(((p_sim != p_run) & decisive).sum())
    # Below 200 predictions one near tie is more than 0.5 %: one is always allowed.
    allowed = max(1, math.floor((100.0 - MIN_EQUAL) / 100.0 * p_sim.size))
    return decided, int((p_sim != p_run).sum()) - decided, allowed


def _squares(values: Array) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


class _Forced(fx.Interpreter):
    """Runs the simulation step by step on another runtime's quantized tensors.

    Each step's codes are compared with those of the other runtime.
    """

    def __init__(self, graph: fx.GraphModule, values: dict[str, Array]) -> None:
        super().__init__(graph)
        self.values = values
        self.first: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.target is not FAKE_QUANTIZE:
            return result
        args = self.fetch_args_kwargs_from_env(n)[0]
        scale, axis, name, kind = args[1], args[3], args[6], args[7]
        if name not in self.values:
            # The exporter merged it with an equal pair on the same tensor; what follows, and the
            # output, are still compared.
            return result
        theirs = torch.from_numpy(self.values[name])
        if operands(n)[0].op == "get_attr" and theirs.ndim == 2 and not torch.equal(theirs, result):
            theirs = (
                theirs.mT if theirs.mT.shape == result.shape else theirs
            )  # the export stores a linear's weight transposed
        if theirs.shape != result.shape:
            self.first = self.first or name
            return result
        ours, others = (positions(v, scale, None, axis, kind) for v in (result, theirs))
        off = (ours - others).abs() / spacing(ours, kind)
        if self.first is None and (
            float(off.max()) > MAX_TIE_CODES
            or int((off > 0.5).sum()) > max(3.0, MAX_TIE_SHARE * off.numel())
        ):
            self.first = name
        return theirs


def first_divergence(
    simulated: fx.GraphModule, exported: onnx.ModelProto, batch: torch.Tensor
) -> str | None:
    """Return the first quantizer whose codes differ by more than ties, None when there is none.

    Args:
        simulated: with fake-quantize calls.
        exported: the Q/DQ model; not changed.
        batch: some images, [N, C, H, W].
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(exported)
    names = [o.name for o in exported.graph.output]
    outputs: dict[str, str] = {}
    for node in tapped.graph.node:
        quantizer = next((p.value for p in node.metadata_props if p.key == "quantizer"), None)
        if quantizer is not None:
            outputs[quantizer] = node.output[
                0
            ]  # of several nodes that make one quantizer, the last gives its value
    tapped.graph.output.extend(
        onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None)
        for o in outputs.values()
    )
    # A fixed batch of 1 would cut weights into batches, too: such models take one image.
    session = open_session(tapped)
    got = session.run([*names, *outputs.values()], {session.get_inputs()[0].name: batch.numpy()})
    forced = _Forced(simulated, dict(zip(outputs, got[len(names) :], strict=True)))
    with torch.inference_mode():
        result = forced.run(batch)
    if forced.first is None and not same_answer(result.numpy(), np.asarray(got[0])):
        return "the output, after the last quantizer"
    return forced.first


def same_answer(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> bool:
    """Whether two answers differ by rounding alone.

    Floats may differ by a share of the largest value, integers in few ties.
    """
    if wanted.shape != got.shape:
        return False
    if wanted.dtype.kind in "iub":
        return int((wanted != got).sum()) <= max(1.0, MAX_TIE_SHARE * wanted.size)
    off = np.abs(np.subtract(wanted, got, dtype=np.float64)).max(initial=0.0)
    return bool(off <= OUTPUT_REL_DIFF * np.abs(wanted).max(initial=0.0))


def require_varying(record: ParityRecord) -> None:
    """Refuse a model whose answer does not depend on the image: nothing can be measured on it.

    Raises:
        ParityError: all answers are the same.
    """
    if record.constant:
        raise ParityError(
            "The model gives the same answer for every image",
            f"{record.images} calibration images, bit by bit the same output",
            "Check its weights and its checkpoint",
        )


def require_parity(record: ParityRecord) -> None:
    """Raise when the gate failed.

    Raises:
        ParityError: says which rule failed and the first quantizer where the two diverge.
    """
    if record.passed:
        return
    where = record.first_divergence
    place = (
        f"they part first at {where}"
        if where
        else "no single quantizer stands out, the ties of many add up"
    )
    raise ParityError(
        "The exported model does not compute what was simulated",
        f"{record.reason}; {place}",
        f"Keep that layer in float: --high-precision {where.rsplit('.', 1)[0]}"
        if where and "." in where
        else "Try another --calibrator, or more --calib-images",
    )
