"""The arguments of each verb: frozen specs, one file per family.

The command line's options and TOML recipes are made from these fields.
"""

from trtq.specs.advise import AdviseSpec, CostSpec
from trtq.specs.base import (
    Spec,
    changed_words,
    option_name,
    option_words,
    parse_text,
    plain_type,
    require_alone,
)
from trtq.specs.bench import BenchSpec, CompareSpec, GateSpec, ReportSpec
from trtq.specs.deploy import DeployOptions, DeploySpec, FleetSpec
from trtq.specs.engine import (
    AuditSpec,
    BuildOptions,
    BuildSpec,
    ExportCalibSpec,
    ExportSpec,
    ImportCalibSpec,
    LintSpec,
)
from trtq.specs.fields import OPSET
from trtq.specs.finetune import FinetuneOptions, FinetuneSpec
from trtq.specs.inputs import BlocksSpec, InputSpec, ModelInputSpec
from trtq.specs.options import Options, QuantizeOptions
from trtq.specs.package import PackageSpec
from trtq.specs.quantize import EvaluateSpec, ImportCheckpointSpec, QuantizeSpec
from trtq.specs.search import (
    AllocateOptions,
    AllocateSpec,
    AnalyzeOptions,
    AnalyzeSpec,
    SearchOptions,
    SearchSpec,
)
from trtq.specs.sweep import SweepSpec, SweepTable

__all__ = [
    "OPSET",
    "AdviseSpec",
    "AllocateOptions",
    "AllocateSpec",
    "AnalyzeOptions",
    "AnalyzeSpec",
    "AuditSpec",
    "BenchSpec",
    "BlocksSpec",
    "BuildOptions",
    "BuildSpec",
    "CompareSpec",
    "CostSpec",
    "DeployOptions",
    "DeploySpec",
    "EvaluateSpec",
    "ExportCalibSpec",
    "ExportSpec",
    "FinetuneOptions",
    "FinetuneSpec",
    "FleetSpec",
    "GateSpec",
    "ImportCalibSpec",
    "ImportCheckpointSpec",
    "InputSpec",
    "LintSpec",
    "ModelInputSpec",
    "Options",
    "PackageSpec",
    "QuantizeOptions",
    "QuantizeSpec",
    "ReportSpec",
    "SearchOptions",
    "SearchSpec",
    "Spec",
    "SweepSpec",
    "SweepTable",
    "changed_words",
    "option_name",
    "option_words",
    "parse_text",
    "plain_type",
    "require_alone",
]
