"""From a model and encodings that were made elsewhere to a quantized model."""

from __future__ import annotations

from torch import fx

from trtq.errors import EncodingsError
from trtq.export.parity import require_parity
from trtq.flow.compare import compare_simulation
from trtq.flow.inputs import Inputs, quantized_metadata
from trtq.flow.pair import mark_fp16_ranges_
from trtq.flow.ptq import Attempt
from trtq.flow.quantized import Quantized
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize
from trtq.specs import QuantizeOptions


def quantized_from(inputs: Inputs, encodings: Encodings, options: QuantizeOptions) -> Quantized:
    """Return a model with given encodings, once torch and ONNX Runtime agree on it.

    Args:
        inputs: the float model and the samples that the two are compared on.
        encodings: of the model.
        options: opset, storage of weights, batch size and number of compared samples.

    Raises:
        ParityError: torch and ONNX Runtime do not compute the same.
    """
    graph = inputs.model.graph.module
    placement = placement_of(graph, encodings)
    simulated = insert_fake_quantize(graph, placement, encodings)
    fp32 = inputs.export(graph, options, precision="fp32")
    qdq = inputs.export(simulated, options, **quantized_metadata(encodings))
    compared = compare_simulation(inputs, options, simulated, qdq)
    require_parity(compared.parity)
    mark_fp16_ranges_(inputs, (fp32, qdq))
    done = Attempt(
        options=options,
        graph=graph,
        placement=placement,
        encodings=encodings,
        stats={},
        methods=[],
        cache_note="not used",
        qdq=qdq,
        parity=compared.parity,
        measured=compared.measured,
        alike=compared.alike,
    )
    return Quantized(inputs=inputs, asked=options, done=done, preset=None, fp32=fp32)


def require_own(encodings: Encodings, graph: fx.GraphModule, path: str, doing: str) -> str:
    """Return the digest of a graph's weights, once the encodings are known to be of this model.

    Args:
        encodings: with the digests of the model that they were made for.
        graph: of this model.
        path: what to call the encodings.
        doing: what they are wanted for, such as "export".

    Raises:
        EncodingsError: they are of other weights, or their methods put ops into the graph that
            capturing the model does not give.
    """
    weights, structure, origin = weights_digest(graph), structure_digest(graph), encodings.origin
    if origin.get("weights_sha256") != weights:
        raise EncodingsError(
            f"The encodings {path} were made for another model",
            f"its weights are {str(origin.get('weights_sha256'))[:12]}, this model's are "
            f"{weights[:12]}",
            "Give the model and the checkpoint they were made with",
        )
    if origin.get("structure_sha256", structure) != structure:
        raise EncodingsError(
            f"Cannot {doing} the encodings {path}",
            f"its methods ({origin.get('methods')}) put ops into the graph that the model "
            "itself does not have",
            f"Quantize without qads and integer-softmax, and {doing} that",
        )
    return weights
