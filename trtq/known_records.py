"""All kinds of records that trtq writes, and the functions that read them.

Reading a record parses it and checks its schema and the type of each field.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trtq.artifact import check_record, read_json
from trtq.errors import ArtifactError
from trtq.verbs import VERBS

# By name: the classes are in higher rooms, which this one must not import.
RECORDS = {verb.name: verb.record for verb in VERBS.values() if verb.record}


def record_type(verb: str) -> Any:
    """Return the class of the records of a verb, which is imported.

    Args:
        verb: a key of ``RECORDS``; another is a KeyError.
    """
    module, _, name = RECORDS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


def read_known(path: Path, *verbs: str, kind: str = "", hint: str = "") -> Any:
    """Return the record in ``path`` as its struct.

    Args:
        path: of the JSON file.
        verbs: verbs whose records are accepted; default: all.
        kind: for messages; default: named after the first of the verbs.
        hint: what to type where it is of another verb; default: the name of the right file.

    Raises:
        ArtifactError: missing, damaged, of a newer trtq, or of another verb.
    """
    kind = kind or f"{verbs[0]} record" if verbs else "record"
    return known(read_json(path, kind=kind), path, *verbs, kind=kind, hint=hint)


def known(
    content: Mapping[str, Any], path: Path, *verbs: str, kind: str = "record", hint: str = ""
) -> Any:
    """Return a JSON object of ``path`` as the struct of its verb.

    Args:
        content: of the file.
        path: of the file, for messages.
        verbs: verbs whose records are accepted; default: all.
        kind: what the file is, for messages.
        hint: what to type where it is of another verb; default: the name of the right file.

    Raises:
        ArtifactError: it is of another verb, or a field is missing or has another type.
    """
    verb = content.get("verb")
    if not isinstance(verb, str) or verb not in RECORDS:
        raise ArtifactError(
            f"Cannot read the {kind} {path}",
            f"its verb is {verb!r}, which is none of trtq's",
            "Is it another tool's?",
        )
    if verbs and verb not in verbs:
        raise ArtifactError(
            f"Cannot read the {kind} {path}",
            f"it is of trtq {verb}, expected trtq {' or '.join(verbs)}",
            hint or _right_files(verbs),
        )
    return check_record(content, path, record_type(verb), kind=kind)


def _right_files(verbs: Iterable[str]) -> str:
    """Return a hint with the names of the files that verbs write."""
    names = [f"{VERBS[v].file} of trtq {v}" for v in verbs if VERBS[v].file]
    return f"Name {' or '.join(names)}" if names else ""
