"""All kinds of records that trtq writes, and the functions that read them.

Reading a record parses it and checks its schema and the type of each field.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from trtq.artifact import check_record, read_json
from trtq.errors import ArtifactError

# By name: the classes lie in higher rooms, which this one must not import.
RECORDS = {
    "quantize": "trtq.flow.records:QuantizeRecord",
    "evaluate": "trtq.commands.evaluate:EvaluateRecord",
    "finetune": "trtq.commands.finetune_record:FinetuneRecord",
    "search": "trtq.commands.search_record:SearchRecord",
    "analyze": "trtq.commands.analyze:AnalyzeRecord",
    "allocate": "trtq.commands.allocation:AllocateRecord",
    "advise": "trtq.commands.advise:AdviseRecord",
    "build": "trtq.engine.manifest:EngineManifest",
    "bench": "trtq.bench.record:BenchRecord",
    "compare": "trtq.bench.compare:CompareRecord",
    "gate": "trtq.bench.gate:GateRecord",
    "deploy": "trtq.deploy.record:DeployRecord",
    "fleet": "trtq.deploy.record:FleetRecord",
    "lint": "trtq.commands.lint:LintRecord",
    "audit": "trtq.commands.audit:AuditRecord",
    "cost": "trtq.commands.cost:CostRecord",
    "report": "trtq.commands.report:ReportRecord",
    "export": "trtq.commands.export:ExportRecord",
    "export-calib": "trtq.commands.calibration:CalibrationRecord",
    "import-calib": "trtq.commands.calibration:CalibrationRecord",
    "import-checkpoint": "trtq.commands.import_checkpoint:ImportRecord",
}


def record_type(verb: str) -> Any:
    """Return the class of the records of a verb."""
    module, _, name = RECORDS[verb].partition(":")
    return getattr(importlib.import_module(module), name)


def read_known(path: Path, *verbs: str, kind: str = "") -> Any:
    """Return the record in ``path`` as its struct.

    Args:
        path: of the JSON file.
        verbs: verbs whose records are accepted; default: all.
        kind: for messages; default: named after the first of the verbs.

    Raises:
        ArtifactError: missing, damaged, of a newer trtq, or of another verb.
    """
    kind = kind or f"{verbs[0]} record" if verbs else "record"
    return known(read_json(path, kind=kind), path, *verbs, kind=kind)


def known(content: dict[str, Any], path: Path, *verbs: str, kind: str = "record") -> Any:
    """Return a JSON object of ``path`` as the struct of its verb.

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
        )
    return check_record(content, path, record_type(verb), kind=kind)


def read_checked(path: Path, *verbs: str, kind: str = "") -> dict[str, Any]:
    """Return the record in ``path`` as plain JSON, after the same checks as :func:`read_known`.

    Raises:
        ArtifactError: missing, damaged, of a newer trtq, or of another verb.
    """
    kind = kind or f"{verbs[0]} record" if verbs else "record"
    content = read_json(path, kind=kind)
    known(content, path, *verbs, kind=kind)
    return content
