"""Lint an ONNX file of any tool for one reader, and repair what is mechanical."""

from __future__ import annotations

import onnx

from trtq.export.lint_rules import RULES
from trtq.export.lint_view import Finding, Reader, View, drop_unread_


def lint(model: onnx.ModelProto, reader: Reader) -> list[Finding]:
    """Return what the rules find, in the order of the rules."""
    view = View(model, reader)
    return [finding for _, _, check, _ in RULES for finding in check(view)]


def repair(model: onnx.ModelProto, reader: Reader) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return a copy with what is mechanical repaired, and how many places each rule touched; values stay what they were."""
    result, done = onnx.ModelProto(), dict[str, int]()
    result.CopyFrom(model)
    for rule, _, check, fix in RULES:
        if fix is not None and any(f.repairable for f in check(View(result, reader))):
            done[rule] = fix(View(result, reader))
    if done:
        drop_unread_(result)
    return result, done
