"""Writes the table of error codes from the source: ``make errors``.

Numbers stay: a row is found again by its texts, or by the nearest ones where they were reworded.
A number whose error is gone is closed and never given again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence

import msgspec

from tests.support.error_sites import CLASSES, Texts, sites
from trtq.error_codes import TABLE, Closed, Group, Row

# Prefix of the codes and page of the docs for each class.
GROUPS = {
    "TrtqError": ("TRTQ", "troubleshooting"),
    "UsageError": ("USAGE", "commands"),
    "MissingExtraError": ("EXTRA", "index"),
    "ModelError": ("MODEL", "models"),
    "DataError": ("DATA", "data"),
    "CaptureError": ("CAPTURE", "inputs"),
    "CalibrationError": ("CALIB", "methods"),
    "EncodingsError": ("ENCODING", "concepts"),
    "ExportError": ("EXPORT", "targets"),
    "ParityError": ("PARITY", "troubleshooting"),
    "EngineError": ("ENGINE", "engine"),
    "BuilderMemoryError": ("MEMORY", "targets"),
    "MissingKernelError": ("KERNEL", "targets"),
    "AgreementError": ("AGREE", "engine"),
    "BenchError": ("BENCH", "benchmarking"),
    "MeterError": ("METER", "benchmarking"),
    "DeviceError": ("DEVICE", "jetson"),
    "SshError": ("SSH", "jetson"),
    "LinkError": ("LINK", "jetson"),
    "HostKeyError": ("HOSTKEY", "jetson"),
    "BoardError": ("BOARD", "jetson"),
    "ArtifactError": ("ARTIFACT", "concepts"),
    "SystemRefusalError": ("SYSTEM", "troubleshooting"),
}
NEAR = 0.6  # share of two texts that must be the same for a reworded error


def number(table: dict[str, Group], found: Iterable[Texts]) -> dict[str, Group]:
    """Return the table with the texts of today, and the numbers that they had."""
    every = list(found)
    new = {
        kind: _numbered(table.get(kind), kind, [t for t in every if t.kind == kind])
        for kind in CLASSES
    }
    today = {_key(row): g.code(row.number) for g in new.values() for row in g.rows}
    for kind, group in new.items():
        closed = [
            msgspec.structs.replace(row, replaced_by=today.get(_key(row), row.replaced_by))
            for row in group.closed
        ]
        new[kind] = msgspec.structs.replace(group, closed=closed)
    return new


def _key(row: Row | Closed, kind: str = "") -> tuple[str, ...]:
    return Texts(kind, *texts(row)).key


def texts(row: Row | Closed) -> tuple[str, str, str]:
    return row.message, row.reason, row.hint


def _numbered(group: Group | None, kind: str, found: list[Texts]) -> Group:
    prefix, page = GROUPS[kind]
    old: list[Row | Closed] = [*group.rows, *group.closed] if group else []
    numbers = {_key(row, kind): row.number for row in reversed(old)}
    kept = {numbers[t.key]: t for t in found if t.key in numbers}
    left = [t for t in found if t not in kept.values()]
    gone = [row for row in (group.rows if group else []) if row.number not in kept]
    for row, site in _nearest(kind, gone, left):
        kept[row.number] = site
        left.remove(site)
    first = max((row.number for row in old), default=0) + 1
    kept |= dict(enumerate(left, first))
    closed = [
        Closed(row.number, *texts(row), getattr(row, "replaced_by", ""))
        for row in old
        if row.number not in kept
    ]
    return Group(
        prefix=prefix,
        page=f"{page}.md",
        rows=[Row(n, *kept[n][1:]) for n in sorted(kept)],
        closed=sorted(closed, key=lambda row: row.number),
    )


def _nearest(kind: str, gone: Sequence[Row], left: Sequence[Texts]) -> Iterable[tuple[Row, Texts]]:
    """Yield the pairs of an old row and a new site that say nearly the same."""
    pairs = [
        (_likeness(Texts(kind, *texts(row)), site), -row.number, i, row, site)
        for row in gone
        for i, site in enumerate(left)
    ]
    rows, used = set[int](), set[int]()
    for likeness, _, i, row, site in sorted(pairs, key=lambda p: p[:3], reverse=True):
        if likeness >= NEAR and row.number not in rows and i not in used:
            rows.add(row.number)
            used.add(i)
            yield row, site


def _likeness(one: Texts, other: Texts) -> float:
    a, b = (": ".join(t.fixed[1:]) for t in (one, other))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def written(table: dict[str, Group]) -> str:
    """Return the table as JSON with one row a line, which merges and reads well."""
    parts = []
    for kind, group in table.items():
        rows, closed = (
            ",\n".join(json.dumps(msgspec.to_builtins(row), ensure_ascii=False) for row in part)
            for part in (group.rows, group.closed)
        )
        head = f'"prefix": "{group.prefix}", "page": "{group.page}"'
        parts.append(f'"{kind}": {{{head}, "rows": [\n{rows}\n], "closed": [\n{closed}\n]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read() -> dict[str, Group]:
    if not TABLE.exists():
        return {}
    return msgspec.json.decode(TABLE.read_bytes(), type=dict[str, Group])


if __name__ == "__main__":
    TABLE.write_text(written(number(read(), sites())))
