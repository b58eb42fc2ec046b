"""Fields of specs that records have only where they are given: older records lack them."""

from __future__ import annotations

# Fields of specs that came after the schema of records: of all specs, or SPEC.FIELD of one.
ADDED = frozenset(
    [
        "AnalyzeSpec.ignore_index",
        "AnalyzeSpec.masks",
        "ExportSpec.device",
        "QuantizeSpec.masks",
        "SearchSpec.ignore_index",
        "SearchSpec.masks",
        "SearchSpec.val_masks",
        "channel_order",
        "dynamic",
        "fit",
        "input",
        "input_dtype",
        "max_drop",
        "min_score",
        "ort_library",
        "recipe_quant",
        "outputs",
        "requantize",
        "save_pictures",
        "shapes",
        "task",
        "time_budget",
        "tokenizer",
    ]
)
