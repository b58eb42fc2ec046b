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
    from trtq.api import load, quantize, samples
    from trtq.bench.compare import CompareRecord, compare
    from trtq.bench.gate import GateRecord, gate
    from trtq.bench.harness import bench
    from trtq.bench.record import BenchRecord
    from trtq.commands.advise import AdviseRecord, advise
    from trtq.commands.allocate import allocate
    from trtq.commands.allocation import AllocateRecord
    from trtq.commands.analyze import AnalyzeRecord, analyze
    from trtq.commands.audit import AuditRecord, audit
    from trtq.commands.blocks import BlocksRecord, blocks
    from trtq.commands.calibration import CalibrationRecord, export_calib, import_calib
    from trtq.commands.cost import CostRecord, cost
    from trtq.commands.deploy import deploy
    from trtq.commands.evaluate import EvaluateRecord, evaluate
    from trtq.commands.export import ExportRecord, export_profiles
    from trtq.commands.finetune import finetune
    from trtq.commands.finetune_record import FinetuneRecord
    from trtq.commands.fleet import fleet
    from trtq.commands.import_checkpoint import ImportRecord, import_checkpoint
    from trtq.commands.inspect import inspect
    from trtq.commands.lint import LintRecord, run_lint
    from trtq.commands.report import ReportRecord, write_report
    from trtq.commands.search import search
    from trtq.commands.search_record import SearchRecord
    from trtq.deploy.record import DeployRecord, FleetRecord
    from trtq.engine.build import build
    from trtq.engine.manifest import EngineManifest
    from trtq.engine.open_engine import open_engine
    from trtq.errors import TrtqError
    from trtq.flow.quantized import Quantized
    from trtq.flow.records import QuantizeRecord
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

_WHERE = {
    "AdviseRecord": "trtq.commands.advise",
    "AdviseSpec": "trtq.specs",
    "AllocateRecord": "trtq.commands.allocation",
    "AllocateSpec": "trtq.specs",
    "AnalyzeRecord": "trtq.commands.analyze",
    "AnalyzeSpec": "trtq.specs",
    "AuditRecord": "trtq.commands.audit",
    "AuditSpec": "trtq.specs",
    "BenchRecord": "trtq.bench.record",
    "BenchSpec": "trtq.specs",
    "BlocksRecord": "trtq.commands.blocks",
    "BlocksSpec": "trtq.specs",
    "BuildSpec": "trtq.specs",
    "CalibrationRecord": "trtq.commands.calibration",
    "CompareRecord": "trtq.bench.compare",
    "CompareSpec": "trtq.specs",
    "CostRecord": "trtq.commands.cost",
    "CostSpec": "trtq.specs",
    "DeployRecord": "trtq.deploy.record",
    "DeploySpec": "trtq.specs",
    "Encodings": "trtq.quant.encodings",
    "EngineManifest": "trtq.engine.manifest",
    "EvaluateRecord": "trtq.commands.evaluate",
    "EvaluateSpec": "trtq.specs",
    "ExportCalibSpec": "trtq.specs",
    "ExportRecord": "trtq.commands.export",
    "ExportSpec": "trtq.specs",
    "FinetuneRecord": "trtq.commands.finetune_record",
    "FinetuneSpec": "trtq.specs",
    "FleetRecord": "trtq.deploy.record",
    "FleetSpec": "trtq.specs",
    "GateRecord": "trtq.bench.gate",
    "GateSpec": "trtq.specs",
    "ImportCalibSpec": "trtq.specs",
    "ImportCheckpointSpec": "trtq.specs",
    "ImportRecord": "trtq.commands.import_checkpoint",
    "LintRecord": "trtq.commands.lint",
    "LintSpec": "trtq.specs",
    "QuantizeRecord": "trtq.flow.records",
    "QuantizeSpec": "trtq.specs",
    "Recipe": "trtq.recipe",
    "ReportRecord": "trtq.commands.report",
    "ReportSpec": "trtq.specs",
    "SearchRecord": "trtq.commands.search_record",
    "SearchSpec": "trtq.specs",
    "StageResult": "trtq.pipeline",
    "TrtqError": "trtq.errors",
    "advise": "trtq.commands.advise",
    "allocate": "trtq.commands.allocate",
    "analyze": "trtq.commands.analyze",
    "audit": "trtq.commands.audit",
    "bench": "trtq.bench.harness",
    "blocks": "trtq.commands.blocks",
    "build": "trtq.engine.build",
    "compare": "trtq.bench.compare",
    "cost": "trtq.commands.cost",
    "deploy": "trtq.commands.deploy",
    "evaluate": "trtq.commands.evaluate",
    "export_calib": "trtq.commands.calibration",
    "export_profiles": "trtq.commands.export",
    "finetune": "trtq.commands.finetune",
    "fleet": "trtq.commands.fleet",
    "gate": "trtq.bench.gate",
    "import_calib": "trtq.commands.calibration",
    "import_checkpoint": "trtq.commands.import_checkpoint",
    "inspect": "trtq.commands.inspect",
    "load_recipe": "trtq.recipe",
    "open_engine": "trtq.engine.open_engine",
    "load": "trtq.api",
    "samples": "trtq.api",
    "quantize": "trtq.api",
    "Quantized": "trtq.flow.quantized",
    "QuantizeOptions": "trtq.specs",
    "run_lint": "trtq.commands.lint",
    "run": "trtq.pipeline",
    "search": "trtq.commands.search",
    "write_report": "trtq.commands.report",
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
    "QuantizeOptions",
    "QuantizeRecord",
    "QuantizeSpec",
    "Quantized",
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
    "load",
    "load_recipe",
    "open_engine",
    "quantize",
    "run",
    "run_lint",
    "samples",
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
