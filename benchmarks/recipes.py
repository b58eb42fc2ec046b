"""The recipes of two papers, component by component, against plain quantization of the same bytes.

Usage: TRTQ_DATA=... python benchmarks/recipes.py [--models ...] [--images N] [--out FILE]

Calibration has 512 images of CIFAR-10's training set, scores are of its test set, of the exported
files in ONNX Runtime. "alone" is a component beside plain quantization with the first and the last
layer in float, which has the same bytes. "as printed" has every component of the paper.
``--recipe-quant`` tries each component on calibration images that it holds out, and keeps those
that pay: its rows use no image of the test set. With --keep FOLDER an interrupted run continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from smoke import arguments, scratch

HEAD = "| model | bits | what | top-1 change | agreement % | SQNR dB | weight bytes | kept |"
S1 = "energy-aware"


class Lab:
    """One model.

    Args:
        name: of the model.
        folder: for its files.
        images: to evaluate on.
    """

    def __init__(self, name: str, folder: Path, images: int) -> None:
        self.name, self.folder, self.images = name, folder, images
        self.count = 0

    def row(self, width: str, what: str, kept: str = "", **asked: Any) -> tuple[str, Any]:
        """Quantize, evaluate, and return a row with its record.

        Args:
            width: shown.
            what: is quantized, in words.
            kept: whether the recipe has this component.
            asked: options of ``trtq quantize``.
        """
        from models import evaluated, settings

        from trtq import QuantizeSpec, quantize
        from trtq.artifact import read_record
        from trtq.files import QUANTIZE_JSON
        from trtq.records.quantize import QuantizeRecord

        self.count += 1
        out = self.folder / f"{self.name}-{self.count}"
        own = {**settings(self.name), "out": str(out), "calib_cache": str(self.folder / "cache")}
        plain = {} if "recipe_quant" in asked else {"preset_quant": "none"}
        if not (out / QUANTIZE_JSON).is_file():
            quantize(QuantizeSpec.make({**own, **plain, "min_agreement": 0.0, **asked}))
        record = read_record(out / QUANTIZE_JSON, QuantizeRecord)
        scored = evaluated(self.name, out, limit=self.images)
        size = weight_bytes(record)
        line = (
            f"| {self.name} | {width} | {what} | {scored.top1 - scored.reference_top1:+.2f} | "
            f"{scored.agreement:.2f} | {scored.sqnr_db:.2f} | {size:,.0f} | {kept} |"
        )
        print(line, flush=True)
        return line, record


def weight_bytes(record: Any) -> float:
    """Return the bytes of the layers' weights; those in float have two bytes a value."""
    from trtq.report.summary import bits_of

    bits = {q.layer: bits_of(q.format) for q in record.quantizers if q.role == "weight"}
    return sum(n * bits.get(k, 16) / 8 for k, n in record.facts.weight_values.items())


def qaof(lab: Lab) -> list[str]:
    """Return the rows of QAOF at 8 bits."""
    from trtq.methods.paper_recipes import RECIPES

    ends = {"high_precision": ["@anchors"]}
    _, recipe = found = lab.row("w8a8", "`--recipe-quant qaof`", recipe_quant="qaof")
    kept = {s.name: "yes" if s.kept else "no" for s in recipe.recipe.steps}
    tried = {s.name for s in recipe.recipe.steps if s.distance is not None}
    lines = [lab.row("w8a8", "plain quantization")[0]]
    printed: dict[str, Any] = dict(ends)
    for component in RECIPES["qaof"].components:
        asked = {"method": list(component.method)} if component.method else {}
        if component.calibrator:
            asked |= {"calibrator": component.calibrator, "percentile": component.percentile}
        if component.name not in tried:
            continue
        alone = component.name if component.high_precision else f"{component.name}, alone"
        lines.append(lab.row("w8a8", alone, kept[component.name], **ends, **asked)[0])
        methods = [*printed.get("method", []), *asked.pop("method", [])]
        printed |= {**asked, **({"method": methods} if methods else {})}
    lines.append(lab.row("w8a8", "QAOF as printed", **printed)[0])
    return [*lines, found[0]]


def energy_aware(lab: Lab) -> list[str]:
    """Return the rows of S1's mixed precision at the bytes and the energy of 6 and of 4 bits."""
    from models import settings

    from trtq import AllocateSpec, AnalyzeSpec, allocate, analyze

    lines = [lab.row("w6a6", "plain quantization", bits="w6a6")[0]]
    own = {k: v for k, v in settings(lab.name).items() if k != "calib_images"}
    analysis, widths = (lab.folder / f"{lab.name}-{n}.json" for n in ("analysis", "widths"))
    bits = ["4", "6", "8"]
    analyze(AnalyzeSpec.make({**own, "metric": "l2", "bits": bits, "out": str(analysis)}))
    spec = {"analysis": str(analysis), "strategy": "percentile", "bits": bits}
    allocate(AllocateSpec.make({**spec, "out": str(widths)}))
    printed = "the percentile rule as printed"
    lines.append(lab.row("4, 6, 8", printed, allocation=str(widths))[0])
    for width in ("w6a6", "w4a4"):
        if width != "w6a6":
            lines.append(lab.row(width, "plain quantization", bits=width)[0])
        what = f"`--recipe-quant {S1}`, {width}"
        line, record = lab.row("mixed", what, recipe_quant=S1, bits=width)
        lines += [line, *(f"| | | {s.words} | | | | | |" for s in record.recipe.steps[1:])]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["resnet20", "vit"])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["resnet20"], images=8)
    lines = [HEAD, "|---" * 8 + "|"]
    folder = args.keep or scratch()
    for name in args.models:
        lab = Lab(name, folder, args.images)
        lines += [*qaof(lab), *energy_aware(lab)]
    if args.out:
        about = " ".join(line for line in (__doc__ or "").split("\n\n")[2].splitlines())
        args.out.write_text(f"# Recipes of the papers\n\n{about}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
