"""Nodes that were read from ONNX and that torch does not compute, written as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper, version_converter
from torch import fx

from trtq.errors import ExportError
from trtq.export.borrowed import splice
from trtq.export.writer import Writer
from trtq.graph.opaque import name_of, unpacked
from trtq.onnx_walk import all_nodes
from trtq.ops.table_onnx import CHANGED

OWN = ("", "ai.onnx")
WRITTEN = range(13, 22)  # opsets of files that trtq writes
GROUP_NORM = "GroupNormalization"
RESIZE = "Resize"
OLD_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def node(w: Writer, n: fx.Node, inputs: Sequence[fx.Node], model: str, sizes: Sequence[Any]) -> Any:
    """The node itself, in a form of the writer's opset.

    Args:
        w: receives the node; the opset of its domain is noted there.
        n: the call.
        inputs: of the node.
        model: a packed ONNX model of the node alone (:func:`trtq.graph.opaque.packed`).
        sizes: of the results; not used.

    Raises:
        ExportError: the node has another form in the writer's opset, and ONNX cannot convert it.
    """
    del sizes  # the node has them among its inputs
    written = _of_opset(unpacked(model), w.opset, name_of(model))
    w.domains |= {o.domain: o.version for o in written.opset_import if o.domain not in OWN}
    return splice(w, written, list(inputs), foreign=True)


def _of_opset(model: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """Return a model of one node in another opset: as it is where its form is the same there."""
    first = model.graph.node[0]
    if first.domain not in ("", "ai.onnx"):
        return model
    own = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if all(_keeps_meaning(n, own, opset) for n in all_nodes(model)):
        return model
    try:
        return _converted(model, own, opset)
    except Exception as exc:  # the converter's failures share no base
        raise ExportError(
            f"Cannot write {name} in opset {opset}",
            f"it has another form there than in opset {own}, which it was read in",
            f"Give --opset {own}" + ("" if own in WRITTEN else ", or convert the file first"),
        ) from exc


def _converted(model: onnx.ModelProto, own: int, opset: int) -> onnx.ModelProto:
    """Return a model in another opset.

    ONNX's converter keeps a resampling's attributes, though their defaults changed, and the scales
    of a group norm, though there is one a channel now.

    Args:
        model: of ONNX's own domain; not changed.
        own: its opset.
        opset: of the result.

    Raises:
        ValueError: it would mean something else there.
    """
    if own < CHANGED[GROUP_NORM] <= opset and any(
        n.op_type == GROUP_NORM for n in all_nodes(model)
    ):
        raise ValueError("its scales are of groups")
    conversion = version_converter.convert_version(model, opset)
    if own < CHANGED[RESIZE] <= opset:
        for node in all_nodes(conversion):
            if node.op_type == RESIZE:
                node.attribute.extend(helper.make_attribute(n, v) for n, v in OLD_RESIZE.items())
    return conversion


def _keeps_meaning(node: onnx.NodeProto, own: int, opset: int) -> bool:
    """Whether a node means the same in another opset.

    Most versions of an op add types, or attributes whose default is what the op did before.
    """
    old, new = (_schema(node, v) for v in sorted((own, opset)))
    if old is None or new is None:
        return old is new
    if old.since_version == new.since_version:
        return True
    changed = old.since_version < CHANGED.get(node.op_type, 0) <= new.since_version
    if new.deprecated or changed or _ports(old) != _ports(new):
        return False
    before, after = _attributes(old), _attributes(new)
    added = set(after) - set(before)
    used = {a.name for a in node.attribute}
    return before == {n: a for n, a in after.items() if n not in added} and not added & used


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _ports(schema: onnx.defs.OpSchema) -> list[list[object]]:
    return [[p.option for p in side] for side in (schema.inputs, schema.outputs)]


def _attributes(schema: onnx.defs.OpSchema) -> dict[str, tuple[object, ...]]:
    return {
        name: (a.type, a.required, a.default_value.SerializeToString())
        for name, a in schema.attributes.items()
    }
