"""Names of the modules that stand for nodes: the nodes' own, as torch takes them."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

import onnx
from torch import nn

_RESERVED = frozenset(dir(nn.Module)) | {
    "inputs",
    "outputs",
    "nodes",
    "paths",
    "origin",
    "fixed",
    "notes",
    "ranges",
    "results",
    "rows",
}


def module_names(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return a path for each node, unique and fit for ``add_module``.

    >>> from onnx import helper
    >>> module_names([helper.make_node("Conv", ["x"], ["y"], name="/model.0/conv/Conv")])
    ['model.0.conv.Conv']
    """
    bases = [module_name(node) for node in nodes]
    folders = {base[:i] for base in bases for i, c in enumerate(base) if c == "."}
    taken = set(folders)
    names = []
    for base in bases:
        name, k = base, 0
        while name in taken:
            k += 1
            name = f"{base}_{k}"
        taken.add(name)
        names.append(name)
    return names


def module_name(node: onnx.NodeProto) -> str:
    """Return the path for one node: its name, or its op type and first output."""
    text = node.name or f"{node.op_type}_{node.output[0]}"
    parts = [_part(p) for p in re.split(r"[./:\\]+", text)]
    return ".".join(p for p in parts if p) or node.op_type


def _part(text: str) -> str:
    """Return one part of a path: letters, digits and underscores."""
    clean = re.sub(r"\W+", "_", text).strip("_") if text.strip("_") else ""
    return f"{clean}_" if clean in _RESERVED or keyword.iskeyword(clean) else clean
