"""S3: every table and figure redone.

Usage: TRTQ_DATA=... python benchmarks/s3_efficientquant.py --out benchmarks/results/s3.md \
    [--tables 'Table 1' ...]

S3 is "EfficientQuant: An Efficient Post-Training Quantization for CNN-Transformer Hybrid Models on
Edge Devices". Here mobilevit_xxs with weights trained on CIFAR-10 at 64x64 replaces the ten models.
With timm's weights (NAME.safetensors or NAME.pth in a folder) and ImageNet's validation images:
--weights FOLDER --data TRAIN --eval VAL [--class-index FILE].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from redo import Section, Subject, noise_of, parser_of, points, printed, redo
from smoke import arguments

NAMES = {
    "MobileViT_xxs": "mobilevit_xxs",
    "MobileViT_xs": "mobilevit_xs",
    "MobileViT_s": "mobilevit_s",
} | {
    f"MobileViTv2_{w}": f"mobilevitv2_{w}"
    for w in ("050", "075", "100", "125", "150", "175", "200")
}
PEERS = (
    "EasyQuant",
    "PTQ4ViT",
    "RepQ-ViT",
    "Q-HyViT published",
    "Q-HyViT reproduced",
    "HyQ published",
    "HyQ reproduced",
)
OURS = {
    "EfficientQuant, a range for each layer": {"method": ["efficientquant"]},
    "EfficientQuant, a range for each channel": {
        "method": ["efficientquant"],
        "method_arg": {"efficientquant.granularity": "channel"},
    },
    "trtq, INT8 weights and activations": {
        "preset_quant": "auto",
        "calibrator": "mse",
        "calib_images": 512,
    },
}


class Lab:
    """One model: every way is measured once."""

    def __init__(self, model: Subject, folder: Path) -> None:
        self.model, self.folder = model, folder
        folder.mkdir()

    @cache  # noqa: B019 - lives as long as the script
    def way(self, name: str) -> tuple[Any, Any]:
        return self.model.quantized(self.folder, **OURS[name])


def here(args: argparse.Namespace) -> list[tuple[str, Subject]]:
    """Return the models that there are weights of, by the paper's name."""
    from models import evaluation, settings

    if args.weights is None:
        return [
            (
                "MobileViT_xxs",
                Subject(
                    "mobilevit_xxs",
                    settings("mobilevit_xxs"),
                    evaluation("mobilevit_xxs"),
                    args.images,
                ),
            )
        ]
    found = []
    for label, name in NAMES.items():
        held = next(
            (
                p
                for p in (
                    Path(args.weights) / f"{name}{e}" for e in (".safetensors", ".pth", ".pt")
                )
                if p.is_file()
            ),
            None,
        )
        if held is not None:
            index = {"class_index": args.class_index} if args.class_index else {}
            own = {"model": f"timm:{name}", "checkpoint": str(held), "data": args.data, **index}
            found.append((label, Subject(name, own, {"data": args.eval, **index}, args.images)))
    return found


def accuracy(labs: dict[str, Lab], real: bool) -> Section:
    """Table 1."""
    lab = next(iter(labs.values()))
    section = Section(
        "Table 1",
        "; ".join(v.model.data for v in labs.values()) + "; the peers' rows are the paper's",
    )
    rows = {r[0]: r for r in printed("s3")["Table 1"]["rows"]}
    for label in NAMES:
        fp32, theirs = rows[label][1], rows[label][-1]
        peers = ", ".join(f"{n} {v}" for n, v in zip(PEERS, rows[label][2:9], strict=True))
        if label not in labs:
            section.shows(
                label,
                f"FP32 {fp32}, EfficientQuant {theirs}; {peers}",
                "",
                "no weights of it here: --weights",
            )
            continue
        for way in OURS:
            _, found = labs[label].way(way)
            text = (
                f"{found.reference_top1:.2f} to {found.top1:.2f} % "
                f"({points(found.top1 - found.reference_top1)}), agreement {found.agreement:.1f} %"
            )
            paper = (
                f"{fp32} to {theirs} ({points(theirs - fp32)}); {peers}"
                if way.startswith("Eff")
                else ""
            )
            if real and way.startswith("EfficientQuant, a range for each layer"):
                section.says(
                    f"{label}: {way}",
                    paper,
                    text,
                    abs(found.top1 - theirs) < 0.5,
                    "agree: within half a point",
                )
            else:
                section.shows(
                    f"{label}: {way}",
                    paper,
                    text,
                    "CIFAR-10 at 64x64" if not real else "not in the paper",
                )
    layer, channel, whole = (lab.way(w)[1] for w in OURS)
    section.better(
        "EfficientQuant loses at most 6 points",
        "0.44 to 5.87",
        points(layer.top1 - layer.reference_top1),
        layer.top1 - layer.reference_top1 + 6.0,
        noise_of(layer),
    )
    section.shows(
        "a range for each channel against one for each layer",
        "not said which",
        points(channel.top1 - layer.top1),
        "the paper does not say what min and max are of",
    )
    section.better(
        "weights and activations of the whole network in INT8 cost more than 2 points",
        "high loss, no numbers",
        f"{points(whole.top1 - whole.reference_top1)} for all convolutions, linears and "
        "attention products",
        -2.0 - whole.top1 + whole.reference_top1,
        noise_of(whole),
        "that is what an engine can speed up; EfficientQuant computes in float",
    )
    return section


def weights_of(labs: dict[str, Lab]) -> Section:
    """Fig. 2: are weights of convolutions uniform?"""
    import numpy as np
    from safetensors.torch import load_file

    lab = next(iter(labs.values()))
    section = Section(
        "Fig. 2",
        f"every convolution of {lab.model.name} with {Path(lab.model.own['checkpoint']).name}",
    )
    states = (
        load_file(lab.model.own["checkpoint"])
        if lab.model.own["checkpoint"].endswith("safetensors")
        else {}
    )
    kurtosis, nearer = [], 0
    for value in states.values():
        if value.ndim == 4 and value.numel() >= 256:
            v = np.sort(value.double().numpy().ravel())
            spread = (v - v.mean()) / v.std()
            kurtosis.append(float((spread**4).mean()) - 3.0)
            places = (np.arange(len(v)) + 0.5) / len(v)
            uniform = np.abs((v - v[0]) / (v[-1] - v[0]) - places).max()
            from scipy.special import ndtr

            nearer += uniform < np.abs(ndtr(spread) - places).max()
    if not kurtosis:
        section.shows("distribution", "uniform", "", "the weights are no safetensors file")
        return section
    median = float(np.median(kurtosis))
    section.says(
        "weights of convolutions are uniform (excess kurtosis -1.2; a bell has 0)",
        "uniform (drawn, layer not named)",
        f"median {median:+.2f} over {len(kurtosis)} convolutions; {nearer} are nearer to a "
        "uniform than to a normal distribution",
        nearer > len(kurtosis) / 2,
        "by the largest distance of the distribution functions",
    )
    return section


def softmax(labs: dict[str, Lab]) -> Section:
    """Fig. 3: the outputs of softmax, and what even and logarithmic codes make of them."""
    import numpy as np

    lab = next(iter(labs.values()))
    section = Section(
        "Fig. 3", f"attention maps of {lab.model.name}, 256 calibration images, 8 bits"
    )
    logs, _ = lab.way("EfficientQuant, a range for each layer")
    even, _ = lab.model.quantized(lab.folder, attention="int8")
    log2 = {q.layer: q for q in logs.quantizers if "log2" in q.format}
    maps = [
        q
        for q in even.quantizers
        if q.layer in log2 and q.role in ("lhs", "input") and q.low >= 0.0
    ]
    for q in maps[:3]:
        counts = np.asarray(q.histogram, float)
        filled = np.flatnonzero(counts)
        slope = (
            float(
                np.polyfit(
                    np.log10((filled + 0.5) / len(counts) * q.histogram_limit),
                    np.log10(counts[filled]),
                    1,
                )[0]
            )
            if len(filled) > 2
            else 0.0
        )
        section.says(
            f"{q.layer}: few large values, many small ones",
            "power law (drawn)",
            f"slope {slope:+.2f} on log-log axes, largest {q.high:.3f}",
            slope < -1.0,
            "agree: steeper than -1",
        )
    a, b = (
        float(np.mean([v.sqnr_db for v in found if v.sqnr_db is not None]))
        for found in (log2.values(), maps)
    )
    section.says(
        "logarithmic codes suit them better than even ones",
        "claimed",
        f"mean SQNR {a:.1f} dB against {b:.1f} dB",
        a > b,
        f"{len(log2)} and {len(maps)} tensors; each tensor with its own range",
    )
    return section


def latency(_: dict[str, Lab]) -> Section:
    """Fig. 5."""
    section = Section("Fig. 5", "no GPU")
    for model, ours, other, hyq, ratio in printed("s3")["Fig. 5"]["rows"]:
        section.shows(
            str(model),
            f"{ours} ms; Q-HyViT {other}; HyQ {hyq}; {ratio}",
            "",
            "an RTX 3080 is needed: trtq bench ENGINE there",
        )
    section.says(
        "the method leaves integer arithmetic for an engine to speed up",
        "implied by 'accelerated'",
        "no: every tensor of it computes in float",
        False,
        "trtq quantize --method efficientquant records `simulated`; eq. 3 turns weights back "
        "into floats",
    )
    return section


def boards(name: str) -> Section:
    """Figs 6 and 7, memory."""
    section = Section(name, "no board")
    for row in printed("s3")[name]["rows"]:
        section.shows(
            str(row[0]),
            ", ".join(map(str, row[1:])),
            "",
            "needs the device: trtq fleet bench --devices nano,xavier gives load, latency and "
            "memory of every model",
        )
    if name == "Fig. 7":
        nano, xavier = (
            next(r[1] for r in printed("s3")[name]["rows"] if k in r[0]) for k in ("Nano", "Xavier")
        )
        section.says(
            "the Nano is 3 to 5 times slower than the Xavier",
            "text",
            f"its own averages make it {xavier / nano:.1f} times faster",
            False,
            "the two averages look swapped",
        )
    return section


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument(
        "--weights", default=None, help="folder of timm's weights, NAME.safetensors or NAME.pth"
    )
    parser.add_argument("--data", default=None, help="images to calibrate on")
    parser.add_argument("--eval", default=None, help="images to evaluate on, in folders by class")
    parser.add_argument("--class-index", default=None, help="JSON list of folder names")
    args = arguments(parser, tables=["Table 1", "Fig. 6"], images=16)
    if args.weights is not None and (args.data is None or args.eval is None):
        raise SystemExit(
            "--weights needs --data and --eval: accuracy is not measured on the images of "
            "calibration"
        )
    with tempfile.TemporaryDirectory() as name:
        labs = {label: Lab(model, Path(name) / label) for label, model in here(args)}
        if not labs:
            raise SystemExit(f"{args.weights} holds no weights of {', '.join(NAMES.values())}")
        work = {
            "Table 1": lambda: accuracy(labs, args.weights is not None),
            "Fig. 2": lambda: weights_of(labs),
            "Fig. 3": lambda: softmax(labs),
            "Fig. 5": lambda: latency(labs),
            "Fig. 6": lambda: boards("Fig. 6"),
            "Fig. 7": lambda: boards("Fig. 7"),
            "Section 3.3, memory": lambda: boards("Section 3.3, memory"),
        }
        redo("s3", "S3: EfficientQuant for hybrids of CNN and transformer", work, args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
