"""Which metric and which strategy give the best widths, next to uniform widths.

Usage: TRTQ_DATA=... python benchmarks/mixed_precision.py [--models ...] [--metrics ...] \
    --out benchmarks/results/mixed_precision.md

The figure is the agreement at equal bytes of weights. Every row is an exported file in ONNX
Runtime on 2,000 CIFAR-10 test images, against the float file. A row's budget is what the uniform
model (first and last layer at 8 bits, as `--bits` does) or the percentile rule takes in bytes;
BitOps are shown, not limited.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
from smoke import arguments, few

MODELS = ("resnet20", "mobilevit_xxs", "vit", "resnet56")
METRICS = ("l2", "gradient", "hessian", "jsd", "combined")
WIDTHS = {
    "same": ("3", "4", "5", "6", "8"),
    "8": ("w3a8", "w4a8", "w5a8", "w6a8", "w8a8"),
}  # inputs as wide as weights, or 8 bits
UNIFORM = few((4, 5, 6), (4,))
LIMIT = few(2000, 16)
HEAD = (
    "| model | equal bytes with | metric | strategy | bytes, of float | BitOps, of float | "
    "agreement % | SQNR dB | against uniform, points |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Bench:
    """One model: analyses are made once, every allocation becomes a file and is evaluated."""

    def __init__(self, name: str, folder: Path, inputs: str) -> None:
        from models import evaluation, settings

        self.name, self.folder, self.own, self.where = (
            name,
            folder,
            settings(name),
            evaluation(name),
        )
        self.widths, self.lines = WIDTHS[inputs], list[str]()

    def analyze(self, metric: str) -> Path:
        from trtq import AnalyzeSpec, analyze

        out = self.folder / f"{metric}.json"
        analyze(
            AnalyzeSpec.make(
                {
                    **self.own,
                    "out": str(out),
                    "metric": metric,
                    "bits": list(self.widths),
                    "calib_cache": str(self.folder / "c"),
                }
            )
        )
        return out

    def score(self, **changes: object) -> tuple[float, float]:
        from trtq import EvaluateSpec, QuantizeSpec, evaluate, quantize

        out = self.folder / "o"
        values = {
            **self.own,
            "out": str(out),
            "calib_cache": str(self.folder / "c"),
            "preset_quant": "none",
            "attention": "float",
        }
        quantize(QuantizeSpec.make({**values, "parity_images": 16, **changes}))
        shared = {k: self.own[k] for k in ("input_size", "preset") if k in self.own}
        files = {"onnx": str(out / "model.qdq.onnx"), "reference": str(out / "model.fp32.onnx")}
        r = evaluate(
            EvaluateSpec.make({**self.where, **shared, **files, "batch_size": 50, "limit": LIMIT})
        )
        return r.agreement, r.sqnr_db

    def allocate(
        self, analysis: Path, strategy: str, budget: float | None
    ) -> tuple[Path, dict[str, float]]:
        from trtq import AllocateSpec, allocate

        out = self.folder / "a.json"
        widths = [self.widths[i] for i in (1, 3, 4)] if strategy == "percentile" else []
        budgets = [] if budget is None else [f"size={budget:.0f}B"]
        r = allocate(
            AllocateSpec(
                analysis=str(analysis),
                out=str(out),
                strategy=strategy,
                budget=tuple(budgets),
                bits=tuple(widths),
            )
        )
        return out, {b: v / r.full[b] for b, v in r.costs.items()}

    def emit(
        self,
        same: str,
        metric: str,
        strategy: str,
        costs: dict[str, float],
        scores: tuple[float, float],
        base: float | None,
    ) -> None:
        lead = "" if base is None else f"{scores[0] - base:+.2f}"
        self.lines.append(
            f"| {self.name} | {same} | {metric} | {strategy} | {costs['size']:.4f} | "
            f"{costs['bitops']:.4f} | {scores[0]:.2f} | {scores[1]:.2f} | {lead} |"
        )
        print(self.lines[-1], flush=True)


def uniform_costs(analysis: Path, bits: int, inputs: int) -> tuple[float, dict[str, float]]:
    """Return the bytes and the relative costs of uniform widths.

    The first and the last layer have 8 bits.
    """
    from trtq.commands.allocate import read_analysis
    from trtq.flow.pricing import Pricing, uniform
    from trtq.quant.formats import BitConfig

    pricing = Pricing(read_analysis(analysis).outline)
    costs, full = (
        pricing.totals(uniform(pricing.outline, BitConfig(weight=bits, input=inputs))),
        pricing.full(),
    )
    return costs["size"], {b: v / full[b] for b, v in costs.items()}


def rows(
    name: str, metrics: list[str], strategies: list[str], folder: Path, inputs: str
) -> list[str]:
    bench = Bench(name, folder, inputs)
    analyses = {m: bench.analyze(m) for m in metrics}
    one = next(iter(analyses.values()))
    for bits in UNIFORM:
        across = bits if inputs == "same" else int(inputs)
        same = f"w{bits}a{across}"
        limit, costs = uniform_costs(one, bits, across)
        base = bench.score(bits=same)
        bench.emit(same, "", "uniform", costs, base, None)
        for metric, analysis in analyses.items():
            for strategy in strategies:
                path, costs = bench.allocate(analysis, strategy, limit)
                bench.emit(
                    same, metric, strategy, costs, bench.score(allocation=str(path)), base[0]
                )
    for metric, analysis in analyses.items():
        path, costs = bench.allocate(analysis, "percentile", None)
        ruled = bench.score(allocation=str(path))
        bench.emit(f"percentile by {metric}", metric, "percentile", costs, ruled, None)
        total = msgspec.json.decode(path.read_bytes())["costs"]["size"]
        path, costs = bench.allocate(analysis, "milp", total)
        bench.emit(
            f"percentile by {metric}",
            metric,
            "milp",
            costs,
            bench.score(allocation=str(path)),
            ruled[0],
        )
    return bench.lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--metrics", nargs="*", default=METRICS)
    parser.add_argument("--strategies", nargs="*", default=["milp", "greedy"])
    parser.add_argument(
        "--inputs",
        choices=sorted(WIDTHS),
        default="same",
        help="width of inputs: that of the weights, or 8 bits",
    )
    parser.add_argument("--out", type=Path)
    args = arguments(parser, models=["resnet20"], metrics=["l2"], strategies=["milp"])
    lines = [HEAD]
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            lines += rows(name, args.metrics, args.strategies, Path(folder), args.inputs)
        if args.out:
            about = (
                (__doc__ or "").split("\n\n", 1)[0]
                + "\n\n"
                + (__doc__ or "").split("\n", 3)[3].strip()
            )
            args.out.write_text(f"# Mixed precision\n\n{about}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
