"""trtq: take a PyTorch vision model to a quantized TensorRT engine and prove what it gained.

Each verb takes a frozen spec and returns a record::

    from trtq import QuantizeSpec, quantize

    spec = QuantizeSpec(
        model="timm:resnet18", checkpoint="resnet18.pt", data="images/", out="out"
    )
    record = quantize(spec)
    print(record.summary)

Importing trtq imports none of torch, onnx or TensorRT; each verb imports what it needs.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from trtq.version import __version__

if TYPE_CHECKING:
    from trtq.bench.contest import CompareRecord, compare
    from trtq.bench.gate import GateRecord, gate
    from trtq.bench.harness import bench
    from trtq.bench.record import BenchRecord
    from trtq.deploy.record import DeployRecord, FleetRecord
    from trtq.engine.build import build
    from trtq.engine.manifest import EngineManifest
    from trtq.engine.open_engine import open_engine
    from trtq.errors import TrtqError
    from trtq.pipeline import StageResult, run
    from trtq.quant.encodings import Encodings
    from trtq.recipe import Recipe, load_recipe
    from trtq.specs import (
        AdviseSpec,
        AllocateSpec,
        AnalyzeSpec,
        AuditSpec,
        BenchSpec,
        BlocksSpec,
        BuildSpec,
        CompareSpec,
        CostSpec,
        DeploySpec,
        EvaluateSpec,
        ExportCalibSpec,
        ExportSpec,
        FinetuneSpec,
        FleetSpec,
        GateSpec,
        ImportCalibSpec,
        ImportCheckpointSpec,
        LintSpec,
        QuantizeSpec,
        ReportSpec,
        SearchSpec,
    )
    from trtq.verbs.advise import AdviseRecord, advise
    from trtq.verbs.allocate import allocate
    from trtq.verbs.allocation import AllocateRecord
    from trtq.verbs.analyze import AnalyzeRecord, analyze
    from trtq.verbs.audit import AuditRecord, audit
    from trtq.verbs.blocks import BlocksRecord, blocks
    from trtq.verbs.calibration import CalibrationRecord, export_calib, import_calib
    from trtq.verbs.cost import CostRecord, cost
    from trtq.verbs.deploy import deploy
    from trtq.verbs.evaluate import EvaluateRecord, evaluate
    from trtq.verbs.export import ExportRecord, export_profiles
    from trtq.verbs.finetune import finetune
    from trtq.verbs.finetune_record import FinetuneRecord
    from trtq.verbs.fleet import fleet
    from trtq.verbs.import_checkpoint import ImportRecord, import_checkpoint
    from trtq.verbs.inspect import inspect
    from trtq.verbs.lint import LintRecord, run_lint
    from trtq.verbs.quantize import quantize
    from trtq.verbs.records import QuantizeRecord
    from trtq.verbs.report import ReportRecord, write_report
    from trtq.verbs.search import search
    from trtq.verbs.search_record import SearchRecord

_WHERE = {
    "AdviseRecord": "trtq.verbs.advise",
    "AdviseSpec": "trtq.specs",
    "AllocateRecord": "trtq.verbs.allocation",
    "AllocateSpec": "trtq.specs",
    "AnalyzeRecord": "trtq.verbs.analyze",
    "AnalyzeSpec": "trtq.specs",
    "AuditRecord": "trtq.verbs.audit",
    "AuditSpec": "trtq.specs",
    "BenchRecord": "trtq.bench.record",
    "BenchSpec": "trtq.specs",
    "BlocksRecord": "trtq.verbs.blocks",
    "BlocksSpec": "trtq.specs",
    "BuildSpec": "trtq.specs",
    "CalibrationRecord": "trtq.verbs.calibration",
    "CompareRecord": "trtq.bench.contest",
    "CompareSpec": "trtq.specs",
    "CostRecord": "trtq.verbs.cost",
    "CostSpec": "trtq.specs",
    "DeployRecord": "trtq.deploy.record",
    "DeploySpec": "trtq.specs",
    "Encodings": "trtq.quant.encodings",
    "EngineManifest": "trtq.engine.manifest",
    "EvaluateRecord": "trtq.verbs.evaluate",
    "EvaluateSpec": "trtq.specs",
    "ExportCalibSpec": "trtq.specs",
    "ExportRecord": "trtq.verbs.export",
    "ExportSpec": "trtq.specs",
    "FinetuneRecord": "trtq.verbs.finetune_record",
    "FinetuneSpec": "trtq.specs",
    "FleetRecord": "trtq.deploy.record",
    "FleetSpec": "trtq.specs",
    "GateRecord": "trtq.bench.gate",
    "GateSpec": "trtq.specs",
    "ImportCalibSpec": "trtq.specs",
    "ImportCheckpointSpec": "trtq.specs",
    "ImportRecord": "trtq.verbs.import_checkpoint",
    "LintRecord": "trtq.verbs.lint",
    "LintSpec": "trtq.specs",
    "QuantizeRecord": "trtq.verbs.records",
    "QuantizeSpec": "trtq.specs",
    "Recipe": "trtq.recipe",
    "ReportRecord": "trtq.verbs.report",
    "ReportSpec": "trtq.specs",
    "SearchRecord": "trtq.verbs.search_record",
    "SearchSpec": "trtq.specs",
    "StageResult": "trtq.pipeline",
    "TrtqError": "trtq.errors",
    "advise": "trtq.verbs.advise",
    "allocate": "trtq.verbs.allocate",
    "analyze": "trtq.verbs.analyze",
    "audit": "trtq.verbs.audit",
    "bench": "trtq.bench.harness",
    "blocks": "trtq.verbs.blocks",
    "build": "trtq.engine.build",
    "compare": "trtq.bench.contest",
    "cost": "trtq.verbs.cost",
    "deploy": "trtq.verbs.deploy",
    "evaluate": "trtq.verbs.evaluate",
    "export_calib": "trtq.verbs.calibration",
    "export_profiles": "trtq.verbs.export",
    "finetune": "trtq.verbs.finetune",
    "fleet": "trtq.verbs.fleet",
    "gate": "trtq.bench.gate",
    "import_calib": "trtq.verbs.calibration",
    "import_checkpoint": "trtq.verbs.import_checkpoint",
    "inspect": "trtq.verbs.inspect",
    "load_recipe": "trtq.recipe",
    "open_engine": "trtq.engine.open_engine",
    "quantize": "trtq.verbs.quantize",
    "run_lint": "trtq.verbs.lint",
    "run": "trtq.pipeline",
    "search": "trtq.verbs.search",
    "write_report": "trtq.verbs.report",
}

__all__ = [
    "AdviseRecord",
    "AdviseSpec",
    "AllocateRecord",
    "AllocateSpec",
    "AnalyzeRecord",
    "AnalyzeSpec",
    "AuditRecord",
    "AuditSpec",
    "BenchRecord",
    "BenchSpec",
    "BlocksRecord",
    "BlocksSpec",
    "BuildSpec",
    "CalibrationRecord",
    "CompareRecord",
    "CompareSpec",
    "CostRecord",
    "CostSpec",
    "DeployRecord",
    "DeploySpec",
    "Encodings",
    "EngineManifest",
    "EvaluateRecord",
    "EvaluateSpec",
    "ExportCalibSpec",
    "ExportRecord",
    "ExportSpec",
    "FinetuneRecord",
    "FinetuneSpec",
    "FleetRecord",
    "FleetSpec",
    "GateRecord",
    "GateSpec",
    "ImportCalibSpec",
    "ImportCheckpointSpec",
    "ImportRecord",
    "LintRecord",
    "LintSpec",
    "QuantizeRecord",
    "QuantizeSpec",
    "Recipe",
    "ReportRecord",
    "ReportSpec",
    "SearchRecord",
    "SearchSpec",
    "StageResult",
    "TrtqError",
    "__version__",
    "advise",
    "allocate",
    "analyze",
    "audit",
    "bench",
    "blocks",
    "build",
    "compare",
    "cost",
    "deploy",
    "evaluate",
    "export_calib",
    "export_profiles",
    "finetune",
    "fleet",
    "gate",
    "import_calib",
    "import_checkpoint",
    "inspect",
    "load_recipe",
    "open_engine",
    "quantize",
    "run",
    "run_lint",
    "search",
    "write_report",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trtq' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
