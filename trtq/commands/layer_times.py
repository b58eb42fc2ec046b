"""Layer times that ``trtq bench --profile`` measured, for the INT8 and the FP16 file of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.bench.layers import MADE
from trtq.bench.record import BenchRow, LayerTime
from trtq.cost.profile import SEPARATORS
from trtq.engine.audit import FOREIGN
from trtq.engine.plan_kernels import PlanKernel
from trtq.engine.regions import Piece
from trtq.errors import ArtifactError
from trtq.known_records import read_known

MYELIN = re.compile(r"(_myl\d+)?_\d+$")  # what TensorRT appends to the name of a generated kernel
AGAIN = (
    "Measure both, trtq bench INT8.engine FP16.engine --profile --out DIR, and give DIR/bench.json"
)


@dataclass(frozen=True, slots=True)
class Measured:
    """The two profiles.

    Attributes:
        int8: of the file with Q/DQ pairs.
        fp16: of the file without.
        files: the records.
    """

    int8: BenchRow
    fp16: BenchRow
    files: tuple[str, ...]

    @property
    def words(self) -> str:
        """The measurements, for a person."""
        return f"layers of {self.int8.file} and {self.fp16.file} in {', '.join(self.files)}"


def read_measured(paths: Sequence[str], int8_sha256: Iterable[str]) -> Measured:
    """Return the two profiles in records.

    Args:
        paths: of the records.
        int8_sha256: digests of the files that hold the Q/DQ model.

    Raises:
        ArtifactError: not exactly one file with and one without Q/DQ pairs has layer times, or
            they are of different devices or batches.
    """
    rows = [r for p in paths for r in read_known(Path(p), "bench", hint=AGAIN).rows if r.layers]
    known = set(int8_sha256)
    own = [r for r in rows if r.file_sha256 in known]
    other = [r for r in rows if r.file_sha256 not in known]
    names = ", ".join(paths)
    if len(own) != 1 or len(other) != 1:
        raise ArtifactError(
            f"Cannot compare the layers in {names}",
            "expected layer times of one file of this Q/DQ model and of one other file, found "
            f"{_listed(own)} and {_listed(other)}",
            AGAIN,
        )
    (int8,), (fp16,) = own, other
    unlike = next((n for n in ("device", "batch") if getattr(int8, n) != getattr(fp16, n)), None)
    if unlike is not None:
        raise ArtifactError(
            f"Cannot compare the layers in {names}",
            f"{unlike} is {getattr(int8, unlike)} for {int8.file} and {getattr(fp16, unlike)} for "
            f"{fp16.file}",
            AGAIN,
        )
    return Measured(int8, fp16, tuple(paths))


def _listed(rows: Sequence[BenchRow]) -> str:
    return ", ".join(r.file for r in rows) or "none"


def pieces(
    layers: Sequence[LayerTime], order: Mapping[str, int], kernels: Sequence[PlanKernel] = ()
) -> list[Piece]:
    """Return measured layers with the ONNX nodes in each.

    Args:
        layers: of a profile.
        order: place of each node in its file, by label.
        kernels: of the engine's plan, whose generated kernels have no names of nodes.

    Returns:
        One for each layer, in order; a layer that names no node of the file has none. Milliseconds.
    """
    by_name: dict[str, list[str]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).extend(kernel.layers)
    return [
        Piece(name=row.name, ms=row.ms, nodes=tuple(_nodes(row.name, order, by_name)))
        for row in layers
    ]


def _nodes(name: str, order: Mapping[str, int], kernels: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the nodes that a measured layer names.

    A region that TensorRT names by its first and last node holds every node between them.
    """
    span = FOREIGN.search(name)
    if span is not None and all(n in order for n in span.groups()):
        first, last = (order[n] for n in span.groups())
        return [n for n, place in order.items() if first <= place <= last]
    bare = MYELIN.sub("", name)
    if bare in kernels:
        return list(kernels[bare])
    parts = (part for text in (name, bare) for part in SEPARATORS.split(text))
    named = (part if part in order else MADE.sub("", part) for part in parts)
    return list(dict.fromkeys(n for n in named if n in order))
