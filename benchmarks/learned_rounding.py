"""What more steps of learned rounding bring, and what they take.

Usage: TRTQ_DATA=... python benchmarks/learned_rounding.py [--models ...] [--steps ...] [--out FILE]

Each row is a quantization at w4a8 with the preset's methods and a number of steps; agreement with
the float model on images held apart. A row that an earlier, interrupted run finished is not made
again (--keep FOLDER). Steps of one model are timed in one process, with nothing beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from smoke import arguments, few, scratch

METHODS = ["reconstruct", "bias-correction"]


def row(name: str, steps: int, folder: Path) -> str:
    """Return one row, made in ``folder``."""
    from models import evaluated, settings

    from trtq import QuantizeSpec, quantize
    from trtq.artifact import read_record
    from trtq.files import QUANTIZE_JSON
    from trtq.records.quantize import QuantizeRecord

    own = {**settings(name), "out": str(folder), "calib_cache": str(folder.parent / "cache")}
    asked = {"bits": "w4a8", "method": METHODS, "preset_quant": "none", "min_agreement": 0.0}
    learned = {"method_arg": {"reconstruct.steps": steps, "reconstruct.batch": few(32, 4)}}
    if not (folder / QUANTIZE_JSON).is_file():
        quantize(QuantizeSpec.make({**own, **asked, **learned}))
    record = read_record(folder / QUANTIZE_JSON, QuantizeRecord)
    scored = evaluated(name, folder, limit=few(None, 8))
    took = record.seconds["reconstruct"]
    return (
        f"| {name} | {steps} | {scored.agreement:.2f} | {scored.sqnr_db:.2f} | {scored.images} | "
        f"{took:.0f} | {took / steps:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["efficientnet_lite0"])
    parser.add_argument("--steps", nargs="*", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["resnet20"], steps=[2, 4])
    keep = args.keep or scratch()
    lines = ["| model | steps | agreement % | SQNR dB | images | s | s a step |", "|---" * 7 + "|"]
    for name in args.models:
        for steps in args.steps:
            lines.append(row(name, steps, keep / f"{name}-{steps}"))
            print(lines[-1], flush=True)
    if args.out:
        about = (
            "`python benchmarks/learned_rounding.py`: w4a8, "
            f"{'+'.join(METHODS)}, steps of 32 images; agreement of the exported file in ONNX "
            "Runtime with the float model, on images that calibration did not see. One CPU."
        )
        args.out.write_text(f"# Learned rounding\n\n{about}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
