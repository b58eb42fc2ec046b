"""S1: Tables 1-5 and Figs 1-3 redone.

Usage: TRTQ_DATA=... python benchmarks/s1_energy_aware.py --out benchmarks/results/s1.md \
    [--tables 'Table 1' ...]

S1 is "Energy-Aware Quantization and Mixed-Precision Learning for Vision Models". ResNet-20 and a
ViT of 6 blocks, both on CIFAR-10, replace the paper's ResNet-18 on CIFAR-100 and DeiT-Tiny on
ImageNet, whose weights are not published. With the paper's data: --cnn-model timm:resnet18
--cnn-checkpoint W --cnn-data TRAIN --cnn-eval VAL, and --vit-... likewise.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from redo import Section, Subject, add_subject, noise_of, parser_of, points, printed, redo, subject
from smoke import arguments

WIDTHS = ("4", "6", "8")
UNIFORM = {"8-bit PTQ": 8, "6-bit PTQ": 6, "4-bit PTQ": 4}


class Lab:
    """One model: every setting is measured once."""

    def __init__(self, model: Subject, folder: Path) -> None:
        self.model, self.folder = model, folder
        folder.mkdir()

    @cache  # noqa: B019 - lives as long as the script
    def analysis(self) -> Path:
        return self.model.analyzed(self.folder, "l2", WIDTHS)

    @cache  # noqa: B019
    def uniform(self, bits: int, methods: tuple[str, ...] = ()) -> tuple[Any, float]:
        """Return the evaluation at a width and its relative energy.

        The first and the last layer have 8 bits (A.2).
        """
        from mixed_precision import uniform_costs

        _, found = self.model.quantized(
            self.folder,
            bits=f"w{bits}a{bits}",
            method=list(methods),
            attention="int8" if methods else "float",
        )
        return found, uniform_costs(self.analysis(), bits, bits)[1]["energy"]

    @cache  # noqa: B019
    def mixed(self) -> tuple[Any, float, list[str]]:
        """Return the percentile rule's evaluation, relative energy and width of every layer."""
        from trtq import AllocateSpec, allocate

        path = self.folder / "allocation.json"
        r = allocate(
            AllocateSpec(
                analysis=str(self.analysis()), out=str(path), strategy="percentile", bits=WIDTHS
            )
        )
        _, found = self.model.quantized(self.folder, allocation=str(path), attention="float")
        return found, r.costs["energy"] / r.full["energy"], [layer.option for layer in r.layers]


def accuracy_table(name: str, lab: Lab) -> Section:
    """Tables 1 and 2: top-1 and relative energy at 8, 6, 4 bits and mixed."""
    section = Section(
        name,
        f"{lab.model.data}; calibrated on 256 images with max, nothing else; the float model "
        f"has {lab.uniform(8)[0].reference_top1:.2f} %",
    )
    rows = {r[0]: r for r in printed("s1")[name]["rows"]}
    ours: dict[str, tuple[float, float, Any]] = {}
    for config, (found, energy) in {
        **{c: lab.uniform(b) for c, b in UNIFORM.items()},
        "Mixed (Ours)": lab.mixed()[:2],
    }.items():
        ours[config] = found.top1 - found.reference_top1, energy, found
    for config, (change, energy, _) in ours.items():
        _, _, lost, relative, _ = rows[config]
        section.shows(
            f"{config}: points of top-1",
            points(lost),
            points(change),
            "another model and other images: orders are compared below",
        )
        section.says(
            f"{config}: relative energy",
            f"{relative:.3f}",
            f"{energy:.3f}",
            abs(energy / relative - 1.0) < 0.1,
            "agree: within 10 %; eq. 7 on this model's counts, the paper's own are not printed",
        )
    lost = {k: rows[k][2] for k in ours}
    for a, b, text in (
        ("8-bit PTQ", "6-bit PTQ", "8 bits lose less than 6"),
        ("6-bit PTQ", "4-bit PTQ", "6 bits lose less than 4"),
        ("Mixed (Ours)", "4-bit PTQ", "mixed loses less than 4 bits"),
    ):
        section.better(
            text,
            f"{points(lost[a])} and {points(lost[b])}",
            f"{points(ours[a][0])} and {points(ours[b][0])}",
            ours[a][0] - ours[b][0],
            noise_of(ours[a][2], ours[b][2]),
        )
    eight = ours["8-bit PTQ"]
    section.better(
        "8 bits lose at most half a point",
        points(lost["8-bit PTQ"]),
        points(eight[0]),
        eight[0] + 0.5,
        noise_of(eight[2]),
    )
    between = ours["4-bit PTQ"][1] < ours["Mixed (Ours)"][1] < ours["8-bit PTQ"][1]
    section.says(
        "mixed takes less energy than 8 bits and more than 4",
        f"{rows['Mixed (Ours)'][3]:.3f}",
        f"{ours['Mixed (Ours)'][1]:.3f}",
        between,
    )
    mixed, six = ours["Mixed (Ours)"], ours["6-bit PTQ"]
    section.better(
        "mixed keeps more than 6 bits",
        points(lost["Mixed (Ours)"] - lost["6-bit PTQ"]),
        points(mixed[0] - six[0]),
        mixed[0] - six[0],
        noise_of(mixed[2], six[2]),
    )
    less = rows["Mixed (Ours)"][3] - rows["6-bit PTQ"][3], mixed[1] - six[1]
    section.says(
        "mixed against 6 bits: relative energy",
        f"{less[0]:+.3f}",
        f"{less[1]:+.3f}",
        less[0] * less[1] > 0,
        "agree: the sign",
    )
    return section


def counts_of(folder: Path) -> Section:
    """Table 3: how many layers get which width, on the paper's own models.

    The rule needs no accuracy.
    """
    from trtq import AllocateSpec, allocate
    from trtq.testing.images import write_classes

    section = Section(
        "Table 3",
        "timm resnet18 and deit_tiny_patch16_224 with random weights, 16 made-up images: the "
        "rule counts layers, whatever their losses",
    )
    images = write_classes(folder / "images", 2, 8)
    rows = {r[0]: r[1:] for r in printed("s1")["Table 3"]["rows"]}
    for label, name in (("ResNet-18", "resnet18"), ("DeiT-Tiny", "deit_tiny_patch16_224")):
        model = Subject(
            name, {"model": f"timm:{name}", "data": str(images)}, {"data": str(images)}, 16
        )
        analysis = model.analyzed(folder, "l2", WIDTHS, calib_images=16, images=8)
        r = allocate(
            AllocateSpec(
                analysis=str(analysis),
                out=str(folder / "a.json"),
                strategy="percentile",
                bits=WIDTHS,
            )
        )
        options = [layer.option for layer in r.layers]
        counts = [sum(o in (f"w{b}a{b}", b) for o in options) for b in WIDTHS]
        theirs = next(v for k, v in rows.items() if k.startswith(label))
        wanted = [int(theirs[i]) for i in (0, 2, 4)]
        section.says(
            f"{label}: layers at 4, 6, 8 bits",
            " / ".join(map(str, wanted)),
            " / ".join(map(str, counts)),
            counts == wanted,
            f'{len(options)} layers, "at most P25" for the 4-bit group; layers that read one '
            "tensor share a width here",
        )
    return section


def ranking(lab: Lab) -> Section:
    """Table 4: plain against ranking-aware PTQ."""
    section = Section(
        "Table 4", f"{lab.model.data}; products of the attentions quantized in both columns"
    )
    rows = printed("s1")["Table 4"]
    section.shows(
        "printed rows",
        "; ".join(" ".join(map(str, r)) for r in rows["rows"])[:300],
        "",
        "the ranking loss and its optimizer are not given: Liu et al. 2021 is what ours does",
    )
    for bits in (8, 6, 4):
        _, plain = lab.model.quantized(lab.folder, bits=f"w{bits}a{bits}", attention="int8")
        aware, _ = lab.uniform(bits, ("ranking",))
        change = aware.top1 - plain.top1
        theirs = {8: 0.08, 6: 0.10, 4: -8.14}[bits]
        section.better(
            f"{bits} bits: ranking-aware is {'better' if theirs > 0 else 'worse'} than plain",
            points(theirs),
            f"{points(change)} ({plain.top1:.2f} to {aware.top1:.2f} %)",
            change if theirs > 0 else -change,
            noise_of(plain, aware),
        )
    return section


def extremes(labs: dict[str, Lab]) -> Section:
    """Table 5: the most sensitive and the most robust layers."""
    lab = labs["vit"]
    section = Section(
        "Table 5",
        f"{lab.model.name}: L2 of each layer's own output at 4 bits over the norm of the float "
        "output",
    )
    layers = json.loads(lab.analysis().read_text())["layers"]
    ranked = sorted(layers, key=lambda v: -v["loss"]["w4a4" if "w4a4" in v["loss"] else "4"])
    top, bottom = [v["name"] for v in ranked[:5]], [v["name"] for v in ranked[-5:]]
    share = sum("fc2" in n for n in top)
    section.says(
        "of the five most sensitive layers, mlp.fc2",
        "5",
        f"{share} ({', '.join(top)})",
        share >= 3,
        "agree from three on",
    )
    share = sum("attn.proj" in n for n in bottom)
    section.says(
        "of the five most robust layers, attn.proj",
        "5",
        f"{share} ({', '.join(bottom)})",
        share >= 3,
        "agree from three on",
    )
    return section


def split(labs: dict[str, Lab]) -> Section:
    """Fig. 1: memory against multiply-adds."""
    section = Section(
        "Fig. 1",
        "counts of timm resnet18 and deit_tiny_patch16_224 and of the two models here; every "
        "weight, input and output once, 1:200",
    )
    from trtq import CostSpec, cost

    for name in ("resnet18", "deit_tiny_patch16_224"):
        r = cost(CostSpec(model=f"timm:{name}"))
        layers = [row.layer for row in r.rows if row.layer.weights]
        macs, moved = (
            sum(v.macs for v in layers),
            sum(v.weights + v.reads + v.writes for v in layers),
        )
        share = 200.0 * moved / (macs + 200.0 * moved)
        section.says(
            f"{name}: memory's share of the energy",
            "0.93 to 0.99",
            f"{share:.3f}",
            0.93 <= share <= 0.99,
            "the paper's counts are not printed; its energies imply 0.936 and 0.952",
        )
    for lab in labs.values():
        layers = [v["cost"] for v in json.loads(lab.analysis().read_text())["layers"]]
        macs, moved = (
            sum(c["macs"] for c in layers),
            sum(c["weights"] + c["reads"] + c["writes"] for c in layers),
        )
        section.shows(
            f"{lab.model.name}: memory's share",
            "",
            f"{200 * moved / (macs + 200 * moved):.3f}",
            "a model of ours",
        )
    return section


def frontier(labs: dict[str, Lab], out: Path) -> Section:
    """Fig. 2: accuracy against relative energy."""
    from matplotlib.figure import Figure

    section = Section("Fig. 2", "the rows of Tables 1 and 2, as measured here")
    figure = Figure(figsize=(9, 3.6))
    for axes, lab in zip(figure.subplots(1, 2), labs.values(), strict=True):
        found = {f"{b} bits": lab.uniform(b) for b in (8, 6, 4)} | {"mixed": lab.mixed()[:2]}
        beaten = [
            k
            for k, (r, e) in found.items()
            if any(
                o.top1 >= r.top1 and c <= e and (o.top1, -c) != (r.top1, -e)
                for o, c in found.values()
            )
        ]
        for label, (r, energy) in found.items():
            axes.plot(energy, r.top1, "o", color="#999999" if label in beaten else "#2f7ed8")
            axes.annotate(
                label, (energy, r.top1), xytext=(4, 4), textcoords="offset points", fontsize=8
            )
        axes.set(
            xlabel="relative energy (model, not measured)", ylabel="top-1, %", title=lab.model.name
        )
        section.says(
            f"{lab.model.name}: mixed is on the Pareto line",
            "yes (drawn)",
            "no" if "mixed" in beaten else "yes",
            "mixed" not in beaten,
            "no value of the figure is printed",
        )
    figure.tight_layout()
    figure.savefig(out.with_name("s1_fig2.png"), dpi=110)
    section.picture = "s1_fig2.png"
    return section


def sensitivities(labs: dict[str, Lab], out: Path) -> Section:
    """Fig. 3: every layer's sensitivity."""
    from matplotlib.figure import Figure

    section = Section(
        "Fig. 3", "L2 of every layer's own output at 4 bits, over the norm of the float output"
    )
    figure = Figure(figsize=(9, 6))
    for axes, lab in zip(figure.subplots(2, 1), labs.values(), strict=True):
        layers = json.loads(lab.analysis().read_text())["layers"]
        loss = [v["loss"].get("w4a4", v["loss"].get("4")) for v in layers]
        axes.bar(range(len(loss)), loss, color="#2f7ed8")
        axes.set_xticks(range(len(loss)), [v["name"] for v in layers], rotation=90, fontsize=6)
        axes.set(ylabel="loss", title=lab.model.name)
        section.shows(
            f"{lab.model.name}: largest over smallest",
            "",
            f"{max(loss) / min(loss):.1f} times",
            "no value of the figure is printed",
        )
    figure.tight_layout()
    figure.savefig(out.with_name("s1_fig3.png"), dpi=110)
    section.picture = "s1_fig3.png"
    return section


def main() -> None:
    parser = parser_of(__doc__ or "")
    add_subject(parser, "cnn", "resnet20")
    add_subject(parser, "vit", "vit")
    args = arguments(parser, tables=["Table 1", "Table 4"], images=16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labs = {role: Lab(subject(args, role), folder / role) for role in ("cnn", "vit")}
        work = {
            "Table 1": lambda: accuracy_table("Table 1", labs["cnn"]),
            "Table 2": lambda: accuracy_table("Table 2", labs["vit"]),
            "Table 3": lambda: counts_of(folder),
            "Table 4": lambda: ranking(labs["vit"]),
            "Table 5": lambda: extremes(labs),
            "Fig. 1": lambda: split(labs),
            "Fig. 2": lambda: frontier(labs, args.out),
            "Fig. 3": lambda: sensitivities(labs, args.out),
        }
        redo("s1", "S1: energy-aware quantization and mixed precision", work, args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
