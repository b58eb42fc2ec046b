"""ONNX's own tests of single nodes: models with inputs and the outputs that ONNX expects."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

NEVER_FOLDED = ("indices", "sequence_lens", "data", "updates")


@dataclass(frozen=True)
class Case:
    """One model with what goes in and what comes out."""

    name: str
    model: onnx.ModelProto
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@functools.cache
def node_cases() -> dict[str, Case]:
    """Return the cases by name, with integers such as axes and shapes stored in the model."""
    from onnx.backend.test import loader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = loader.load_model_tests(kind="node")
    return {t.name: _stored(t) for t in found if t.data_sets and t.model is not None}


def _stored(test) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    given, wanted = test.data_sets[0]
    kept = []
    for i, (value, array) in enumerate(zip(model.graph.input, given, strict=False)):
        is_setting = isinstance(array, np.ndarray) and (
            array.dtype == np.int64 or value.name in ("scales", "sizes", "roi", "min", "max")
        )
        if i and is_setting and value.name not in NEVER_FOLDED:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(i)
    inputs = [
        onnx.ValueInfoProto.FromString(model.graph.input[i].SerializeToString()) for i in kept
    ]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return Case(test.name, model, [given[i] for i in kept], list(wanted))


def write_cases(folder: Path, names: Iterable[str]) -> None:
    """Write the cases with these names, for processes that need no others."""
    cases = node_cases()
    for name in names:
        case = cases[name]
        content = case.model.SerializeToString(), case.inputs, case.outputs
        (folder / name).write_bytes(pickle.dumps(content))


def read_case(folder: Path, name: str) -> Case:
    """Return one of the cases that were written."""
    model, inputs, outputs = pickle.loads((folder / name).read_bytes())
    return Case(name, onnx.ModelProto.FromString(model), inputs, outputs)
