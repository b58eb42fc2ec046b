"""Which parts of a model are convolutional and which transformer, and what family that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from torch import fx, nn

from trtq import ops
from trtq.graph.heads import last_layers, scales
from trtq.graph.nodes import conv_groups, operands

Family = Literal[
    "cnn", "mobile", "vit", "windowed", "hybrid", "detector-conv", "detector-transformer"
]
TRANSFORMER_NAMES = ("attn", "Attention", "Transformer")
STEM_CONVS = 4  # a plain transformer has convolutions in its patch embedding only
SIDES = 4  # of a box
CONV_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """Module paths by kind, in the order of the model.

    Attributes:
        cnn: convolutions.
        transformer: linears, and modules whose name or class says attention or transformer.
    """

    cnn: list[str]
    transformer: list[str]


def identify_blocks(model: nn.Module) -> Blocks:
    """Return the convolutional and the transformer parts (S3, Algorithm 1).

    Each convolution is CNN; each linear, and each module whose name or class contains attn,
    Attention or Transformer, is transformer. A convolution inside an attention remains CNN, as the
    algorithm asks for the layer's type first.
    """
    cnn, transformer = list[str](), list[str]()
    for path, module in model.named_modules():
        if isinstance(module, CONV_MODULES):
            cnn.append(path)
        elif path and _is_transformer(path.rpartition(".")[2], module):
            transformer.append(path)
    return Blocks(cnn=cnn, transformer=transformer)


def family_of(graph: fx.GraphModule, *, detects: bool = False) -> tuple[Family, str]:
    """Return the family of a captured graph and the reason.

    The computation of the graph decides, not its name.

    Args:
        graph: normalised.
        detects: its outputs are known to be boxes.
    """
    kinds: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        kinds.setdefault(ops.kind(node), []).append(node)
    convs = kinds.get("conv", [])
    depthwise = [n for n in convs if _is_depthwise(n)]
    attentions = [n for n in kinds.get("softmax", []) if n.meta["val"].ndim >= 3]
    linears, rolls = (len(kinds.get(k, [])) for k in ("linear", "roll"))
    counted = (
        f"{len(convs)} convolutions ({len(depthwise)} depthwise), {linears} linears, "
        f"{len(attentions)} attentions"
    )
    heads = last_layers(graph.graph)
    sizes = scales(heads)
    if sizes > 1 or (detects and sizes):
        return "detector-conv", f"{counted}, {len(heads)} last layers at {sizes} sizes"
    if attentions and _gives_boxes(heads):
        return "detector-transformer", f"{counted}, boxes and classes of queries"
    if attentions and rolls:
        return "windowed", f"{counted}, windows shifted {rolls} times"
    if linears > len(convs) and len(convs) <= STEM_CONVS:
        return "vit", counted
    if attentions or linears > 8:
        return "hybrid", counted
    return ("mobile" if len(depthwise) * 4 > len(convs) else "cnn"), counted


def _gives_boxes(heads: Sequence[fx.Node]) -> bool:
    """Whether last layers give the sides of boxes and scores for the same queries."""
    shapes = [n.meta["val"].shape for n in heads if ops.kind(n) == "linear"]
    queries = [(str(list(s[:-1])), s[-1]) for s in shapes if len(s) > 2]
    boxes = {q for q, columns in queries if columns == SIDES}
    return any(q in boxes and columns != SIDES for q, columns in queries)


def _is_transformer(name: str, module: nn.Module) -> bool:
    words = (name, type(module).__name__)
    return isinstance(module, nn.Linear) or any(t in w for t in TRANSFORMER_NAMES for w in words)


def _is_depthwise(node: fx.Node) -> bool:
    groups = conv_groups(node)
    channels = int(operands(node)[0].meta["val"].shape[1])
    return groups > 1 and groups == channels
