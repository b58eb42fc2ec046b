"""The first step where torch's simulation and ONNX Runtime part, given the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import fx

from trtq import ops
from trtq.data.metrics import Array
from trtq.export.feeds import feed_for
from trtq.export.ort import input_slots, open_session
from trtq.graph.dtypes import ONNX_TYPES
from trtq.graph.feed import Feed, arrays_of, as_feed
from trtq.quant.fake_quantize import FakeQuantizeCall, spacing

MAX_TIE_CODES = 1.5
MAX_TIE_SHARE = 0.005
OUTPUT_REL_DIFF = 1e-3
SORTED = ("topk", "sort", "sort_stable", "argsort", "argsort_stable")  # ONNX has one op for them
LAST_PLACE = 2.4e-7  # two units in the last place of 1: small answers come from values near it


class _Forced(fx.Interpreter):
    """Runs the simulation step by step on another runtime's quantized tensors.

    Each step's codes are compared with those of the other runtime.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        values: dict[str, Array],
        chosen: Mapping[fx.Node, tuple[Array, Array]],
    ) -> None:
        super().__init__(graph)
        self.values, self.chosen = values, chosen
        self.first: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.chosen:
            return self._selected(n, result)
        call = FakeQuantizeCall.of(n)
        if call is None or call.name not in self.values:
            # A pair that is not in the file is an equal one on the same tensor; what follows, and
            # the output, are still compared.
            return result
        theirs = torch.from_numpy(self.values[call.name]).to(result.device)
        if call.of_constant:
            theirs = _as_in_graph(theirs, result)
        call = FakeQuantizeCall(*self.fetch_args_kwargs_from_env(n)[0])
        if self.first is None and not _same_codes(call, result, theirs):
            self.first = call.name
        return theirs if theirs.shape == result.shape else result

    def _selected(self, n: fx.Node, result: Any) -> Any:
        """Return the runtime's selection where its values are as good: rounding decides ties."""
        given = self.fetch_args_kwargs_from_env(n)[0]
        scores, dim = given[0], given[2] if len(given) > 2 else -1
        values, places = (torch.from_numpy(v).to(scores.device) for v in self.chosen[n])
        if places.shape != result[1].shape:
            return result
        theirs = torch.gather(scores, dim, places).cpu().numpy()
        if not same_answer(result[0].cpu().numpy(), theirs):
            self.first = self.first or str(n.meta.get("trtq_name", n.name))
            return result
        return values, places


def _selections(
    simulated: fx.GraphModule, exported: onnx.ModelProto
) -> dict[fx.Node, tuple[str, str]]:
    """Return the values and the places of each top-k in the file, none where they do not pair."""
    ours = [n for n in simulated.graph.nodes if ops.of(n).name in SORTED]
    theirs = [n for n in exported.graph.node if n.op_type == "TopK"]
    if len(ours) != len(theirs):
        return {}
    pairs = zip(ours, theirs, strict=True)
    return {
        n: (t.output[0], t.output[1])
        for n, t in pairs
        if ops.of(n).name == "topk" and all(t.output)
    }


def _as_in_graph(stored: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight of the file as the graph has it: a linear's is stored transposed."""
    turned = stored.ndim == 2 and stored.mT.shape == weight.shape
    return stored.mT if turned and not torch.equal(stored, weight) else stored


def _same_codes(call: FakeQuantizeCall, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two quantized tensors differ by scattered ties of one code at most."""
    if ours.shape != theirs.shape:
        return False
    call = call._replace(zero_point=None)  # of both alike
    places = call.positions(ours)
    off = (places - call.positions(theirs)).abs() / spacing(places, call.kind)
    many = int((off > 0.5).sum()) > max(3.0, MAX_TIE_SHARE * off.numel())
    return float(off.max()) <= MAX_TIE_CODES and not many


def first_divergence(
    simulated: fx.GraphModule, exported: onnx.ModelProto, batch: torch.Tensor | Feed
) -> str | None:
    """Return the first quantizer whose codes differ by more than ties, None when there is none.

    Args:
        simulated: with fake-quantize calls.
        exported: the Q/DQ model; not changed.
        batch: some samples: a tensor, or one an input.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(exported)
    names = [o.name for o in exported.graph.output]
    outputs: dict[str, str] = {}
    for node in tapped.graph.node:
        quantizer = next((p.value for p in node.metadata_props if p.key == "quantizer"), None)
        if quantizer is not None:  # of several nodes of one quantizer, the last gives its value
            outputs[quantizer] = node.output[0]
    tapped.graph.output.extend(
        onnx.helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None)
        for o in outputs.values()
    )
    selections = _selections(simulated, tapped)
    tapped.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, ONNX_TYPES[result.dtype], None)
        for node, pair in selections.items()
        for name, result in zip(pair, node.meta["val"], strict=True)
    )
    # A fixed batch of 1 would cut weights into batches, too: such models take one image.
    session = open_session(tapped)
    feed = as_feed(batch)
    given = feed_for(input_slots(session), arrays_of(feed), "model")
    wanted = [*names, *outputs.values(), *(o for pair in selections.values() for o in pair)]
    got = session.run(wanted, given)
    codes, picked = got[len(names) :][: len(outputs)], got[len(names) + len(outputs) :]
    forced = _Forced(
        simulated,
        dict(zip(outputs, codes, strict=True)),
        dict(zip(selections, zip(picked[::2], picked[1::2], strict=True), strict=True)),
    )
    with torch.inference_mode():
        answer = arrays_of(forced.run(*feed))
    for name, ours, theirs in zip(names, answer, got, strict=False):
        if forced.first is None and not same_answer(ours, np.asarray(theirs)):
            which = "the output" if len(names) == 1 else f"the output {name}"
            return f"{which}, after the last quantizer"
    return forced.first


def same_answer(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> bool:
    """Whether two answers differ by rounding alone.

    Floats may differ by :data:`OUTPUT_REL_DIFF` of the largest finite value, or by
    :data:`LAST_PLACE` where all are small; of integers and booleans :data:`MAX_TIE_SHARE` may, at
    least one. Infinities must be equal; NaN differs from everything.

    Args:
        wanted: of any shape.
        got: False where its shape is another.
    """
    if wanted.shape != got.shape:
        return False
    if wanted.dtype.kind in "iub":
        return int((wanted != got).sum()) <= max(1.0, MAX_TIE_SHARE * wanted.size)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite]):
        return False
    off = np.abs(np.subtract(wanted[finite], got[finite], dtype=np.float64)).max(initial=0.0)
    allowed = OUTPUT_REL_DIFF * np.abs(wanted[finite]).max(initial=0.0)
    return bool(off <= max(allowed, LAST_PLACE))
