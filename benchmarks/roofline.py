"""The roofline against latencies the papers print: how far each row is off.

Usage: python benchmarks/roofline.py --out benchmarks/results/roofline.md

The rows are S4's Tables 4.2, 4.5, 4.6 and 4.9 (T4, batch 1) and the averages of S3's Figure 7 with
the two values its text names (RTX 3080).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from smoke import arguments, few

MOBILEVITS = [
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    *(f"mobilevitv2_{w}" for w in ("050", "075", "100", "125", "150", "175", "200")),
]
HUNDRED = {"model_arg": {"num_classes": 100}}
CITY = {"model_arg": {"num_classes": 19}, "input_size": "3x1024x2048"}
# where it is printed, device, models whose mean is meant, their settings, precision, published ms
ROWS: list[tuple[str, str, list[str], dict[str, object], str, float]] = [
    ("S4 4.2 ResNet-50 FP32", "t4", ["torchvision:resnet50"], HUNDRED, "fp32", 12.57),
    ("S4 4.5 ResNet-50 FP16", "t4", ["torchvision:resnet50"], HUNDRED, "fp16", 6.56),
    ("S4 4.5 ResNet-50 PTQ INT8", "t4", ["torchvision:resnet50"], HUNDRED, "w8a8", 4.46),
    ("S4 4.5 ResNet-50 QAT INT8", "t4", ["torchvision:resnet50"], HUNDRED, "w8a8", 4.64),
    ("S4 4.2 MobileNetV2 FP32", "t4", ["torchvision:mobilenet_v2"], HUNDRED, "fp32", 6.21),
    ("S4 4.5 MobileNetV2 FP16", "t4", ["torchvision:mobilenet_v2"], HUNDRED, "fp16", 2.51),
    ("S4 4.5 MobileNetV2 PTQ INT8", "t4", ["torchvision:mobilenet_v2"], HUNDRED, "w8a8", 1.31),
    ("S4 4.5 MobileNetV2 QAT INT8", "t4", ["torchvision:mobilenet_v2"], HUNDRED, "w8a8", 2.03),
    ("S4 4.6 FCN-ResNet18 FP32", "t4", ["trtq:fcn_resnet18"], CITY, "fp32", 18.99),
    ("S4 4.9 FCN-ResNet18 FP16", "t4", ["trtq:fcn_resnet18"], CITY, "fp16", 11.17),
    ("S4 4.9 FCN-ResNet18 PTQ INT8", "t4", ["trtq:fcn_resnet18"], CITY, "w8a8", 8.08),
    ("S4 4.9 FCN-ResNet18 QAT INT8", "t4", ["trtq:fcn_resnet18"], CITY, "w8a8", 9.40),
    ("S3 MobileViT-S", "rtx3080", ["timm:mobilevit_s"], {}, "fp32", 1.13),
    ("S3 MobileViTv2-175", "rtx3080", ["timm:mobilevitv2_175"], {}, "fp32", 2.36),
    ("S3 Fig. 7 average", "rtx3080", [f"timm:{m}" for m in MOBILEVITS], {}, "fp32", 1.51),
    ("S3 Fig. 7 average", "xavier", [f"timm:{m}" for m in MOBILEVITS], {}, "fp32", 17.8),
    ("S3 Fig. 7 average", "nano", [f"timm:{m}" for m in MOBILEVITS], {}, "fp32", 40.7),
]
ABOUT = """\
Every row is a prediction of `trtq cost --device`, batch 1; "published" is what the paper prints. \
Peaks and bandwidth are from data
sheets (trtq/platform/devices.toml). Fitted, to these rows: two numbers a class of devices. That \
leaves 12 rows for 2 numbers on the T4, 3 for
2 on the RTX 3080, and 2 for 2 on the Jetsons, where the fit proves nothing but that the figures \
are within reach.

S3 does not name the precision of its engines; its formats (codes of weights alone, log2 of the \
softmax) have no integer kernels, so they
are predicted in FP32, TensorRT's default. Its text gives 40.7 ms for the AGX Xavier and 17.8 for \
the Nano and says in the same paragraph
that the Nano is 3 to 5 times slower: the two figures are taken as swapped.
"""
WORST = """\
## The worst rows

- **FCN-ResNet18 FP32**: 77 G MACs at 1024x2048 are 154 G operations; 18.99 ms is 8.1 TFLOPS, 100 \
% of the T4's FP32 peak at boost clock, which no
  kernel reaches under its 70 W limit. At 512x1024, the size the thesis trained at, it would be \
25 %: the printed size and the printed latency
  do not belong together.
- **MobileNetV2 INT8**: 1.31 ms for 54 kernels is 24 us a kernel, while the same table gives 115 \
us in FP32 and ResNet-50 gives 78 us in INT8.
  One launch time cannot meet all three; TensorRT also fuses the inverted residuals further than \
one kernel a convolution. PTQ and QAT
  run the same kernels and are printed 1.55 times apart.
- **MobileNetV2 FP16** lies between the two.
"""


def main() -> None:
    from trtq import CostSpec, cost

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    args = arguments(parser)
    lines = [
        "| published in | device | precision | published ms | predicted ms | off |",
        "|---|---|---|---|---|---|",
    ]
    errors = []
    for label, device, models, own, bits, published in few(ROWS, ROWS[:1]):
        found = [
            cost(CostSpec.make({**own, "model": m, "bits": bits, "device": device})).latency
            for m in models
        ]
        predicted = statistics.fmean(r.ms for r in found if r is not None)
        errors.append(predicted / published - 1)
        lines.append(
            f"| {label} | {device} | {bits} | {published:.2f} | {predicted:.2f} | "
            f"{errors[-1]:+.0%} |"
        )
        print(lines[-1], flush=True)
    median = statistics.median(abs(e) for e in errors)
    said = f"Median of the {len(errors)} absolute errors: {median:.0%}."
    print(said)
    if args.out:
        args.out.write_text(
            f"# Roofline against published latencies\n\n{ABOUT}\n"
            + "\n".join(lines)
            + f"\n\n{said}\n\n{WORST}"
        )


if __name__ == "__main__":
    main()
