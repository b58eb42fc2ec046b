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
        Verb("demo", "A real model to INT8 engines, with a page to read; no GPU needed."),
        Verb("doctor", "Versions, devices, sensors, what is missing and how to get it."),
        Verb(
            "advise",
            "Which way of quantizing fits a model; which layers of a quantized one lose from INT8.",
            "trtq.commands.advise:advise",
            "AdviseSpec",
            "trtq.records.advise:AdviseRecord",
        ),
        Verb(
            "run",
            "Run the chain of a recipe, skipping what is up to date.",
            "trtq.pipeline:run",
            record="trtq.pipeline:StageResult",
        ),
        Verb(
            "sweep",
            "Run every combination of the lists in a recipe, each once, on many machines.",
            "trtq.sweep.command:sweep",
            "SweepSpec",
            "trtq.records.sweep:SweepRecord",
            SWEEP_JSON,
        ),
    ),
    "Quantize": (
        Verb(
            "quantize",
            "Calibrate a model, write Q/DQ ONNX, encodings and a record.",
            "trtq.api:quantize",
            "QuantizeSpec",
            "trtq.records.quantize:QuantizeRecord",
            QUANTIZE_JSON,
        ),
        Verb("methods", "The quantization methods: where each runs, its arguments."),
        Verb(
            "analyze",
            "How much each layer suffers at each width.",
            "trtq.api_flows:analyze",
            "AnalyzeSpec",
            "trtq.records.analyze:AnalyzeRecord",
            ANALYSIS_JSON,
        ),
        Verb(
            "allocate",
            "Choose a width for every layer within budgets.",
            "trtq.commands.allocate:allocate",
            "AllocateSpec",
            "trtq.records.allocate:AllocateRecord",
            ALLOCATION_JSON,
        ),
        Verb(
            "search",
            "Find widths that meet every budget, and prove it.",
            "trtq.api_flows:search",
            "SearchSpec",
            "trtq.records.search:SearchRecord",
            SEARCH_JSON,
        ),
        Verb(
            "finetune",
            "Train a quantized model further, its codes in place.",
            "trtq.api_flows:finetune",
            "FinetuneSpec",
            "trtq.records.finetune:FinetuneRecord",
            FINETUNE_JSON,
        ),
        Verb(
            "import-checkpoint",
            "Ranges of pytorch-quantization, ModelOpt or AIMET taken over.",
            "trtq.commands.import_checkpoint:import_checkpoint",
            "ImportCheckpointSpec",
            "trtq.commands.import_checkpoint:ImportRecord",
            IMPORT_JSON,
        ),
    ),
    "Build": (
        Verb("targets", "The devices and TensorRT versions that --target knows."),
        Verb(
            "lint",
            "What TensorRT would refuse in an ONNX file, or compute in float.",
            "trtq.commands.lint:run_lint",
            "LintSpec",
            "trtq.commands.lint:LintRecord",
        ),
        Verb(
            "export",
            "One set of encodings as ONNX for several targets.",
            "trtq.commands.export:export_profiles",
            "ExportSpec",
            "trtq.commands.export:ExportRecord",
            EXPORT_JSON,
        ),
        Verb(
            "export-calib",
            "The ranges of a Q/DQ file as a TensorRT calibration cache.",
            "trtq.commands.calibration:export_calib",
            "ExportCalibSpec",
            "trtq.commands.calibration:CalibrationRecord",
        ),
        Verb(
            "import-calib",
            "A Q/DQ file from a calibration cache and its float ONNX.",
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
            "What an engine computes in, against what was asked for.",
            "trtq.commands.audit:audit",
            "AuditSpec",
            "trtq.commands.audit:AuditRecord",
        ),
        Verb(
            "package",
            "A folder that Triton, DeepStream, ONNX Runtime or a program starts from.",
            "trtq.commands.package:package",
            "PackageSpec",
            "trtq.records.package:PackageRecord",
            PACKAGE_JSON,
        ),
    ),
    "Measure": (
        Verb(
            "evaluate",
            "Accuracy of an ONNX file, agreement with another.",
            "trtq.commands.evaluate:evaluate",
            "EvaluateSpec",
            "trtq.records.evaluate:EvaluateRecord",
            EVALUATE_JSON,
        ),
        Verb(
            "bench",
            "Latency, throughput, load time, memory and energy, and the machine.",
            "trtq.bench.objects:bench",
            "BenchSpec",
            "trtq.bench.record:BenchRecord",
            BENCH_JSON,
        ),
        Verb(
            "compare",
            "Files that take turns: faster, slower or no difference.",
            "trtq.bench.compare:compare",
            "CompareSpec",
            "trtq.bench.compare:CompareRecord",
            COMPARE_JSON,
        ),
        Verb(
            "gate",
            "A record against its baseline, for a CI runner.",
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
        Verb("device", "Boards over SSH: add, probe, shell, logs, clean."),
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
            "Several boards side by side, one table.",
            "trtq.commands.fleet:fleet",
            "FleetSpec",
            "trtq.deploy.record:FleetRecord",
            FLEET_JSON,
        ),
    ),
    "Look": (
        Verb(
            "report",
            "One HTML page about a run, or about several side by side.",
            "trtq.commands.report:write_report",
            "ReportSpec",
            "trtq.commands.report:ReportRecord",
        ),
        Verb("history", "Every record made here, to filter and to plot."),
        Verb("inspect", "Explain any artefact.", "trtq.commands.inspect:inspect"),
        Verb(
            "blocks",
            "The convolutional and the transformer parts of a model.",
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
