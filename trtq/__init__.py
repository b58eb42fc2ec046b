"""trtq: quantize PyTorch and ONNX models for TensorRT, build engines, and measure them.

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

from trtq.verbs import public_names

if TYPE_CHECKING:  # the table of verbs, for type checkers
    from trtq.api import load as load
    from trtq.api import quantize as quantize
    from trtq.api import samples as samples
    from trtq.api_flows import analyze as analyze
    from trtq.api_flows import finetune as finetune
    from trtq.api_flows import search as search
    from trtq.bench.compare import CompareRecord as CompareRecord
    from trtq.bench.compare import compare as compare
    from trtq.bench.gate import GateRecord as GateRecord
    from trtq.bench.gate import gate as gate
    from trtq.bench.objects import bench as bench
    from trtq.bench.record import BenchRecord as BenchRecord
    from trtq.commands.advise import advise as advise
    from trtq.commands.allocate import allocate as allocate
    from trtq.commands.audit import AuditRecord as AuditRecord
    from trtq.commands.audit import audit as audit
    from trtq.commands.blocks import BlocksRecord as BlocksRecord
    from trtq.commands.blocks import blocks as blocks
    from trtq.commands.calibration import CalibrationRecord as CalibrationRecord
    from trtq.commands.calibration import export_calib as export_calib
    from trtq.commands.calibration import import_calib as import_calib
    from trtq.commands.cost import CostRecord as CostRecord
    from trtq.commands.cost import cost as cost
    from trtq.commands.deploy import deploy as deploy
    from trtq.commands.evaluate import evaluate as evaluate
    from trtq.commands.export import ExportRecord as ExportRecord
    from trtq.commands.export import export_profiles as export_profiles
    from trtq.commands.fleet import fleet as fleet
    from trtq.commands.import_checkpoint import ImportRecord as ImportRecord
    from trtq.commands.import_checkpoint import import_checkpoint as import_checkpoint
    from trtq.commands.inspect import inspect as inspect
    from trtq.commands.lint import LintRecord as LintRecord
    from trtq.commands.lint import run_lint as run_lint
    from trtq.commands.package import package as package
    from trtq.commands.report import ReportRecord as ReportRecord
    from trtq.commands.report import write_report as write_report
    from trtq.deploy.record import DeployRecord as DeployRecord
    from trtq.deploy.record import FleetRecord as FleetRecord
    from trtq.engine.manifest import EngineManifest as EngineManifest
    from trtq.engine.objects import Engine as Engine
    from trtq.engine.objects import build as build
    from trtq.engine.open_engine import open_engine as open_engine
    from trtq.errors import TrtqError as TrtqError
    from trtq.flow.finetune import Finetuned as Finetuned
    from trtq.flow.quantized import Quantized as Quantized
    from trtq.flow.search import Searched as Searched
    from trtq.pipeline import StageResult as StageResult
    from trtq.pipeline import run as run
    from trtq.quant.encodings import Encodings as Encodings
    from trtq.recipe import Recipe as Recipe
    from trtq.recipe import load_recipe as load_recipe
    from trtq.records.advise import AdviseRecord as AdviseRecord
    from trtq.records.allocate import AllocateRecord as AllocateRecord
    from trtq.records.analyze import AnalyzeRecord as AnalyzeRecord
    from trtq.records.evaluate import EvaluateRecord as EvaluateRecord
    from trtq.records.finetune import FinetuneRecord as FinetuneRecord
    from trtq.records.package import PackageRecord as PackageRecord
    from trtq.records.quantize import QuantizeRecord as QuantizeRecord
    from trtq.records.search import SearchRecord as SearchRecord
    from trtq.records.sweep import SweepRecord as SweepRecord
    from trtq.specs import AdviseSpec as AdviseSpec
    from trtq.specs import AllocateSpec as AllocateSpec
    from trtq.specs import AnalyzeOptions as AnalyzeOptions
    from trtq.specs import AnalyzeSpec as AnalyzeSpec
    from trtq.specs import AuditSpec as AuditSpec
    from trtq.specs import BenchSpec as BenchSpec
    from trtq.specs import BlocksSpec as BlocksSpec
    from trtq.specs import BuildSpec as BuildSpec
    from trtq.specs import CompareSpec as CompareSpec
    from trtq.specs import CostSpec as CostSpec
    from trtq.specs import DeploySpec as DeploySpec
    from trtq.specs import EvaluateSpec as EvaluateSpec
    from trtq.specs import ExportCalibSpec as ExportCalibSpec
    from trtq.specs import ExportSpec as ExportSpec
    from trtq.specs import FinetuneOptions as FinetuneOptions
    from trtq.specs import FinetuneSpec as FinetuneSpec
    from trtq.specs import FleetSpec as FleetSpec
    from trtq.specs import GateSpec as GateSpec
    from trtq.specs import ImportCalibSpec as ImportCalibSpec
    from trtq.specs import ImportCheckpointSpec as ImportCheckpointSpec
    from trtq.specs import LintSpec as LintSpec
    from trtq.specs import PackageSpec as PackageSpec
    from trtq.specs import QuantizeOptions as QuantizeOptions
    from trtq.specs import QuantizeSpec as QuantizeSpec
    from trtq.specs import ReportSpec as ReportSpec
    from trtq.specs import SearchOptions as SearchOptions
    from trtq.specs import SearchSpec as SearchSpec
    from trtq.specs import SweepSpec as SweepSpec
    from trtq.sweep.command import sweep as sweep
    from trtq.version import __version__ as __version__

_WHERE = public_names()
__all__ = list(_WHERE)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trtq' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
