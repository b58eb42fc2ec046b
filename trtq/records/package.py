"""The result of ``trtq package``."""

from __future__ import annotations

import msgspec

from trtq.artifact import Environment, FileRecord, Record, size_words
from trtq.engine.manifest import EngineManifest


class PackagedFor(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one consumer.

    Attributes:
        name: of the consumer, and of its folder.
        files: paths below the package.
        notes: what was left out, assumed or differs for this consumer.
    """

    name: str
    files: list[str]
    notes: list[str]


class PackageRecord(Record, frozen=True, kw_only=True):
    """The result of ``trtq package``.

    Attributes:
        model: what consumers call it.
        source: the packaged file.
        source_sha256: its digest, as its manifest or trtq inspect says it.
        format: ``engine`` or ``onnx``.
        task: what the outputs mean; "" where that is not known.
        preprocess: how images become the input, in words; "" where that is not known.
        consumers: in the order they were asked for.
        files: of the package, all but this record.
        manifest: of the engine; None for an ONNX file.
        notes: what holds for all consumers.
    """

    model: str
    source: str
    source_sha256: str
    format: str
    task: str
    preprocess: str
    consumers: list[PackagedFor]
    files: dict[str, FileRecord]
    manifest: EngineManifest | None
    notes: list[str]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        names = ", ".join(c.name for c in self.consumers)
        size = sum(f.bytes for f in self.files.values())
        return f"{self.model} for {names}: {len(self.files)} files, {size_words(size)}"
