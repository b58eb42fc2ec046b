"""Lint an ONNX file of any tool for one reader, and repair what is mechanical."""

from __future__ import annotations

import onnx

from trtq.export import lint_coverage, lint_rules
from trtq.export.lint_rules import Check, Fix
from trtq.export.lint_view import Finding, Reader, View, drop_unread_, views
from trtq.onnx_walk import scopes

COVERAGE: tuple[tuple[str, str, Check, Fix | None], ...] = (
    ("L01", "opset newer than the parser reads", lint_coverage.opset, None),
    ("L02", "op that the release does not read", lint_coverage.ops, None),
    ("L17", "dynamic axis other than the batch", lint_coverage.shapes, None),
    ("L23", "tensor of a type that the release does not have", lint_coverage.types, None),
    ("L24", "form of an op that the parser refuses", lint_coverage.attributes, None),
    ("L27", "op that a plugin computes", lint_coverage.plugins, None),
)
RULES = tuple(sorted((*COVERAGE, *lint_rules.RULES), key=lambda rule: rule[0]))


def lint(model: onnx.ModelProto, reader: Reader) -> list[Finding]:
    """Return what the rules find, in the order of the rules."""
    looked = views(model, reader)
    return [finding for _, _, check, _ in RULES for view in looked for finding in check(view)]


def repair(
    model: onnx.ModelProto, reader: Reader, *, change_values: bool = False
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return a copy with what is mechanical repaired, and how many places each rule touched.

    Args:
        model: not changed.
        reader: who will read the copy.
        change_values: also the repairs that change values; without it values stay what they were.
    """
    result, done = onnx.ModelProto(), dict[str, int]()
    result.CopyFrom(model)
    for rule, _, check, fix in RULES:
        if fix is None:
            continue
        for k in range(len(scopes(result))):
            view = View(
                result, reader, scopes(result)[k]
            )  # again: the rule before may have changed the graph
            if any(f.repairable or (change_values and f.changes_values) for f in check(view)):
                done[rule] = done.get(rule, 0) + fix(view)
    if done:
        drop_unread_(result)
    return result, done
