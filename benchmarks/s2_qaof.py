"""S2, "QAOF": Tables I-IV redone.

Usage: TRTQ_DATA=... python benchmarks/s2_qaof.py --out benchmarks/results/s2.md \
    [--tables 'Table I' ...]

ResNet-20 and a ViT of 6 blocks, both on CIFAR-10, replace ResNet-50 on ImageNet and BERT-Base on
GLUE (trtq is for vision models). With ImageNet: --cnn-model timm:resnet50 --cnn-checkpoint W
--cnn-data TRAIN --cnn-eval VAL, and --vit-model timm:deit_small_patch16_224 likewise.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from redo import Section, Subject, add_subject, noise_of, parser_of, points, printed, redo, subject
from smoke import arguments

# Steps of Table III, each with what came before: the paper does not say whether its rows add up;
# "incremental" suggests it.
NAIVE: dict[str, Any] = {"attention": "int8", "calibrator": "max"}
CLIPPED: dict[str, Any] = {
    **NAIVE,
    "calibrator": "percentile",
    "percentile": 99.9,
    "method": ["attention-percentile", "layernorm-ema"],
}
MIXED: dict[str, Any] = {**CLIPPED, "high_precision": ["@anchors"]}
QADS: dict[str, Any] = {**MIXED, "method": ["attention-percentile", "layernorm-ema", "qads"]}
CNN: dict[str, dict[str, Any]] = {
    "Standard PTQ": {"calibrator": "max"},
    "QAOF (Ours)": {
        "calibrator": "percentile",
        "percentile": 99.9,
        "high_precision": ["@anchors"],
        "method": ["qads"],
    },
}
STEPS = {
    "Uniform INT8 (Naive PTQ)": NAIVE,
    "INT8 + Percentile Clipping": CLIPPED,
    "INT8 + Mixed-Precision (QAOF)": MIXED,
    "with QADS": QADS,
}


class Lab:
    """One model: every setting is measured once."""

    def __init__(self, model: Subject, folder: Path, epochs: int, train: int) -> None:
        self.model, self.folder, self.epochs, self.train = model, folder, epochs, train
        folder.mkdir()

    @cache  # noqa: B019 - lives as long as the script
    def ptq(self, step: str) -> Any:
        return self.model.quantized(self.folder, **(STEPS | CNN)[step])[1]

    @cache  # noqa: B019
    def qat(self) -> tuple[Any, Any]:
        """Return the evaluations after training with codes in place and without any.

        Both trainings are the same otherwise.
        """
        from qat import without_codes

        from trtq import FinetuneSpec, finetune

        step = "INT8 + Mixed-Precision (QAOF)"
        self.model.quantized(self.folder, **STEPS[step])
        encodings = self.folder / "o/encodings.safetensors"
        own = {k: v for k, v in self.model.own.items() if k not in ("calib_images",)}
        found = []
        for name, start in (
            ("qat", encodings),
            ("control", without_codes(encodings, self.folder / "none")),
        ):
            out = self.folder / name
            given = {
                **own,
                "encodings": str(start),
                "out": str(out),
                "epochs": self.epochs,
                "limit": self.train,
                "lr": 3e-4,
            }
            finetune(FinetuneSpec.make(given))
            found.append(self.model.evaluated(out))
        return found[0], found[1]


def overall(cnn: Lab, vit: Lab) -> Section:
    """Table I."""
    section = Section("Table I", f"{cnn.model.data}; {vit.model.data} instead of BERT-Base")
    rows = {(r[0], r[1]): r for r in printed("s2")["Table I"]["rows"]}
    lost: dict[str, list[float]] = {}
    noise: dict[str, float] = {}
    for label, lab, steps in (
        ("ResNet-50", cnn, ("Standard PTQ", "QAOF (Ours)")),
        ("BERT-Base", vit, ("Uniform INT8 (Naive PTQ)", "with QADS")),
    ):
        for step, method in zip(steps, ("Standard PTQ", "QAOF (Ours)"), strict=True):
            found = lab.ptq(step)
            change = found.top1 - found.reference_top1
            lost.setdefault(label, []).append(change)
            section.shows(
                f"{label}, {method}: points",
                points(rows[label, method][4]),
                f"{points(change)} ({found.reference_top1:.2f} to {found.top1:.2f} %), "
                f"agreement {found.agreement:.1f} %",
                f"{lab.model.name} here; no training in either row",
            )
        (plain, ours), noise[label] = lost[label], noise_of(*(lab.ptq(s) for s in steps))
        section.better(
            f"{label}: QAOF loses less than standard PTQ",
            f"{points(rows[label, 'QAOF (Ours)'][4])} and {points(rows[label, 'Standard PTQ'][4])}",
            f"{points(ours)} and {points(plain)}",
            ours - plain,
            noise[label],
        )
        section.better(
            f"{label}: QAOF loses less than 0.4 points",
            f"claimed; {points(rows[label, 'QAOF (Ours)'][4])} in the table",
            points(ours),
            ours + 0.4,
            noise_of(lab.ptq(steps[1])),
        )
        text = "more than 79 % of PTQ's loss comes back"
        if plain >= -noise_of(lab.ptq(steps[0])):
            section.shows(
                f"{label}: {text}",
                "79.5 and 83.7 %",
                "",
                f"PTQ's change of {points(plain)} lies within the noise: there is nothing to "
                "bring back",
            )
        else:
            share = (ours - plain) / -plain
            section.says(
                f"{label}: {text}", "79.5 and 83.7 %", f"{100 * share:.0f} %", share > 0.79
            )
    whole = cnn.ptq("Standard PTQ")
    change = whole.top1 - whole.reference_top1
    section.says(
        "82 % of the CNN's layers take INT8 without a change of top-1",
        "82 %",
        f"100 % of them: {points(change)}",
        change > -noise_of(whole),
        f"agree: no loss beyond the noise of {noise_of(whole):.2f} points with every layer in INT8",
    )
    from trtq import CostSpec, cost

    counted = cost(CostSpec(model="timm:resnet50"))
    values = counted.total.parameters
    section.says(
        "ResNet-50: FP32 to INT8, MB",
        "97.5 to 24.4",
        f"{4 * values / 2**20:.1f} to {values / 2**20:.1f} MiB of parameters, counted",
        abs(4 * values / 2**20 - 97.5) < 1.5,
        "all of it at a byte: with stem and head in FP16, as QAOF has them, it is more",
    )
    return section


def speed() -> Section:
    """Table II: nothing that a machine without a GPU can measure; predictions are called so."""
    from trtq import CostSpec, cost

    section = Section(
        "Table II",
        "no GPU; what trtq's roofline predicts for ResNet-50 at batch 1 on a T4 (a prediction, "
        "not a measurement)",
    )
    rows = {r[0]: r for r in printed("s2")["Table II"]["rows"]}
    ms = {
        b: cost(CostSpec(model="timm:resnet50", bits=b, device="t4")).latency.ms
        for b in ("fp32", "fp16", "w8a8")
    }
    for label, bits in (("FP32", "fp32"), ("FP16", "fp16"), ("INT8 (Standard PTQ)", "w8a8")):
        section.shows(
            f"{label}: speed-up over FP32",
            f"{rows[label][3]:.2f} ({rows[label][1]} ms)",
            f"{ms['fp32'] / ms[bits]:.2f} (predicted, {ms[bits]:.2f} ms)",
            "the paper names neither device nor model, and calls its hardware simulated",
        )
    section.shows(
        "INT8 (QAOF)",
        f"{rows['INT8 (QAOF)'][3]:.2f}",
        "",
        "observers in the forward pass: an engine of trtq has none",
    )
    return section


def steps(vit: Lab) -> Section:
    """Table III."""
    section = Section(
        "Table III",
        f"{vit.model.data} instead of BERT-Base on GLUE; each row with what came before it",
    )
    rows = dict(printed("s2")["Table III"]["rows"])
    full = rows["FP32 Baseline"]
    trained, control = vit.qat()
    found = {k: vit.ptq(k) for k in STEPS} | {"INT8 + QAT (QAOF Full)": trained}
    change = {
        k: r.top1 - vit.ptq("Uniform INT8 (Naive PTQ)").reference_top1 for k, r in found.items()
    }
    for label, value in change.items():
        paper = points(rows[label] - full) if label in rows else ""
        section.shows(
            label,
            paper,
            f"{points(value)}, agreement {found[label].agreement:.1f} %",
            "points of GLUE there, of top-1 here",
        )
    base = vit.ptq("Uniform INT8 (Naive PTQ)").reference_top1
    section.shows(
        "the same training without codes",
        "",
        points(control.top1 - base),
        "what the images alone bring: QAT is to be held against this",
    )
    order = [
        "Uniform INT8 (Naive PTQ)",
        "INT8 + Percentile Clipping",
        "INT8 + Mixed-Precision (QAOF)",
    ]
    for a, b in itertools.pairwise(order):
        section.better(
            f"{b} beats {a}",
            f"{points(rows[b] - full)} and {points(rows[a] - full)}",
            f"{points(change[b])} and {points(change[a])}",
            change[b] - change[a],
            noise_of(found[a], found[b]),
        )
    mixed = "INT8 + Mixed-Precision (QAOF)"
    gain = trained.top1 - control.top1 - change[mixed]
    section.better(
        "QAT beats PTQ, the control's gain taken off",
        points(rows["INT8 + QAT (QAOF Full)"] - rows[mixed]),
        points(gain),
        gain,
        noise_of(trained, control, found[mixed]),
    )
    naive = change[order[0]]
    section.better(
        "PTQ alone loses 3 points or more on transformers",
        "3.25",
        points(naive),
        -3.0 - naive,
        noise_of(found[order[0]]),
    )
    return section


def advice(vit: Subject, cnn: Subject) -> Section:
    """Table IV: the decision matrix, asked with facts that fit each line."""
    from trtq import AdviseSpec, advise

    section = Section("Table IV", "trtq advise, with facts that should lead to each line")
    shared = {k: v for k, v in cnn.own.items() if k != "calib_images"}
    tokens = {k: v for k, v in vit.own.items() if k != "calib_images"}
    asked = {
        "Rapid Prototyping": {**shared, "target": "t4", "data": None},
        "High-Throughput CNNs": {**shared, "target": "t4"},
        "High-Accuracy Models": {**tokens, "target": "t4", "min_accuracy": -0.5},
        "Edge Deployment": {
            **shared,
            "target": "orin",
            "budget": ["size=0.15"],
            "min_accuracy": -0.5,
        },
    }
    for scenario, data, precision, strategy in printed("s2")["Table IV"]["rows"]:
        given = asked[scenario]
        if given["data"] is None:  # next to no images
            from trtq.testing.images import write_classes

            folder = Path(tempfile.mkdtemp())
            given = {**given, "data": str(write_classes(folder, 2, 4))}
        record = advise(AdviseSpec.make(given))
        section.shows(
            f"{scenario} ({data})",
            f"{precision}, {strategy}",
            f"{record.precision}, {record.strategy}: {record.summary.partition('because ')[2]}"[
                :220
            ],
            "the matrix is the paper's own; when a line applies is ours",
        )
    return section


def main() -> None:
    parser = parser_of(__doc__ or "")
    add_subject(parser, "cnn", "resnet20")
    add_subject(parser, "vit", "vit")
    parser.add_argument("--epochs", type=int, default=2, help="of QAT")
    parser.add_argument("--train-images", type=int, default=5000, help="of an epoch")
    args = arguments(parser, tables=["Table I", "Table IV"], images=16, epochs=1, train_images=16)
    with tempfile.TemporaryDirectory() as name:
        labs = {
            r: Lab(subject(args, r), Path(name) / r, args.epochs, args.train_images)
            for r in ("cnn", "vit")
        }
        work = {
            "Table I": lambda: overall(labs["cnn"], labs["vit"]),
            "Table II": speed,
            "Table III": lambda: steps(labs["vit"]),
            "Table IV": lambda: advice(labs["vit"].model, labs["cnn"].model),
        }
        redo("s2", "S2: QAOF", work, args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
