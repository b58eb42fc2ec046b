"""The table of verbs: the command line, the names of ``trtq``, records and docs follow it."""

from __future__ import annotations

from typing import NamedTuple

from trtq.files import (
    ALLOCATION_JSON,
    ANALYSIS_JSON,
    BENCH_JSON,
    COMPARE_JSON,
    DEPLOY_JSON,
    EVALUATE_JSON,
    EXPORT_JSON,
    FINETUNE_JSON,
    FLEET_JSON,
    IMPORT_JSON,
    MANIFEST_SUFFIX,
    PACKAGE_JSON,
    QUANTIZE_JSON,
    SEARCH_JSON,
    SWEEP_JSON,
)


class Verb(NamedTuple):
    """One subcommand of ``trtq``, and the function behind it.

    Attributes:
        name: as it is typed.
        summary: its line in ``trtq --help``.
        function: ``module:name`` of the public function, "" for verbs of the command line only.
        spec: name in ``trtq.specs`` of what the function takes, "" for none.
        record: ``module:name`` of what the function returns, "" where that is no type of its own.
        file: name of the record's file, "" where none is written by default.
    """

    name: str
    summary: str
    function: str = ""
    spec: str = ""
    record: str = ""
    file: str = ""


SECTIONS: dict[str, tuple[Verb, ...]] = {
    "Start": (
        Verb("demo", "Quantize and build a real model, with a report; no GPU needed."),
        Verb("doctor", "Show versions, devices and sensors, and what is missing."),
        Verb(
            "advise",
            "Recommend a quantization method; find layers that lose from INT8.",
            "trtq.commands.advise:advise",
            "AdviseSpec",
            "trtq.records.advise:AdviseRecord",
        ),
        Verb(
            "run",
            "Run a recipe; stages that are up to date are skipped.",
            "trtq.pipeline:run",
            record="trtq.pipeline:StageResult",
        ),
        Verb(
            "sweep",
            "Run every combination of the lists in a recipe: local, Ray or Slurm.",
            "trtq.sweep.command:sweep",
            "SweepSpec",
            "trtq.records.sweep:SweepRecord",
            SWEEP_JSON,
        ),
    ),
    "Quantize": (
        Verb(
            "quantize",
            "Calibrate a model; write Q/DQ ONNX, encodings and a record.",
            "trtq.api:quantize",
            "QuantizeSpec",
            "trtq.records.quantize:QuantizeRecord",
            QUANTIZE_JSON,
        ),
        Verb("methods", "List the quantization methods and their arguments."),
        Verb(
            "analyze",
            "Rank layers by sensitivity at each bit width.",
            "trtq.api_flows:analyze",
            "AnalyzeSpec",
            "trtq.records.analyze:AnalyzeRecord",
            ANALYSIS_JSON,
        ),
        Verb(
            "allocate",
            "Choose a bit width for each layer within budgets.",
            "trtq.commands.allocate:allocate",
            "AllocateSpec",
            "trtq.records.allocate:AllocateRecord",
            ALLOCATION_JSON,
        ),
        Verb(
            "search",
            "Find bit widths that meet every budget, and verify them.",
            "trtq.api_flows:search",
            "SearchSpec",
            "trtq.records.search:SearchRecord",
            SEARCH_JSON,
        ),
        Verb(
            "finetune",
            "Quantization-aware training, with or without labels.",
            "trtq.api_flows:finetune",
            "FinetuneSpec",
            "trtq.records.finetune:FinetuneRecord",
            FINETUNE_JSON,
        ),
        Verb(
            "import-checkpoint",
            "Import ranges from pytorch-quantization, ModelOpt or AIMET.",
            "trtq.commands.import_checkpoint:import_checkpoint",
            "ImportCheckpointSpec",
            "trtq.commands.import_checkpoint:ImportRecord",
            IMPORT_JSON,
        ),
    ),
    "Build": (
        Verb("targets", "List devices and TensorRT releases for --target."),
        Verb(
            "lint",
            "Check an ONNX file for what TensorRT refuses or computes in float.",
            "trtq.commands.lint:run_lint",
            "LintSpec",
            "trtq.commands.lint:LintRecord",
        ),
        Verb(
            "export",
            "Export one set of encodings as ONNX for several targets.",
            "trtq.commands.export:export_profiles",
            "ExportSpec",
            "trtq.commands.export:ExportRecord",
            EXPORT_JSON,
        ),
        Verb(
            "export-calib",
            "Write the ranges of a Q/DQ file as a TensorRT calibration cache.",
            "trtq.commands.calibration:export_calib",
            "ExportCalibSpec",
            "trtq.commands.calibration:CalibrationRecord",
        ),
        Verb(
            "import-calib",
            "Convert a calibration cache and its float ONNX to Q/DQ ONNX.",
            "trtq.commands.calibration:import_calib",
            "ImportCalibSpec",
            "trtq.commands.calibration:CalibrationRecord",
            IMPORT_JSON,
        ),
        Verb(
            "build",
            "Build a TensorRT engine from an ONNX file.",
            "trtq.engine.objects:build",
            "BuildSpec",
            "trtq.engine.manifest:EngineManifest",
            f"*{MANIFEST_SUFFIX}",
        ),
        Verb(
            "audit",
            "Compare the precision of an engine's layers with the request.",
            "trtq.commands.audit:audit",
            "AuditSpec",
            "trtq.commands.audit:AuditRecord",
        ),
        Verb(
            "package",
            "Package a model for Triton, DeepStream, ONNX Runtime, Python or C++.",
            "trtq.commands.package:package",
            "PackageSpec",
            "trtq.records.package:PackageRecord",
            PACKAGE_JSON,
        ),
    ),
    "Measure": (
        Verb(
            "evaluate",
            "Measure accuracy of an ONNX file, and agreement with another.",
            "trtq.commands.evaluate:evaluate",
            "EvaluateSpec",
            "trtq.records.evaluate:EvaluateRecord",
            EVALUATE_JSON,
        ),
        Verb(
            "bench",
            "Measure latency, throughput, load time, memory and energy.",
            "trtq.bench.objects:bench",
            "BenchSpec",
            "trtq.bench.record:BenchRecord",
            BENCH_JSON,
        ),
        Verb(
            "compare",
            "Measure files in turns: faster, slower or no difference.",
            "trtq.bench.compare:compare",
            "CompareSpec",
            "trtq.bench.compare:CompareRecord",
            COMPARE_JSON,
        ),
        Verb(
            "gate",
            "Compare a record with its baseline, for CI.",
            "trtq.bench.gate:gate",
            "GateSpec",
            "trtq.bench.gate:GateRecord",
        ),
        Verb(
            "cost",
            "Count MACs, bytes, BitOps and energy; predict latency.",
            "trtq.commands.cost:cost",
            "CostSpec",
            "trtq.commands.cost:CostRecord",
        ),
    ),
    "Boards": (
        Verb("device", "Manage boards over SSH: add, probe, shell, logs, clean."),
        Verb(
            "deploy",
            "Build, measure and keep a model on a board.",
            "trtq.commands.deploy:deploy",
            "DeploySpec",
            "trtq.deploy.record:DeployRecord",
            DEPLOY_JSON,
        ),
        Verb(
            "fleet",
            "Deploy to several boards, with one table.",
            "trtq.commands.fleet:fleet",
            "FleetSpec",
            "trtq.deploy.record:FleetRecord",
            FLEET_JSON,
        ),
    ),
    "Look": (
        Verb(
            "report",
            "Write an HTML page about one run or several.",
            "trtq.commands.report:write_report",
            "ReportSpec",
            "trtq.commands.report:ReportRecord",
        ),
        Verb("history", "List, filter and plot past records."),
        Verb("inspect", "Explain any file that trtq wrote.", "trtq.commands.inspect:inspect"),
        Verb("completion", "Print the script that completes commands in bash, zsh or fish."),
        Verb("explain", "Explain an error by its code, such as DATA-017."),
        Verb(
            "blocks",
            "List the convolutional and transformer blocks of a model.",
            "trtq.commands.blocks:blocks",
            "BlocksSpec",
            "trtq.commands.blocks:BlocksRecord",
        ),
    ),
}
VERBS = {verb.name: verb for verbs in SECTIONS.values() for verb in verbs}

# Public names of no verb.
OBJECTS = (
    "trtq.api:load",
    "trtq.api:samples",
    "trtq.engine.objects:Engine",
    "trtq.engine.open_engine:open_engine",
    "trtq.errors:TrtqError",
    "trtq.flow.finetune:Finetuned",
    "trtq.flow.quantized:Quantized",
    "trtq.flow.search:Searched",
    "trtq.quant.encodings:Encodings",
    "trtq.recipe:Recipe",
    "trtq.recipe:load_recipe",
    "trtq.specs:AnalyzeOptions",
    "trtq.specs:FinetuneOptions",
    "trtq.specs:QuantizeOptions",
    "trtq.specs:SearchOptions",
    "trtq.version:__version__",
)


def public_names() -> dict[str, str]:
    """Return the module of each public name of ``trtq``: types first, then functions, by name."""
    places = [*OBJECTS, *(p for v in VERBS.values() for p in (v.function, v.record) if p)]
    modules = {name: module for module, _, name in (p.partition(":") for p in places)}
    specs = {v.spec: "trtq.specs" for v in VERBS.values() if v.spec}
    names = modules | specs
    return {
        name: names[name]
        for name in sorted(names, key=lambda n: (n.islower() or n.startswith("_"), n))
    }
