"""Abilities of each release of TensorRT: ``releases.toml``, loaded when asked.

The builder's process needs it, too, so it imports little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from trtq.errors import EngineError
from trtq.typed import toml_as

FILE = Path(__file__).with_name("releases.toml")
Version = tuple[int, int]


def parse_version(text: str) -> Version:
    """Return the first two numbers of a version.

    Raises:
        ValueError: it has fewer, or they are no numbers.

    >>> parse_version("8.5"), parse_version("8.5.2")
    ((8, 5), (8, 5))
    """
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def shown(version: Version) -> str:
    """Return ``8.5`` for (8, 5)."""
    return f"{version[0]}.{version[1]}"


class Span(NamedTuple):
    """The first and the last release that have something, both included.

    Attributes:
        first: such as (8, 0).
        last: None: the newest still does.
    """

    first: Version
    last: Version | None

    @classmethod
    def parse(cls, text: str) -> Span:
        """Return the span that a row of the catalogue writes, ``8.0 to 10.16`` or ``8.0 on``.

        >>> Span.parse("8.0 to 10.16"), Span.parse("8.0 on").last
        (Span(first=(8, 0), last=(10, 16)), None)
        """
        first, _, last = text.removesuffix(" on").partition(" to ")
        return cls(parse_version(first), parse_version(last) if last else None)

    def covers(self, version: Version) -> bool:
        """Whether a release is in it, both ends included."""
        return self.first <= version and (self.last is None or version <= self.last)

    @property
    def words(self) -> str:
        """The span for a message."""
        if self.last is None:
            return f"from {shown(self.first)} on"
        return f"from {shown(self.first)} to {shown(self.last)}"


class _Bounds(msgspec.Struct, forbid_unknown_fields=True):
    oldest: str
    newest: str
    rtx: str


class _Opset(msgspec.Struct, forbid_unknown_fields=True):
    ir: int | None = None
    reads: str | None = None
    writes: str | None = None
    source: str = ""


class _Sourced(msgspec.Struct, forbid_unknown_fields=True):
    value: str
    source: str


_Rows = dict[str, str | _Sourced]


class _Fact(msgspec.Struct, forbid_unknown_fields=True):
    fact: str
    source: str


class _Rtx(msgspec.Struct, forbid_unknown_fields=True):
    features_missing: list[str]
    ops_missing: str
    ops_more: str


class _Plugins(msgspec.Struct, forbid_unknown_fields=True):
    domains: str
    names: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The form of ``releases.toml``, which explains its tables."""

    release: _Bounds
    opset: dict[str, _Opset]
    flag: _Rows
    feature: _Rows
    api: _Rows
    form: _Rows
    type: _Rows
    op: _Rows
    custom: _Rows
    rtx: _Rtx
    fact: dict[str, list[_Fact]]
    plugin: _Plugins


class Read(NamedTuple):
    """A fact of a release, and where it was read.

    Attributes:
        version: such as (11, 5).
        fact: in words.
        source: a page or release notes.
    """

    version: Version
    fact: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """The catalogue of releases.

    Attributes:
        oldest, newest: that trtq knows.
        rtx: TensorRT for RTX has the API and the parser of this one.
        ir: opset: the IR version of files with it.
        reads: newest opset that the parser reads, by the first release that does.
        writes: newest opset in which every op that trtq writes exists, by the first release.
        flags, features, apis, forms, types, ops, custom: spans by name.
        rtx_missing: features and ops that TensorRT for RTX lacks.
        rtx_ops: ops that only TensorRT for RTX has.
        plugins: of NVIDIA's own library; ``plugin_domains`` of nodes that may be plugins.
    """

    oldest: Version
    newest: Version
    rtx: Version
    ir: Mapping[int, int]
    reads: tuple[tuple[Version, int], ...]
    writes: tuple[tuple[Version, int], ...]
    flags: Mapping[str, Span]
    features: Mapping[str, Span]
    apis: Mapping[str, Span]
    forms: Mapping[str, Span]
    types: Mapping[str, Span]
    ops: Mapping[str, Span]
    custom: Mapping[str, Span]
    rtx_missing: frozenset[str]
    rtx_ops: frozenset[str]
    plugins: frozenset[str]
    plugin_domains: frozenset[str]


@cache
def releases() -> Releases:
    """Return the catalogue."""
    file = toml_as(FILE.read_bytes(), _File)
    opsets = {int(n): row for n, row in file.opset.items()}
    return Releases(
        oldest=parse_version(file.release.oldest),
        newest=parse_version(file.release.newest),
        rtx=parse_version(file.release.rtx),
        ir={n: row.ir for n, row in opsets.items() if row.ir is not None},
        reads=_steps({n: row.reads for n, row in opsets.items()}),
        writes=_steps({n: row.writes for n, row in opsets.items()}),
        flags=_spans(file.flag),
        features=_spans(file.feature),
        apis=_spans(file.api),
        forms=_spans(file.form),
        types=_spans(file.type),
        ops={
            op: Span(parse_version(first), None)
            for first, ops in file.op.items()
            for op in _value(ops).split()
        },
        custom=_spans(file.custom),
        rtx_missing=frozenset([*file.rtx.features_missing, *file.rtx.ops_missing.split()]),
        rtx_ops=frozenset(file.rtx.ops_more.split()),
        plugins=frozenset(file.plugin.names.split()),
        plugin_domains=frozenset(file.plugin.domains.split()),
    )


def _value(row: str | _Sourced) -> str:
    return row if isinstance(row, str) else row.value


def _spans(rows: _Rows) -> dict[str, Span]:
    return {name: Span.parse(_value(row)) for name, row in rows.items()}


# Tables of spans, and what a row of each is called on the page of sources.
TITLES = {
    "flag": "trtexec --{}",
    "feature": "{}",
    "api": "Python API: {}",
    "form": "{}",
    "type": "tensors of {}",
    "custom": "op {}",
}


def sources() -> list[Read]:
    """Return every fact that has a source of its own, by release."""
    file = toml_as(FILE.read_bytes(), _File)
    facts = [
        Read(span.first, f"{title.format(name)}, {span.words}", row.source)
        for table, title in TITLES.items()
        for name, row in getattr(file, table).items()
        if isinstance(row, _Sourced)
        for span in (Span.parse(row.value),)
    ]
    facts += [
        Read(parse_version(first), f"ops {row.value}", row.source)
        for first, row in file.op.items()
        if isinstance(row, _Sourced)
    ]
    facts += [
        Read(parse_version(row.reads), f"ONNX opset {number}", row.source)
        for number, row in file.opset.items()
        if row.source and row.reads
    ]
    facts += [
        Read(parse_version(first), row.fact, row.source)
        for first, rows in file.fact.items()
        for row in rows
    ]
    return sorted(facts)


def _steps(first: Mapping[int, str | None]) -> tuple[tuple[Version, int], ...]:
    return tuple(sorted((parse_version(v), opset) for opset, v in first.items() if v is not None))


def offers(feature: str, version: Version) -> bool:
    """Whether a release has a feature of the catalogue.

    Args:
        feature: a name of the catalogue; another is a KeyError.
        version: of TensorRT.

    >>> offers("calibration cache", (10, 16)), offers("calibration cache", (11, 0))
    (True, False)
    >>> offers("typed", (8, 6))
    False
    """
    return releases().features[feature].covers(version)


def has_api(name: str, version: Version) -> bool:
    """Whether a release's Python API has a name of the catalogue.

    Args:
        name: its last part, as the catalogue has it; another is a KeyError.
        version: of TensorRT.

    >>> has_api("FP16", (10, 3)), has_api("FP16", (11, 4)), has_api("progress_monitor", (8, 6))
    (True, False, False)
    """
    return releases().apis[name].covers(version)


def has_flag(name: str, version: Version) -> bool:
    """Whether a release's trtexec has a flag of the catalogue.

    Args:
        name: as the catalogue has it, without dashes; another is a KeyError.
        version: of TensorRT.

    >>> has_flag("workspace", (9, 3)), has_flag("workspace", (10, 0))
    (True, False)
    """
    return releases().flags[name].covers(version)


def apis_of(version: Version) -> list[str]:
    """Return the names of the catalogue that a release's Python API has."""
    return sorted(name for name, span in releases().apis.items() if span.covers(version))


def release_of_module(module: Any) -> Version:
    """Return the release whose Python API a module has.

    Args:
        module: ``tensorrt``, or ``tensorrt_rtx``, which counts from 1 and has the API of another
            release.
    """
    if module.__name__ == "tensorrt_rtx":
        return releases().rtx
    return parse_version(str(module.__version__))


def newer_note(version: Version) -> str:
    """Return the note about a release that is newer than the catalogue, "" for others.

    >>> newer_note((12, 0))
    'TensorRT 12.0 is newer than this trtq, which knows releases up to 11.5; it is treated as 11.5'
    >>> newer_note((11, 5)), newer_note((10, 3))
    ('', '')
    """
    newest = releases().newest
    if version[: len(newest)] <= newest:
        return ""
    return (
        f"TensorRT {shown(version)} is newer than this trtq, which knows releases up to "
        f"{shown(newest)}; it is treated as {shown(newest)}"
    )


def opset_read(version: Version) -> int:
    """Return the newest opset that a release's parser reads.

    Raises:
        EngineError: the release is older than trtq knows.

    >>> opset_read((8, 4)), opset_read((10, 3))
    (17, 21)
    """
    return _newest(version, releases().reads)


def opset_written(version: Version) -> int:
    """Return the newest opset that trtq writes for a release.

    Raises:
        EngineError: the release is older than trtq knows.

    >>> opset_written((8, 4)), opset_written((10, 3))
    (16, 20)
    """
    return _newest(version, releases().writes)


def _newest(version: Version, steps: tuple[tuple[Version, int], ...]) -> int:
    known = [opset for first, opset in steps if version >= first]
    if not known:
        raise EngineError(
            f"TensorRT {shown(version)} is too old",
            f"trtq knows TensorRT from {shown(releases().oldest)} on",
            "Install a newer TensorRT",
        )
    return known[-1]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Runtime that reads an ONNX file and runs its engine.

    Attributes:
        version: release of TensorRT; None: any that a machine may have, from the first with typed
            graphs on, or TensorRT for RTX.
        rtx: TensorRT for RTX.
    """

    version: Version | None = None
    rtx: bool = False

    @property
    def title(self) -> str:
        """Its name in messages."""
        if self.rtx:
            return "TensorRT for RTX"
        if self.version is None:
            return f"TensorRT {releases().features['typed'].first[0]} and later"
        return f"TensorRT {shown(self.version)}"

    @property
    def api(self) -> Version | None:
        """The release whose API and parser it has; None: any."""
        return releases().rtx if self.rtx else self.version

    @property
    def opset(self) -> int:
        """The newest opset that its parser reads."""
        return releases().reads[-1][1] if self.api is None else opset_read(self.api)

    def within(self, span: Span) -> bool:
        """Whether it is in a span; any release counts as the newest."""
        return span.last is None if self.api is None else span.covers(self.api)

    def parses(self, form: str) -> bool:
        """Whether its parser takes a form of the catalogue."""
        return self.within(releases().forms[form])

    def lacks(self, feature: str) -> str:
        """Return why it has no such feature, "" where it has it.

        Args:
            feature: a name of the catalogue.
        """
        catalogue = releases()
        span = catalogue.features[feature]
        if self.rtx and feature in catalogue.rtx_missing:
            return f"{self.title} has no {feature}"
        if self.within(span):
            return ""
        return f"{self.title} has no {feature} (releases {span.words} have it)"
