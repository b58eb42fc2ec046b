"""The types of what a report reads inside the open parts of records.

The records' own types say less than a report needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from trtq.artifact import check_record, read_json
from trtq.files import ENCODINGS, QDQ
from trtq.known_records import read_checked


class _Model(msgspec.Struct):
    name: str
    bits: str
    weights: str
    weights_sha256: str
    weight_values: dict[str, int] = {}


class _Environment(msgspec.Struct):
    python: str
    packages: dict[str, str]
    system: str
    cpu: str
    cores: int | None
    time: str


class _Calibration(msgspec.Struct):
    calibrator: str
    images: int


class _Card(msgspec.Struct):
    cpu: str


class _Data(msgspec.Struct):
    source: str


class _Device(msgspec.Struct):
    name: str
    device: str
    capability: str


class _Builder(msgspec.Struct):
    backend: str
    version: str


class _Trained(msgspec.Struct):
    weights: int
    ranges: int


class _Training(msgspec.Struct):
    device: str
    processes: int


class _Epoch(msgspec.Struct):
    loss: float
    score: float | None = None


class _Reference(msgspec.Struct):
    costs: dict[str, float]


class _Point(msgspec.Struct):
    label: str
    accuracy: float
    costs: dict[str, float]
    dominated: dict[str, bool]


class _Predicted(msgspec.Struct):
    axis: str
    metric: str
    at: dict[str, float]
    front: list[dict[str, float | None]]


class Frontier(msgspec.Struct):
    """frontier.json of a search."""

    measure: str
    units: dict[str, str]
    limits: dict[str, float]
    chosen: str
    points: list[_Point]
    predicted: _Predicted


Spec = dict[str, Any]
PARTS: dict[str, dict[str, Any]] = {
    "quantize": {
        "spec": Spec,
        "model": _Model,
        "environment": _Environment,
        "calibration": _Calibration,
        "data": _Data,
    },
    "build": {"target": _Device, "builder": _Builder, "environment": _Environment, "spec": Spec},
    "finetune": {"trained": _Trained, "training": _Training, "history": list[_Epoch]},
    "search": {"reference": _Reference},
    "bench": {"card": _Card, "spec": Spec},
}
FILES = {
    "quantize": (QDQ, ENCODINGS),
    "finetune": (QDQ, ENCODINGS),
}  # the names that a record must vouch for


def read_part(path: Path, verb: str) -> dict[str, Any]:
    """Return a record of one verb as plain JSON.

    Everything that a report reads in it is known to have its type.

    Raises:
        ArtifactError: it is missing, damaged, of another verb or of a newer trtq.
    """
    content = read_checked(path, verb)
    for field, kind in PARTS.get(verb, {}).items():
        check_record(content[field], path, kind, kind=f"{verb} record ({field})")
    for name in FILES.get(verb, ()):
        check_record(
            content["files"].get(name), path, dict[str, Any], kind=f"{verb} record (files: {name})"
        )
    return content


def read_frontier(path: Path) -> dict[str, Any]:
    """Return frontier.json as plain JSON, once it has its form.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    content = read_json(path, kind="frontier")
    check_record(content, path, Frontier, kind="frontier")
    return content
