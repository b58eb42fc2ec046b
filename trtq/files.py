"""The names of the files that trtq writes. Each is spelled here, and nowhere else."""

from __future__ import annotations

FP32 = "model.fp32.onnx"
QDQ = "model.qdq.onnx"
ENCODINGS = "encodings.safetensors"
MODEL_FILES = (FP32, QDQ, ENCODINGS)

QUANTIZE_JSON = "quantize.json"
ADVISE_JSON = "advise.json"
EVALUATE_JSON = "evaluate.json"
PICTURES = "pictures"  # folder of pictures beside evaluate.json
FINETUNE_JSON = "finetune.json"
ANALYSIS_JSON = "analysis.json"
ALLOCATION_JSON = "allocation.json"
SEARCH_JSON = "search.json"
REFERENCE_JSON = "reference.json"
FRONTIER_JSON = "frontier.json"
IMPORT_JSON = "import.json"
EXPORT_JSON = "export.json"
SOURCE_JSON = "source.json"  # what the files of a folder were exported from
BENCH_JSON = "bench.json"
COMPARE_JSON = "compare.json"
DEPLOY_JSON = "deploy.json"
FLEET_JSON = "fleet.json"
SWEEP_JSON = "sweep.json"
RECIPE_TOML = "recipe.toml"
RUN_LOG = "run.log"
STORE_JSON = "store.json"  # of a store of runs: whose it is
DONE_JSON = "done.json"  # in a store: a run is finished
PACKAGE_JSON = "package.json"

README = "README.md"  # of a package

FLEET_HTML = "fleet.html"
SWEEP_HTML = "sweep.html"
REPORT_HTML = "report.html"
CURVES_SVG = "curves.svg"

FINETUNE_FOLDER = "finetune"  # of a recipe, below its output folder
DEPLOYED = f"deploy/*/{DEPLOY_JSON}"  # pattern of the deployments of a recipe

MANIFEST_SUFFIX = ".engine.json"  # of the manifest beside an engine

LOCK = ".trtq.lock"
RUN_LOCK = ".trtq-run.lock"
STAGES = ".trtq-stages"
STAGING = ".trtq-new"


def bench_json(label: str) -> str:
    """Return the name of a recipe's measurement of ``fp32`` or ``qdq``."""
    return f"bench.{label}.json"
