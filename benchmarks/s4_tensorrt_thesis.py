"""S4, the thesis on TensorRT: Tables 4.1-4.9 and Figs 4.3-4.16 redone.

Usage: TRTQ_DATA=... python benchmarks/s4_tensorrt_thesis.py --out benchmarks/results/s4.md \
    [--tables 'Table 4.1' ...] [--camvid camvid.zip --fcn-weights FILE] \
    [--epochs N --train-images N] [--fcn-epochs N]

The thesis is about TensorRT PTQ and QAT with gradient-based mixed precision. train_fcn.py makes the
FILE of --fcn-weights. ResNet-20 and mobilevit_xxs, both on CIFAR-10, replace ResNet50 and
MobileNetV2 on Mini-ImageNet; CamVid at 240x320 replaces Cityscapes. With the thesis's own:
--cnn-model timm:resnet50 --cnn-checkpoint W --cnn-data TRAIN --cnn-eval VAL, and --mobile-model
timm:mobilenetv2_100 likewise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from redo import Section, Subject, add_subject, noise_of, parser_of, points, printed, redo, subject
from smoke import arguments

MIXES = {"4MP": ("4", "8"), "2MP": ("2", "4", "8")}
ACTIVATIONS = (8, 6, 4)
COMPRESSION = {
    "ResNet50": {"4MP": 5.07, "2MP": 6.34},
    "MobileNetV2": {"4MP": 5.16, "2MP": 5.61},
    "FCN-ResNet18": {"4MP": 7.84, "2MP": 8.64},
}
TIMM = {"MobileNetV2": "mobilenetv2_100", "ResNet50": "resnet50"}


class Lab:
    """One of the thesis's models, here: every setting is measured once.

    ``score`` is top-1 or mIoU; a change of it is against the float file.
    """

    def __init__(
        self,
        label: str,
        name: str,
        folder: Path,
        values: dict[str, Any],
        evaluate: Callable[[Path], Any],
        training: dict[str, Any],
    ) -> None:
        self.label, self.name, self.folder, self.values, self.evaluate, self.training = (
            label,
            name,
            folder,
            values,
            evaluate,
            training,
        )
        folder.mkdir()

    def change(self, found: Any) -> float:
        return (
            found.miou - found.reference_miou
            if getattr(found, "miou", None) is not None
            else found.top1 - found.reference_top1
        )

    def reference(self, found: Any) -> float:
        return (
            found.reference_miou
            if getattr(found, "miou", None) is not None
            else found.reference_top1
        )

    @cache  # noqa: B019 - lives as long as the script
    def analysis(self, mix: str, activations: int) -> Path:
        from trtq import AnalyzeSpec, analyze

        out = self.folder / f"S-{mix}-{activations}.json"
        bits = [f"w{b}a{activations}" for b in MIXES[mix]]
        given = {k: v for k, v in self.values.items() if k != "calib_images"}
        more = {
            "metric": "gradient",
            "targets": "model",
            "images": 8,
            "trials": 4,
            "calib_images": 64,
            "bits": bits,
        }
        analyze(
            AnalyzeSpec.make(
                {**given, **more, "out": str(out), "calib_cache": str(self.folder / "c")}
            )
        )
        return out

    @cache  # noqa: B019
    def allocation(self, mix: str, activations: int) -> Path:
        """Return widths by gradient sensitivity and the Pareto front.

        The budget is the thesis's own compression.
        """
        from trtq import AllocateSpec, allocate

        out = self.folder / f"A-{mix}-{activations}.json"
        budget = [f"size={1 / COMPRESSION[self.label][mix]:.4f}"]
        allocate(
            AllocateSpec.make(
                {
                    "analysis": str(self.analysis(mix, activations)),
                    "strategy": "pareto",
                    "budget": budget,
                    "out": str(out),
                }
            )
        )
        return out

    def ratio(self, mix: str) -> float:
        """Return how many times smaller the weights of an allocation are."""
        held = json.loads(self.allocation(mix, 8).read_text())
        return held["full"]["size"] / held["costs"]["size"]

    @cache  # noqa: B019
    def ptq(self, mix: str = "", activations: int = 8) -> tuple[Path, Any]:
        from trtq import QuantizeSpec, quantize

        out = self.folder / f"ptq-{mix}-{activations}"
        chosen = {"allocation": str(self.allocation(mix, activations))} if mix else {}
        fixed = {
            "out": str(out),
            "calib_cache": str(self.folder / "c"),
            "preset_quant": "none",
            "parity_images": 16,
            "min_agreement": 0,
        }
        quantize(QuantizeSpec.make({**self.values, **fixed, **chosen}))
        return out, self.evaluate(out)

    @cache  # noqa: B019
    def qat(self, mix: str = "", activations: int = 8) -> Any:
        """Return the evaluation after training; of PTQ where there is to be none."""
        from trtq import FinetuneSpec, finetune

        start, found = self.ptq(mix, activations)
        if not self.training["epochs"]:
            return found
        out = self.folder / f"qat-{mix}-{activations}"
        given = {k: v for k, v in self.values.items() if k != "calib_images"}
        finetune(
            FinetuneSpec.make(
                {
                    **given,
                    **self.training,
                    "encodings": str(start / "encodings.safetensors"),
                    "out": str(out),
                }
            )
        )
        return self.evaluate(out)

    @property
    def how(self) -> str:
        """How the rows called QAT were made."""
        epochs = self.training["epochs"]
        limit = self.training.get("limit")
        return (
            f"QAT of {epochs} epochs{f' of {limit} images' if limit else ''}"
            if epochs
            else "no training: the rows called QAT are PTQ"
        )


def classifier(label: str, model: Subject, folder: Path, args: argparse.Namespace) -> Lab:
    return Lab(
        label,
        model.data,
        folder,
        {**model.own, "calib_images": 512},
        model.evaluated,
        {"epochs": args.epochs, "limit": args.train_images, "lr": args.lr},
    )


def segmenter(folder: Path, args: argparse.Namespace) -> Lab | None:
    """Return FCN-ResNet18, None without its weights."""
    if args.camvid is None or args.fcn_weights is None:
        return None
    from segmentation import base, measured

    given = SimpleNamespace(camvid=args.camvid, weights=args.fcn_weights)
    training = {
        "epochs": args.fcn_epochs,
        "masks": f"{args.camvid}/trainannot",
        "ignore_index": 11,
        "lr": 3e-4,
        "batch_size": 8,
    }
    return Lab(
        "FCN-ResNet18",
        f"FCN-ResNet18, {args.fcn_weights.name}, CamVid's 117 test images",
        folder,
        {**base(given), "calib_images": 128},
        lambda out: measured(given, out),
        training,
    )


def rows_of(table: str, label: str) -> list[list[Any]]:
    return [r for r in printed("s4")[table]["rows"] if r[0] == label]


def information() -> Section:
    """Table 4.1."""
    from trtq import CostSpec, cost

    section = Section("Table 4.1", "timm mobilenetv2_100 and resnet50 at 224x224, counted")
    printed_rows = {r[0]: r[1:] for r in printed("s4")["Table 4.1"]["rows"]}
    for i, (label, name) in enumerate(TIMM.items()):
        r = cost(CostSpec(model=f"timm:{name}"))
        kinds = [row.layer.kind for row in r.rows]
        convs, linears = sum("conv" in k for k in kinds), sum("linear" in k for k in kinds)
        macs, values = r.total.macs / 1e9, r.total.parameters / 1e6
        for what, ours in (("Conv layers", convs), ("FC layers", linears)):
            section.says(
                f"{label}: {what}",
                str(printed_rows[what][i]),
                str(ours),
                ours == printed_rows[what][i],
            )
        theirs = printed_rows["Total parameters, M"][i]
        section.says(
            f"{label}: parameters, M", str(theirs), f"{values:.2f}", abs(values - theirs) < 0.15
        )
        theirs = printed_rows["FLOPs, GFLOPs"][i]
        section.says(
            f"{label}: GFLOPs",
            str(theirs),
            f"{macs:.2f} G multiply-adds ({2 * macs:.2f} GFLOPs)",
            abs(macs - theirs) < 0.15,
            "the thesis counts a multiply-add as one",
        )
    return section


def baselines(labs: list[Lab], table: str) -> Section:
    """Tables 4.2 and 4.6."""
    section = Section(
        table,
        "; ".join(f"{lab.label}: {lab.name}" for lab in labs)
        or "no weights of FCN-ResNet18: --camvid and --fcn-weights",
    )
    rows = {(r[0]): r for r in printed("s4")[table]["rows"]}
    for label, row in rows.items():
        lab = next((v for v in labs if v.label == label), None)
        ours = f"{lab.reference(lab.ptq()[1]):.2f} %" if lab is not None else ""
        section.shows(
            f"{label}: float",
            f"{row[1]} %, {row[2]} ms, {row[3]} images/s, {row[4]} MB",
            ours,
            "other data; latency needs a T4: trtq bench",
        )
    return section


def implicit(labs: list[Lab], table: str) -> Section:
    """Tables 4.3 and 4.7: FP16, PTQ, QAT."""
    section = Section(
        table,
        "; ".join(f"{lab.label}: {lab.name}, {lab.how}" for lab in labs)
        or "no weights of FCN-ResNet18: --camvid and --fcn-weights",
    )
    for lab in labs:
        rows = {r[1]: r for r in rows_of(table, lab.label)}
        ptq, qat = lab.change(lab.ptq()[1]), lab.change(lab.qat())
        for method, value in (("PTQ", ptq), ("QAT", qat)):
            section.shows(
                f"{lab.label}, {method}: points",
                points(-rows[method][4]) if method in rows else "not in the text",
                points(value),
                "another model, other data",
            )
        if "FP16" in rows:
            section.shows(
                f"{lab.label}, FP16: points",
                points(-rows["FP16"][4]),
                "",
                "no FP16 arithmetic on this CPU: benchmarks/results/half.md has rounded files",
            )
        if lab.training["epochs"]:
            section.better(
                f"{lab.label}: QAT beats PTQ",
                "yes" if rows else "not in the text",
                f"{points(qat)} and {points(ptq)}",
                qat - ptq,
                noise_of(lab.ptq()[1], lab.qat()),
                "the float model was not trained beside it: benchmarks/results/qat.md has that "
                "control",
            )
        if "PTQ" in rows:
            section.better(
                f"{lab.label}: PTQ loses more than 8 points",
                points(-rows["PTQ"][4]),
                points(ptq),
                -8.0 - ptq,
                noise_of(lab.ptq()[1]),
                "entropy ranges of implicit INT8 there, mse ranges and Q/DQ pairs here",
            )
    return section


def mixed(labs: list[Lab], table: str) -> Section:
    """Tables 4.4 and 4.8: 4MP and 2MP at 8, 6 and 4 bits of activations."""
    section = Section(
        table,
        "; ".join(f"{lab.label}: {lab.name}, {lab.how}" for lab in labs)
        or "no weights of FCN-ResNet18: --camvid and --fcn-weights",
    )
    for lab in labs:
        rows = {(r[1], r[2]): r for r in rows_of(table, lab.label)}
        ours = {(mix, a): lab.change(lab.qat(mix, a)) for mix in MIXES for a in ACTIVATIONS}
        for key, value in ours.items():
            section.shows(
                f"{lab.label} {key[0]}-A{key[1]}: points",
                points(-rows[key][5]),
                points(value),
                "another model, other data",
            )
        for mix in MIXES:
            ratio, theirs = lab.ratio(mix), rows[mix, 8][6]
            section.shows(
                f"{lab.label} {mix}: compression",
                f"{theirs:.2f}",
                f"{ratio:.2f}",
                "the thesis's own ratio was the budget",
            )
            for wide, narrow in ((8, 6), (6, 4)):
                section.better(
                    f"{lab.label} {mix}: A{wide} keeps more than A{narrow}",
                    " / ".join(points(-rows[mix, v][5]) for v in (wide, narrow)),
                    f"{points(ours[mix, wide])} / {points(ours[mix, narrow])}",
                    ours[mix, wide] - ours[mix, narrow],
                    noise_of(lab.qat(mix, wide), lab.qat(mix, narrow)),
                )
        section.better(
            f"{lab.label}: 4MP keeps more than 2MP at A8",
            f"{points(-rows['4MP', 8][5])} and {points(-rows['2MP', 8][5])}",
            f"{points(ours['4MP', 8])} and {points(ours['2MP', 8])}",
            ours["4MP", 8] - ours["2MP", 8],
            noise_of(lab.qat("4MP", 8), lab.qat("2MP", 8)),
        )
        section.better(
            f"{lab.label}: 4MP-A8 loses less than a point",
            points(-rows["4MP", 8][5]),
            points(ours["4MP", 8]),
            ours["4MP", 8] + 1.0,
            noise_of(lab.qat("4MP", 8)),
        )
    return section


def latency(table: str) -> Section:
    """Tables 4.5 and 4.9: predictions, called so."""
    from trtq import CostSpec, cost

    section = Section(
        table,
        "no GPU: what trtq's roofline predicts for a T4 at batch 1 (a prediction, not a "
        "measurement)",
    )
    fcn = table == "Table 4.9"
    for label, name in (
        {"FCN-ResNet18": "trtq:fcn_resnet18"} if fcn else {k: f"timm:{v}" for k, v in TIMM.items()}
    ).items():
        size = {"input_size": (3, 240, 320)} if fcn else {}
        ms = {
            b: cost(CostSpec(model=name, bits=b, device="t4", **size)).latency.ms
            for b in ("fp32", "fp16", "w8a8")
        }
        for row in rows_of(table, label):
            ours = ms["fp32"] / ms["fp16" if row[1] == "FP16" else "w8a8"]
            section.shows(
                f"{label}, {row[1]}: speed-up over FP32",
                f"{row[4]} ({row[2]} ms)",
                f"{ours:.2f} (predicted)",
                "a T4 is needed; QAT and PTQ are one engine to a roofline",
            )
    return section


def sensitivity(labs: list[Lab], name: str, out: Path) -> Section:
    """Figs 4.3 and 4.7."""
    from matplotlib.figure import Figure

    section = Section(
        name,
        "; ".join(lab.name for lab in labs)
        or "no weights of FCN-ResNet18: --camvid and --fcn-weights",
    )
    if not labs:
        section.shows("sensitivities", "drawn", "", "no weights here")
        return section
    figure = Figure(figsize=(9, 3.2 * len(labs)))
    for axes, lab in zip(figure.subplots(len(labs), 1, squeeze=False).ravel(), labs, strict=True):
        layers = json.loads(lab.analysis("4MP", 8).read_text())["layers"]
        raw = [v["raw"] or 0.0 for v in layers]
        axes.bar(range(len(raw)), raw, color="#2f7ed8")
        axes.set_xticks(range(len(raw)), [v["name"] for v in layers], rotation=90, fontsize=5)
        axes.set(ylabel="S (eq. 3.3)", title=f"{lab.label}: {lab.name}", yscale="log")
        ranked = [v["name"] for v in sorted(layers, key=lambda v: -(v["raw"] or 0.0))]
        section.shows(
            f"{lab.label}: most sensitive",
            "the first convolution and the classifier" if lab.label == "ResNet50" else "drawn",
            ", ".join(ranked[:3]),
            "no value is printed",
        )
        if lab.label == "ResNet50":
            ends = {layers[0]["name"], layers[-1]["name"]} & set(ranked[: max(2, len(ranked) // 4)])
            section.says(
                "the first and the last layer are among the most sensitive quarter",
                "both",
                f"{len(ends)} of 2",
                len(ends) == 2,
            )
    return _drawn(section, figure, out)


def bits(lab: Lab | None, name: str, out: Path) -> Section:
    """Figs 4.4, 4.5 and 4.8."""
    from matplotlib.figure import Figure

    if lab is None:
        section = Section(name, "no weights of FCN-ResNet18: --camvid and --fcn-weights")
        section.shows("widths", "drawn", "", "no weights here")
        return section
    section = Section(name, f"{lab.name}, at the thesis's compression")
    figure = Figure(figsize=(9, 4.5))
    for axes, mix in zip(figure.subplots(2, 1), MIXES, strict=True):
        layers = json.loads(lab.allocation(mix, 8).read_text())["layers"]
        width = [int(v["option"].removeprefix("w").partition("a")[0]) for v in layers]
        axes.bar(range(len(width)), width, color=["#d9822b" if w < 8 else "#2f7ed8" for w in width])
        axes.set(ylabel="bits of weights", title=mix)
        counts = ", ".join(f"{width.count(b)} at {b}" for b in sorted(set(width), reverse=True))
        section.shows(f"{mix}: layers", "drawn", counts, "no value is printed")
    return _drawn(section, figure, out)


def _drawn(section: Section, figure: Any, out: Path) -> Section:
    path = out.with_name(
        f"s4_{section.id.lower().replace('. ', '').replace(' ', '').replace('.', '_')}.png"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    section.picture = path.name
    return section


def pictures(
    lab: Lab | None, name: str, chosen: dict[str, tuple[str, int] | None], args: argparse.Namespace
) -> Section:
    """Figs 4.9 to 4.12: predictions side by side."""
    section = Section(
        name,
        "three test images of CamVid"
        if lab is not None
        else "no weights of FCN-ResNet18: --camvid and --fcn-weights",
    )
    if lab is None:
        section.shows("pictures", "drawn", "", "no weights here")
        return section
    from segmentation import answers, picture

    given = SimpleNamespace(camvid=args.camvid, weights=args.fcn_weights)
    plain = lab.ptq()[0]
    columns = {"FP32": answers(given, plain / "model.fp32.onnx")}
    for label, key in chosen.items():
        lab.qat(*(key or ()))
        mix, activations = key or ("", 8)
        trained = lab.folder / f"qat-{mix}-{activations}"
        columns[label] = answers(
            given,
            (trained if trained.is_dir() and "PTQ" not in label else lab.ptq(mix, activations)[0])
            / "model.qdq.onnx",
        )
    path = args.out.with_name(f"s4_{name.lower().replace('. ', '').replace('.', '_')}.png")
    picture(given, columns, path)
    section.shows("pictures", "drawn, of Cityscapes", ", ".join(columns), "other images")
    section.picture = path.name
    return section


def summary(labs: list[Lab], name: str) -> Section:
    """Figs 4.13 to 4.16: the tables once more."""
    section = Section(name, "from the tables above")
    if name == "Fig. 4.16":
        section.shows("speed-ups", "from Tables 4.5 and 4.9", "", "needs a T4")
        return section
    for lab in labs:
        if name == "Fig. 4.14":
            section.shows(
                f"{lab.label}: compression of 4MP and 2MP",
                " and ".join(f"{v:.2f}" for v in COMPRESSION[lab.label].values()),
                f"{lab.ratio('4MP'):.2f} and {lab.ratio('2MP'):.2f}",
                "the thesis's own ratios were the budgets",
            )
            continue
        found = {f"{m}-A{a}": lab.change(lab.qat(m, a)) for m in MIXES for a in ACTIVATIONS}
        worst, best = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        text = f"best {best} ({points(found[best])}), worst {worst} ({points(found[worst])})"
        claim = (
            "the worst is 2MP-A4"
            if name == "Fig. 4.13"
            else "the largest compression at 4-bit activations costs most"
        )
        rest = max(
            (k for k in found if k != "2MP-A4"), key=lambda k: -found[k]
        )  # the worst of the others
        noise = noise_of(lab.qat("2MP", 4), lab.qat(rest[:3], int(rest[-1])))
        section.better(f"{lab.label}: {claim}", "yes", text, found[rest] - found["2MP-A4"], noise)
    if name == "Fig. 4.13" and len(labs) > 1:
        a, b = (v.change(v.qat("4MP", 6)) for v in labs[:2])
        noise = noise_of(labs[0].qat("4MP", 6), labs[1].qat("4MP", 6))
        section.better(
            "MobileNetV2 suffers more than ResNet50 at 4MP-A6",
            "-6.77 and -0.77",
            f"{points(b)} and {points(a)}",
            a - b,
            noise,
            "mobilevit_xxs and ResNet-20 here",
        )
    return section


def main() -> None:
    parser = parser_of(__doc__ or "")
    add_subject(parser, "cnn", "resnet20")
    add_subject(parser, "mobile", "mobilevit_xxs")
    parser.add_argument("--epochs", type=int, default=1, help="of QAT, of the classifiers")
    parser.add_argument("--train-images", type=int, default=3000, help="of an epoch")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--camvid", type=Path, default=None)
    parser.add_argument("--fcn-weights", type=Path, default=None)
    parser.add_argument(
        "--fcn-epochs", type=int, default=1, help="of QAT, of FCN-ResNet18; 0: PTQ alone"
    )
    args = arguments(
        parser, tables=["Table 4.1", "Table 4.2"], images=16, epochs=1, train_images=16
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labs = [
            classifier(label, subject(args, role), folder / role, args)
            for label, role in (("ResNet50", "cnn"), ("MobileNetV2", "mobile"))
        ]
        fcn = segmenter(folder / "fcn", args)
        segmenters = [fcn] if fcn is not None else []
        out = args.out
        work: dict[str, Callable[[], Section]] = {
            "Table 4.1": information,
            "Table 4.2": lambda: baselines(labs, "Table 4.2"),
            "Table 4.3": lambda: implicit(labs, "Table 4.3"),
            "Table 4.4": lambda: mixed(labs, "Table 4.4"),
            "Table 4.5": lambda: latency("Table 4.5"),
            "Table 4.6": lambda: baselines(segmenters, "Table 4.6"),
            "Table 4.7": lambda: implicit(segmenters, "Table 4.7"),
            "Table 4.8": lambda: mixed(segmenters, "Table 4.8"),
            "Table 4.9": lambda: latency("Table 4.9"),
            "Fig. 4.3": lambda: sensitivity(labs, "Fig. 4.3", out),
            "Fig. 4.4": lambda: bits(labs[0], "Fig. 4.4", out),
            "Fig. 4.5": lambda: bits(labs[1], "Fig. 4.5", out),
            "Fig. 4.6": training_curve,
            "Fig. 4.7": lambda: sensitivity(segmenters, "Fig. 4.7", out),
            "Fig. 4.8": lambda: bits(fcn, "Fig. 4.8", out),
            "Fig. 4.9": lambda: pictures(fcn, "Fig. 4.9", {}, args),
            "Fig. 4.10": lambda: pictures(fcn, "Fig. 4.10", {"PTQ": None, "QAT": None}, args),
            "Fig. 4.11": lambda: pictures(
                fcn, "Fig. 4.11", {f"4MP-A{a}": ("4MP", a) for a in ACTIVATIONS}, args
            ),
            "Fig. 4.12": lambda: pictures(
                fcn, "Fig. 4.12", {f"2MP-A{a}": ("2MP", a) for a in ACTIVATIONS}, args
            ),
            **{
                f"Fig. 4.{i}": (lambda n=f"Fig. 4.{i}": summary([*labs, *segmenters], n))
                for i in range(13, 17)
            },
        }
        redo("s4", "S4: TensorRT PTQ and QAT, gradient-based mixed precision", work, args)


def training_curve() -> Section:
    """Fig. 4.6."""
    section = Section("Fig. 4.6", "CamVid")
    section.shows(
        "training curves",
        "92.3 % of pixels, 58.3 % mIoU, stopped at epoch 37 of 50 (Cityscapes)",
        "benchmarks/train_fcn.py prints loss and mIoU of every epoch",
        "Cityscapes asks for registration",
    )
    return section


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
