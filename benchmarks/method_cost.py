"""What each method costs, as a multiple of one float forward pass.

Usage: TRTQ_DATA=... python benchmarks/method_cost.py [--models ...] [--methods ...] [--out FILE]

The pass is one of the captured graph over the calibration images. Both are timed in one process,
the pass three times (the median counts) on decoded images; a method also decodes its own images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from smoke import arguments


def seconds_of(name: str, methods: list[str]) -> list[tuple[str, float, float]]:
    from models import settings

    from trtq import QuantizeSpec, quantize
    from trtq.data.preprocess import batches, resolve_preprocess
    from trtq.data.source import open_source
    from trtq.graph.capture import capture
    from trtq.models.load import load_model

    own = settings(name)
    with tempfile.TemporaryDirectory() as folder:
        spec = QuantizeSpec.make(
            {
                **own,
                "out": f"{folder}/o",
                "calib_cache": f"{folder}/c",
                "preset_quant": "none",
                "attention": "int8",
            }
        )
        loaded = load_model(
            spec.model,
            args=spec.model_arg,
            checkpoint=Path(str(spec.checkpoint)),
            match=spec.checkpoint_match,
        )
        preprocess, _ = resolve_preprocess(
            input_size=spec.input_size, preset=spec.preset, hints=loaded.input_hints
        )
        source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
        images = list(batches(source, source.sample(spec.calib_images, 0), preprocess, 16))
        graph, times = capture(loaded.module, preprocess.input_size).module, []
        with torch.inference_mode():
            for _ in range(4):
                start = time.perf_counter()
                for batch in images:
                    graph(batch)
                times.append(time.perf_counter() - start)
        one_pass, rows = statistics.median(times[1:]), []
        for method in methods:
            bits = "w4a8" if method == "reconstruct" else "w8a8"
            values = {
                **own,
                "out": f"{folder}/o",
                "calib_cache": f"{folder}/c",
                "preset_quant": "none",
                "attention": "int8",
                "bits": bits,
            }
            record = quantize(QuantizeSpec.make({**values, "method": [method]}))
            rows.append((method, record.seconds[method], one_pass))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["vit", "mobilevit_xxs"])
    parser.add_argument(
        "--methods",
        nargs="*",
        default=[
            "smooth",
            "qads",
            "repq",
            "ranking",
            "attention-percentile",
            "layernorm-ema",
            "bias-correction",
        ],
    )
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["vit"], methods=["smooth"])
    lines = ["| model | method | s | passes |", "|---|---|---|---|"]
    for name in args.models:
        for method, spent, one_pass in seconds_of(name, args.methods):
            lines.append(f"| {name} | {method} | {spent:.2f} | {spent / one_pass:.1f} |")
            print(lines[-1], flush=True)
    if args.out:
        about = (
            "Seconds of each method on this CPU, and as passes of the float graph over all "
            "calibration images (512), timed in the same run."
        )
        args.out.write_text(
            f"## Cost\n\n`python benchmarks/method_cost.py`: {about}\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
