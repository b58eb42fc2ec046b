"""How many convolutions and matrix products a TensorRT-RTX plan computes in INT8.

The plan itself says it.

The plan embeds readable rows for tensors (with their type) and operations (with their inputs). The
format is not documented: it is read for known versions only, and anything unexpected gives None
instead of a guess.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

KNOWN_VERSIONS = ("1.7",)
QUOTED = re.compile(rb'"(?:[^"\\\n]|\\.)*"')
TENSOR = re.compile(
    rb'tensor=\{[^{}]*(?:\{[^{}]*\}[^{}]*)*? name="([^"]+)"[^{}]*(?:\{[^{}]*\}[^{}]*)*? type=(\w+)'
)
OPERATION = re.compile(
    rb'(corrltn|fully_connected)=\{ name="([^"]*)" output=\{[^}]*\} input=\{"([^"]+)"'
)


FLOAT_CODES = {b"fp8_e4m3": "fp8", b"fp4_e2m1": "fp4"}
NARROW = ("int8", "fp8", "int4", "fp4")
STORED = re.compile(rb"tensor=\{[^\n]*const_payload_size=[^\n]* type=(\w+)")


class PlanAudit(msgspec.Struct, frozen=True, kw_only=True):
    """Counts read from the plan's own rows.

    Attributes:
        convolutions, products: by the type of the first input, such as ``{"int8": 49}``.
        weights: constants that the plan stores in fewer than 16 bits, by type.
        source: where this was read.
    """

    convolutions: dict[str, int]
    products: dict[str, int]
    weights: dict[str, int] = {}
    source: str = "operation rows inside the TensorRT-RTX plan (undocumented format)"


def text_of(plan: bytes) -> bytes:
    """Return the readable part of a plan.

    It runs from the first tensor row to the zero byte after the last one. The rest is kernels and
    weights. Quotes and braces inside of names become other signs.
    """
    first, last = plan.find(b"tensor={"), plan.rfind(b"tensor={")
    end = plan.find(b"\0", last) if last >= 0 else 0
    text = plan[first : end if end >= 0 else len(plan)] if first >= 0 else b""
    return QUOTED.sub(_plain, text)


def _plain(match: re.Match[bytes]) -> bytes:
    """Return a quoted text without what ends names and groups of a row."""
    return match[0].replace(b'\\"', b"'").replace(b"{", b"(").replace(b"}", b")")


def type_name(kind: bytes) -> str:
    """Return a type of a plan's row as everything else calls it: ``fp8`` for ``fp8_e4m3``."""
    return FLOAT_CODES.get(kind, kind.decode())


def audit_plan(plan: bytes, version: str) -> PlanAudit | None:
    """Return the counts of a plan.

    Args:
        plan: the engine file.
        version: of the builder, such as ``1.7.1``.

    Returns:
        None when the version is unknown or the rows are not as expected.
    """
    if not version.startswith(KNOWN_VERSIONS):
        return None
    plan = text_of(plan)
    types = {m.group(1): type_name(m.group(2)) for m in TENSOR.finditer(plan)}
    counts: dict[bytes, Counter[str]] = {b"corrltn": Counter(), b"fully_connected": Counter()}
    for match in OPERATION.finditer(plan):
        kind = types.get(match.group(3))
        if kind is None:
            return None
        counts[match.group(1)][kind] += 1
    if not any(counts.values()):
        return None
    stored = Counter(type_name(m.group(1)) for m in STORED.finditer(plan))
    return PlanAudit(
        convolutions=dict(counts[b"corrltn"]),
        products=dict(counts[b"fully_connected"]),
        weights={kind: n for kind, n in sorted(stored.items()) if kind in NARROW},
    )
