"""Several inputs, other dtypes and open axes, from the runners to the manifest."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

import trtq
from tests.support.onnx_files import bytes_image, open_sizes, text_encoder, two_images
from tests.support.packages import packaged
from trtq.bench.trtexec_bench import Fed
from trtq.bench.trtexec_bench import command as trtexec_bench
from trtq.bench.workload import LoadOptions, open_workload
from trtq.engine.open_engine import open_engine
from trtq.engine.random_inputs import random_feed
from trtq.engine.runner import EngineRunner, OnnxRunner
from trtq.engine.shapes import inputs_of
from trtq.engine.sizes import Request, choose_sizes
from trtq.engine.trtexec import spell_shapes
from trtq.engine.worker_process import is_installed
from trtq.errors import DataError, EngineError, UsageError
from trtq.export.feeds import InputSlot
from trtq.export.onnx_file import set_metadata_
from trtq.export.tables import table_sizes
from trtq.testing.trtexec import write_fake_trtexec

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="no TensorRT for RTX")
RNG = np.random.default_rng(0)


def image(count: int, size: int = 8) -> np.ndarray:
    return RNG.standard_normal((count, 3, size, size)).astype(np.float32)


# ---- runners -----------------------------------------------------------------------------------


def test_a_model_of_two_images_runs_by_name_in_parts_of_its_batch():
    left, right = image(5), image(5)
    whole = OnnxRunner(two_images()).run({"right": right, "left": left})
    assert {n: a.shape for n, a in whole.items()} == {
        "distance": (5, 4, 1, 1),
        "features": (5, 4, 6, 6),
    }
    parts = OnnxRunner(two_images(2)).run({"left": left, "right": right})
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    same = OnnxRunner(two_images()).run({"left": left, "right": left})
    assert np.abs(same["distance"]).max() == 0


def test_what_a_runner_is_not_given():
    runner = OnnxRunner(two_images())
    inputs = r"left float32 \[\?, 3, 8, 8\]; right float32 \[\?, 3, 8, 8\]"
    with pytest.raises(UsageError, match=rf"right is missing; its inputs are {inputs}. Give rig"):
        runner.run({"left": image(1)})
    with pytest.raises(
        UsageError, match=r"right is missing; it has no rihgt; .*Did you mean right"
    ):
        runner.run({"left": image(1), "rihgt": image(1)})
    with pytest.raises(
        UsageError,
        match=rf"on one array: it has 2 inputs: {inputs}. Give a mapping: "
        r"\{'left': ..., 'right': ...\}",
    ):
        runner.run(image(1))


def test_dtypes_are_those_of_the_model_and_lose_no_value():
    runner = OnnxRunner(text_encoder())
    ids, mask = np.array([[1, 2, 10]], np.int32), np.ones((1, 3), bool)
    wanted = runner.run({"ids": ids.astype(np.int64), "mask": mask.astype(np.int64)})["embedding"]
    np.testing.assert_array_equal(runner.run({"ids": ids, "mask": mask})["embedding"], wanted)
    with pytest.raises(
        UsageError,
        match="the input ids is int64, the array is float32 and would lose values. Give int64",
    ):
        runner.run({"ids": np.full((1, 3), 0.5, np.float32), "mask": mask})
    with pytest.raises(UsageError, match="the input image is uint8, the array is int64"):
        OnnxRunner(bytes_image()).run(np.full((1, 8, 8, 3), 256))
    with pytest.raises(UsageError, match="the input image is uint8, the array is str32"):
        OnnxRunner(bytes_image()).run(np.full((1, 8, 8, 3), "a"))


# ---- sizes -------------------------------------------------------------------------------------


def sizes(model, *texts: str, **more):
    return choose_sizes(inputs_of(model), Request(texts=texts, file="m.onnx", **more))


def test_one_shape_or_three_for_each_open_input():
    wide = "images=1x3x320x320:1x3x640x640:8x3x1280x1280"
    assert sizes(open_sizes(), wide).shapes == {
        "images": [[1, 3, 320, 320], [1, 3, 640, 640], [8, 3, 1280, 1280]]
    }
    fixed = sizes(open_sizes(), "images=2x3x64x48")
    assert fixed.shapes == {"images": [[2, 3, 64, 48]] * 3}
    assert fixed.batch == (2, 2, 2)
    both = sizes(text_encoder(), "ids=1x8:1x16:4x32,mask=1x8:1x16:4x32")
    assert both.shapes == {n: [[1, 8], [1, 16], [4, 32]] for n in ("ids", "mask")}
    assert sizes(two_images()).shapes == {
        n: [[b, 3, 8, 8] for b in (1, 8, 32)] for n in ("left", "right")
    }
    assert sizes(two_images(), batch=(1, 2, 4)).shapes["right"][2] == [4, 3, 8, 8]
    assert (sizes(bytes_image()).shapes, sizes(bytes_image()).batch) == ({}, (1, 1, 1))


def test_a_proposed_size_is_one_that_the_graph_holds_for():
    model = text_encoder()
    stored = {"inputs": [], "outputs": [], "ranges": {"length": {"least": 192, "most": 703}}}
    set_metadata_(model, {"signature": stored})
    with pytest.raises(UsageError, match=r"Add --shapes ids=1x192:8x703:32x703 --shapes mask="):
        sizes(model)


def test_a_batch_behind_the_first_axis_is_proposed_like_the_first():
    """A state has its samples on axis 1."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, length] x, float[2, batch, 4] state) => (float[batch, length] y) {
            y = Relu (x)
        }"""
    )
    with pytest.raises(UsageError) as caught:
        sizes(model)
    texts = ("x=1x16:8x64:32x128", "state=2x1x4:2x8x4:2x32x4")
    assert caught.value.hint == f"Add {' '.join(f'--shapes {t}' for t in texts)}, with your sizes"
    assert sizes(model, *texts).shapes["state"] == [[2, 1, 4], [2, 8, 4], [2, 32, 4]]


def test_axes_of_one_name_have_one_size():
    found = sizes(text_encoder(), "ids=1x8:1x16:4x32")
    assert found.shapes["mask"] == [[1, 8], [1, 16], [4, 32]]
    assert found.notes == [
        "mask takes 1x8:1x16:4x32: --shapes gives axes of the same names",
    ]
    with pytest.raises(
        UsageError,
        match="--shapes for ids and mask: length is 8:16:32 in ids and 8:16:64 in mask, and it is "
        "one size in m.onnx. Give both the same",
    ):
        sizes(text_encoder(), "ids=1x8:1x16:4x32", "mask=1x8:1x16:4x64")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            (),
            r"Cannot build m.onnx: axis 2 \(height\) of images, axis 3 \(width\) of images are "
            r"open, and TensorRT needs the smallest, the usual and the largest size. Add --shapes "
            r"images=1x3x320x320:8x3x640x640:32x3x1280x1280, with your sizes",
        ),
        (
            ("image=1x3x64x64",),
            r"m.onnx has no input image; it has images \[batch, 3, height, width\]. "
            "Did you mean images",
        ),
        (
            ("images=1x4x64x64",),
            "images=1x4x64x64: axis 1 of images is 3 in m.onnx, not 4. Give 3 there",
        ),
        (
            ("images=64x64",),
            r"it has 2 axes, images \[batch, 3, height, width\] of m.onnx has 4. Write it like "
            "--shapes images=1x3x320x320:8x3x640x640:32x3x1280x1280",
        ),
        (
            ("images=1x3x64x64:1x3x32x64:1x3x64x64",),
            "axis 2 of images is 64:32:64, expected 1 <= MIN <= OPT <= MAX. Write it like --shapes "
            "images=1x3x320x320:1x3x640x640:8x3x1280x1280",
        ),
        (("images=0x3x64x64",), "axis 0 of images is 0:0:0, expected 1 <= MIN"),
        (("images=1x3x64x64:1x3x64x64",), "Cannot read --shapes .*expected NAME=MIN:OPT:MAX"),
        (("images=1x3x64:1x3x64x64:1x3x64",), "Cannot read --shapes"),
        (("1x3x64x64",), "Cannot read --shapes 1x3x64x64: expected NAME=MIN:OPT:MAX"),
        (("images=1x3xAx64",), "Cannot read --shapes"),
        (("images=1x3x64x64,images=1x3x8x8",), "images is given twice. Give it once"),
    ],
)
def test_shapes_that_do_not_fit_are_named(texts, words):
    with pytest.raises(UsageError, match=words):
        sizes(open_sizes(), *texts)


def test_the_batch_is_the_short_form_of_the_first_axis():
    with pytest.raises(
        UsageError,
        match="Cannot use --batch 1:2:4: --shapes gives 1 for the first axis of images. Leave "
        "--batch out",
    ):
        sizes(open_sizes(), "images=1x3x64x64", batch=(1, 2, 4))
    with pytest.raises(UsageError, match="--batch 1:2:4: the model has a fixed batch of 1"):
        sizes(bytes_image(), batch=(1, 2, 4))
    with pytest.raises(UsageError, match="--batch 4:2:1: expected 1 <= MIN <= OPT <= MAX"):
        sizes(two_images(), batch=(4, 2, 1))


def test_inputs_that_no_profile_helps():
    model = two_images()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(EngineError, match="Cannot build with the input left: it has no shape"):
        inputs_of(model)
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(EngineError, match="the input left: it is a sequence, not a tensor"):
        inputs_of(model)
    del model.graph.input[:]
    with pytest.raises(EngineError, match="Cannot use m.onnx: it has no input"):
        sizes(model)


def test_one_shape_to_run_with():
    assert sizes(open_sizes(), "images=1x3x64x48", single=True).usual == {"images": [1, 3, 64, 48]}
    with pytest.raises(
        UsageError,
        match=r"Cannot run m.onnx: axis 1 \(length\) of ids, axis 1 \(length\) of mask are open, "
        "and a request needs a size. Add --shapes ids=2x64 --shapes mask=2x64, with your sizes",
    ):
        sizes(text_encoder(), batch=(2, 2, 2), single=True)
    with pytest.raises(UsageError, match="a request has one shape. Write it like --shapes im"):
        sizes(open_sizes(), "images=1x3x32x32:1x3x64x64:1x3x64x64", single=True)
    with pytest.raises(UsageError, match="Cannot run m.onnx with --batch 4: its batch is fixed at"):
        sizes(bytes_image(), batch=(4, 4, 4), single=True)
    built = sizes(text_encoder(), "ids=1x8:1x16:4x32").spans
    assert sizes(text_encoder(), batch=(4, 4, 4), single=True, built=built).usual == {
        "ids": [4, 16],
        "mask": [4, 16],
    }
    with pytest.raises(
        UsageError,
        match="Cannot run m.onnx with ids 1x64: axis 1 is 64, the engine was built for 8 to 32. "
        "Build it for that: trtq build ... --shapes ids=1x8:1x16:4x64",
    ):
        sizes(text_encoder(), "ids=1x64", single=True, built=built)


# ---- random inputs -----------------------------------------------------------------------------


def test_random_inputs_are_valid_for_each_dtype_and_table():
    model = text_encoder(vocabulary=11)
    assert table_sizes(model) == {"ids": 11}
    feed = random_feed(OnnxRunner(model).inputs, {"ids": [4, 64], "mask": [4, 64]}, {"ids": 11})
    assert (feed["ids"].min(), feed["ids"].max(), feed["ids"].dtype) == (0, 10, np.int64)
    assert (feed["mask"] == 1).all()
    OnnxRunner(model).run(feed)
    (pixels,) = random_feed(OnnxRunner(bytes_image()).inputs, {"image": [1, 8, 8, 3]}, {}).values()
    assert pixels.dtype == np.uint8
    assert pixels.max() > 200
    flag = [InputSlot("flag", "bool", (1,)), InputSlot("x", "float16", (4,))]
    drawn = random_feed(flag, {"flag": [1], "x": [4]}, {})
    assert (drawn["flag"].tolist(), drawn["x"].dtype) == ([True], np.float16)


# ---- engines -----------------------------------------------------------------------------------

TEXT = "ids=1x8:1x16:4x32"


@needs_rtx
def test_other_dtypes_and_open_axes_are_built_for_rtx():
    """The real builder, for a GPU that is not here."""
    build = partial(trtq.build, target="sm86", data="random", check_images=2)
    text = build(text_encoder(), shapes=TEXT).manifest
    assert [(t.name, t.dtype, t.shape) for t in text.tensors] == [
        ("ids", "INT64", [-1, -1]),
        ("mask", "INT64", [-1, -1]),
        ("embedding", "FLOAT", [-1, 5]),
    ]
    ids, mask = text.inputs
    assert (ids.axes, ids.least, ids.usual, ids.most, ids.table) == (
        ["batch", "length"],
        [1, 8],
        [1, 16],
        [4, 32],
        11,
    )
    assert (mask.spans, mask.table) == (ids.spans, None)
    assert "mask takes 1x8:1x16:4x32: --shapes gives axes of the same names" in text.notes
    assert "inputs were drawn at random" in text.agreement.missing
    picture = build(bytes_image()).manifest
    assert (picture.tensors[0].name, picture.tensors[0].dtype) == ("image", "UINT8")
    half = build(two_images(), precision="fp16", batch=(1, 1, 2)).manifest
    (compared,) = half.agreement.comparisons
    assert [o.name for o in compared.outputs] == ["distance", "features"]
    assert compared.passed


def test_the_signature_of_the_file_is_in_the_manifest(tensorrt):
    tensorrt("10.3.0")
    model = two_images()
    set_metadata_(model, {"signature": {"inputs": ["left", "right"]}})
    made = trtq.build(model, target="sm86", backend="tensorrt").manifest
    assert made.signature == {"inputs": ["left", "right"]}


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0"])
def test_an_engine_of_two_inputs_runs_like_its_file(version, tensorrt, monkeypatch, tmp_path):
    tensorrt(version)
    monkeypatch.setattr("trtq.engine.verify.EngineRunner", partial(EngineRunner, device="cpu"))
    model = two_images()
    model.opset_import[0].version = 13
    engine = trtq.build(
        model, target="sm86", backend="tensorrt", batch=(2, 2, 2), data="random", check_images=2
    )
    assert [c.runner for c in engine.manifest.agreement.comparisons] == ["engine"]
    feed = {"left": image(3), "right": image(3)}
    runner, wanted = engine.open(device="cpu"), OnnxRunner(model).run(feed)
    for name, answer in runner.run(feed).items():
        np.testing.assert_allclose(answer, wanted[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"Cannot run the engine in memory.*: right is missing"):
        runner.run({"left": image(2)})
    with pytest.raises(EngineError, match=r"does not take left \[2, 3, 9, 9\]: it is outside"):
        runner.run({"left": image(2, 9), "right": image(2, 9)})
    monkeypatch.setattr(
        "trtq.bench.workload.open_engine", lambda path, **_: open_engine(path, device="cpu")
    )
    path = engine.save(tmp_path / "e.engine")
    workload = open_workload(path, LoadOptions(batch=2))
    workload.call()
    assert workload.shapes == {"left": [2, 3, 8, 8], "right": [2, 3, 8, 8]}
    assert [a.shape for a in workload.answer()] == [(2, 4, 1, 1), (2, 4, 6, 6)]
    with pytest.raises(
        UsageError,
        match="Cannot run e.engine with left 4x3x8x8: axis 0 is 4, the engine was built for 2 to 2",
    ):
        open_workload(path, LoadOptions(batch=4))


def test_engines_of_open_axes_are_measured_at_their_usual_size(tensorrt, monkeypatch, tmp_path):
    tensorrt("10.3.0")
    engine = trtq.build(text_encoder(), target="sm86", backend="tensorrt", shapes=TEXT)
    path = engine.save(tmp_path / "e.engine")
    monkeypatch.setattr(
        "trtq.bench.workload.open_engine",
        lambda path, **_: open_engine(path, trust=True, device="cpu"),
    )
    usual = open_workload(path)
    usual.call()
    assert usual.shapes == {"ids": [1, 16], "mask": [1, 16]}
    assert usual.feed["ids"].max() < 11
    other = open_workload(path, LoadOptions(shapes=["ids=2x8"]))
    assert other.shapes == {"ids": [2, 8], "mask": [2, 8]}
    fed = Fed.of(other.feed, other.open_inputs).written(tmp_path)
    line = trtexec_bench("trtexec", (10, 3), path, fed=fed)
    assert "--shapes=ids:2x8,mask:2x8" in line
    assert f"--loadInputs=ids:{tmp_path}/input0.bin,mask:{tmp_path}/input1.bin" in line
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "input0.bin", np.int64).reshape(2, 8), other.feed["ids"]
    )
    (tmp_path / "e.engine.json").unlink()
    with pytest.raises(UsageError, match=r"axis 1 of ids, axis 1 of mask are open.*--shapes ids=1"):
        open_workload(path, LoadOptions(trust=True))
    given = ["ids=1x8", "mask=1x8"]
    assert open_workload(path, LoadOptions(trust=True, shapes=given)).shapes["mask"] == [1, 8]


@pytest.mark.parametrize(("version", "kind"), [("v8502", "INT32"), ("v100300", "INT64")])
def test_trtexec_is_told_the_shapes_of_every_input(version, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, version)))
    model = text_encoder()
    model.opset_import[0].version = 13
    axes = next(n for n in model.graph.node if n.op_type == "ReduceMean")
    del axes.input[1]
    axes.attribute.append(onnx.helper.make_attribute("axes", [1]))
    made = trtq.build(model, target="orin", backend="trtexec", shapes=TEXT).manifest
    line = made.builder.command
    assert "--minShapes=ids:1x8,mask:1x8 --optShapes=ids:1x16,mask:1x16" in line
    assert "--maxShapes=ids:4x32,mask:4x32" in line
    first = made.tensors[0]
    assert (first.name, first.dtype, first.numpy_dtype) == ("ids", kind, kind.lower())
    assert spell_shapes({"ids:0": [1, 8]}) == "'ids:0':1x8"


def test_images_do_not_fill_two_inputs(tensorrt, images):
    tensorrt("10.3.0")
    model = two_images()
    set_metadata_(model, {"preprocess": {"input_size": [3, 8, 8]}})
    with pytest.raises(
        UsageError,
        match=r"images fill one input, the model has left \[batch, 3, 8, 8\]; right .*or --data "
        "random",
    ):
        trtq.build(model, target="sm86", backend="tensorrt", data=str(images))


def array_files(folder, **shapes):
    """Three samples of integers in .npz files."""
    folder.mkdir()
    for k in range(3):
        values = {n: np.full(shape, k, np.int64) for n, shape in shapes.items()}
        np.savez(folder / f"{k}.npz", **values)
    return str(folder)


def test_an_engine_is_compared_with_its_file_on_arrays(tensorrt, monkeypatch, tmp_path):
    tensorrt("10.3.0")
    monkeypatch.setattr("trtq.engine.verify.EngineRunner", partial(EngineRunner, device="cpu"))
    data = array_files(tmp_path / "data", ids=(16,), mask=(16,))
    make = partial(trtq.build, text_encoder(), target="sm86", backend="tensorrt", shapes=TEXT)
    made = make(data=data, check_images=3).manifest
    assert made.agreement.images == 3
    assert "inputs were drawn at random" not in made.agreement.missing
    assert [c.runner for c in made.agreement.comparisons] == ["engine"]
    long = array_files(tmp_path / "long", ids=(64,), mask=(64,))
    with pytest.raises(
        DataError, match="on sample .*: axis 1 of ids is 64, the engine is built for 8 to 32"
    ):
        make(data=long)
    alone = array_files(tmp_path / "alone", ids=(16,))
    with pytest.raises(DataError, match="the input 'mask' is missing; it has ids"):
        make(data=alone)
    (tmp_path / "t.txt").write_text("one two\n")
    with pytest.raises(UsageError, match="need a tokenizer.*--tokenizer tokenizer.json"):
        make(data=str(tmp_path / "t.txt"))


# ---- a model of somebody else ------------------------------------------------------------------


@pytest.mark.slow
@needs_rtx
def test_a_text_detector_of_open_height_and_width(tmp_path):
    """PP-OCRv6's detector from PyPI: opset 11, three open axes."""
    path = packaged("rapidocr==3.10.0", "*_det_*.onnx", tmp_path)
    with pytest.raises(UsageError, match="are open, and TensorRT needs the smallest"):
        trtq.build(path, target="sm86")
    (entry,) = inputs_of(onnx.load(path))
    shapes = f"{entry.name}=1x3x320x320:1x3x640x640:1x3x960x960"
    made = trtq.build(path, target="sm86", precision="fp16", shapes=shapes).manifest
    assert (made.inputs[0].usual, made.tensors[0].shape[1:]) == ([1, 3, 640, 640], [3, -1, -1])
    row = trtq.bench(path, shapes=f"{entry.name}=1x3x320x320", duration=0.1, min_samples=10).rows[0]
    assert row.input_shape == [1, 3, 320, 320]
