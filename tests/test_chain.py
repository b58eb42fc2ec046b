"""Evaluate, build, bench, run, inspect and the report, on what quantize wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import read, run_cli
from trtq import BenchSpec, BuildSpec, EvaluateSpec, bench, build, evaluate, inspect
from trtq.data.source import open_source
from trtq.engine.manifest import read_manifest
from trtq.errors import (
    ArtifactError,
    DataError,
    EngineError,
    ExportError,
    MissingExtraError,
    UsageError,
)
from trtq.export.fp16 import convert_to_half
from trtq.export.onnx_file import quantized_nodes
from trtq.export.ort import input_shape, open_session, run_batch
from trtq.platform.catalogue import catalogue
from trtq.platform.target import Target
from trtq.testing.images import write_classes, write_images

pytest_rtx = pytest.mark.skipif(
    __import__("importlib").util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed",
)


# ---- evaluate ----------------------------------------------------------------------------------


def test_evaluate_reads_preprocessing_from_the_file(cnn_out, images):
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            reference=f"{cnn_out}/model.fp32.onnx",
            data=str(images),
        )
    )
    assert record.images == 32
    assert 0 <= record.top1 <= record.top5 <= 100
    assert record.agreement > 90
    assert record.sqnr_db > 20
    assert record.preprocess.input_size == (3, 32, 32)
    assert record.calibration_images == 24
    assert "24 of these images were used for calibration" in record.notes[0]


def test_evaluate_leaves_calibration_images_out_and_limits(cnn_out, images):
    held_out = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx", data=str(images), exclude=f"{cnn_out}/quantize.json"
        )
    )
    assert held_out.images == 8
    assert held_out.calibration_images == 0
    assert (
        evaluate(EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=str(images), limit=5)).images
        == 5
    )


def test_evaluate_says_that_a_file_gives_infinity(cnn_out, images, tmp_path):
    model = onnx.load(cnn_out / "model.fp32.onnx")
    first = next(i for i in model.graph.initializer if len(i.dims) == 4)
    first.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(first) * np.float32(1e38), first.name)
    )
    onnx.save(model, tmp_path / "m.onnx")
    record = evaluate(
        EvaluateSpec(
            onnx=f"{tmp_path}/m.onnx", reference=f"{cnn_out}/model.fp32.onnx", data=str(images)
        )
    )
    assert not record.finite and "NaN or infinite" in record.summary


def test_evaluate_refuses_to_leave_out_what_a_record_does_not_name(cnn_out, images, tmp_path):
    (tmp_path / "finetune.json").write_text('{"verb": "finetune", "data": {}}')
    with pytest.raises(
        UsageError,
        match=r"Cannot leave out the images of .*: it does not say which images calibration "
        r"looked at",
    ):
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(images),
                exclude=f"{tmp_path}/finetune.json",
            )
        )


def test_evaluate_a_file_against_itself_and_without_labels(cnn_out, tmp_path):
    flat = write_images(tmp_path / "flat", 3)
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.fp32.onnx",
            reference=f"{cnn_out}/model.fp32.onnx",
            data=str(flat),
        )
    )
    assert record.agreement == 100.0
    assert record.sqnr_db is None
    assert record.top1 is None


def test_evaluate_errors(cnn_out, images, tmp_path):
    with pytest.raises(ExportError, match="it is not an ONNX file"):
        (tmp_path / "x.onnx").write_bytes(b"garbage!" * 10)
        evaluate(EvaluateSpec(onnx=f"{tmp_path}/x.onnx", data=str(images)))
    with pytest.raises(
        ExportError, match=r"cannot run the model on input \[8, 3, 16, 16\].*--input-size"
    ):
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(images),
                input_size=(3, 16, 16),
                batch_size=8,
            )
        )
    wide = write_classes(tmp_path / "wide", 6, 1)
    with pytest.raises(DataError, match="the highest class index is 5, the model has 4 classes"):
        evaluate(EvaluateSpec(onnx=f"{cnn_out}/model.qdq.onnx", data=str(wide)))


# ---- build -------------------------------------------------------------------------------------


@pytest_rtx
@pytest.mark.parametrize("target", ["rtx3080", "rtx4090", "sm120"])
def test_build_int8(cnn_out, tmp_path, target):
    engine = tmp_path / "m.engine"
    manifest = build(
        BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", target=target, out=str(engine), batch=(1, 2, 4))
    )
    assert engine.stat().st_size == manifest.engine_bytes
    assert manifest.audit.convolutions == {"int8": 4}
    assert manifest.quantized_convolutions == 4
    assert manifest.batch == (1, 2, 4)
    assert manifest.tensors[0].name == "input"
    assert msgspec.to_builtins(read_manifest(engine)) == msgspec.json.decode(
        msgspec.json.encode(manifest)
    ) | {"batch": (1, 2, 4)}
    assert "quantized layers in INT8" in inspect(engine)["summary"]


@pytest_rtx
def test_build_half_for_turing_and_mixed_with_int8(cnn_out, tmp_path):
    turing = build(
        BuildSpec(
            onnx=f"{cnn_out}/model.fp32.onnx",
            target="t4",
            precision="fp16",
            out=f"{tmp_path}/t4.engine",
        )
    )
    assert turing.audit.convolutions == {"half": 4}
    mixed = build(
        BuildSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            target="sm86",
            precision="fp16",
            out=f"{tmp_path}/m.engine",
        )
    )
    assert mixed.audit.convolutions == {"int8": 4}


@pytest_rtx
def test_nothing_silent_on_turing(cnn_out, tmp_path):
    out = f"{tmp_path}/e.engine"
    with pytest.raises(
        EngineError,
        match=r"Refusing to build a Q/DQ model for Tesla T4.*computed in float without a word",
    ):
        build(BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", target="t4", precision="fp16", out=out))
    with pytest.raises(
        EngineError,
        match=r"no FP32 matrix product for compute capability 7.5.*head/MatMul.*--precision fp16",
    ):
        build(BuildSpec(onnx=f"{cnn_out}/model.fp32.onnx", target="sm75", out=out))
    assert not os.listdir(tmp_path)


def test_full_tensorrt_builds_for_its_own_gpu_only(cnn_out, tmp_path, monkeypatch):
    import torch

    from trtq.engine import select_builder as choose

    monkeypatch.setattr(choose, "is_installed", lambda module: True)
    asked = BuildSpec(
        onnx=f"{cnn_out}/model.qdq.onnx",
        target="h200",
        backend="tensorrt",
        out=f"{tmp_path}/e.engine",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        EngineError, match="full TensorRT builds on the GPU it builds for, and there is none"
    ):
        build(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(
        EngineError,
        match=r"GPU is not H200: .*compute capability 8.6; the target has 9.0. .*--target sm86",
    ):
        build(asked)


def test_targets_that_cannot_be(cnn_out, tmp_path):
    qdq, out = f"{cnn_out}/model.qdq.onnx", f"{tmp_path}/e.engine"
    with pytest.raises(
        EngineError, match=r"Jetson Nano: compute capability 5.3 has no INT8 arithmetic"
    ):
        build(BuildSpec(onnx=qdq, target="nano", out=out))
    with pytest.raises(
        EngineError,
        match=r"TensorRT-RTX does not build for Jetson AGX Orin \(sm87\): it covers sm75",
    ):
        build(BuildSpec(onnx=qdq, target="orin", backend="tensorrt-rtx", out=out))
    with pytest.raises(MissingExtraError, match="needs full TensorRT, which is not installed here"):
        build(BuildSpec(onnx=qdq, target="h200", out=out))
    with pytest.raises(UsageError, match="Unknown target 'sm99'"):
        build(BuildSpec(onnx=qdq, target="sm99", out=out))
    with pytest.raises(UsageError, match="expected 1 <= MIN <= OPT <= MAX"):
        build(BuildSpec(onnx=qdq, target="sm86", out=out, batch=(4, 2, 1)))
    assert {Target.parse(n).sm for n in catalogue().targets} >= {53, 75, 86, 120}


@pytest_rtx
def test_parser_errors_reach_the_user_with_the_node(cnn_out, tmp_path):
    model = onnx.load(cnn_out / "model.fp32.onnx")
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "Mystery", "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        EngineError, match=rf"L02, {node.name}: no TensorRT reads Mystery of the domain nowhere"
    ):
        build(BuildSpec(onnx=f"{tmp_path}/m.onnx", target="sm86", out=f"{tmp_path}/e.engine"))
    assert not (tmp_path / "e.engine").exists()


@pytest_rtx
def test_an_engine_with_another_manifest(cnn_out, tmp_path):
    for name, source in (("a", "qdq"), ("b", "fp32")):
        build(
            BuildSpec(
                onnx=f"{cnn_out}/model.{source}.onnx",
                target="sm86",
                out=f"{tmp_path}/{name}.engine",
            )
        )
    shutil.copy(tmp_path / "b.engine.json", tmp_path / "a.engine.json")
    with pytest.raises(EngineError, match="The manifest a.engine.json belongs to another engine"):
        inspect(tmp_path / "a.engine")
    (tmp_path / "a.engine.json").unlink()
    with pytest.raises(EngineError, match="has no manifest"):
        inspect(tmp_path / "a.engine")
    with pytest.raises(
        UsageError, match=r"Cannot run the engine b.engine here: it needs its NVIDIA GPU"
    ):
        bench(BenchSpec(file=(f"{tmp_path}/b.engine",)))


def test_half_keeps_what_the_model_says(cnn_out):
    import numpy as np

    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    for name, floor in (("fp32", 50.0), ("qdq", 30.0)):
        model = onnx.load(cnn_out / f"model.{name}.onnx")
        half = convert_to_half(model)
        onnx.checker.check_model(half, full_check=True)
        full, other = (run_batch(open_session(m), x)[0] for m in (model, half))
        assert 10 * np.log10((full**2).sum() / ((full - other) ** 2).sum()) > floor
    assert (
        len(quantized_nodes(half, "Conv")) == 4
    )  # through the cast between the pair and its convolution
    big = onnx.load(cnn_out / "model.fp32.onnx")
    tensor = next(i for i in big.graph.initializer if i.name == "conv1.weight")
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor) * np.float32(1e8), tensor.name
        )
    )
    with pytest.raises(ExportError, match="conv1.weight does not fit FP16"):
        convert_to_half(big)


def test_a_session_reports_its_shape(cnn_out):
    assert input_shape(open_session(cnn_out / "model.qdq.onnx"))[1:] == [3, 32, 32]


# ---- run ---------------------------------------------------------------------------------------


def write_recipe(folder, images, **changes):
    text = f"""
out = "{folder}/out"
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{images}"
input_size = "3x32x32"
preset = "imagenet"
calib_images = {changes.get("calib_images", 16)}
calib_cache = "{folder}/cache"
[evaluate]
[[build]]
target = "rtx3080"
[[build]]
target = "rtx3080"
source = "fp32"
[bench]
duration = 0.1
max_duration = 1.0
verdict = false
"""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest_rtx
def test_run_skips_what_has_not_changed_and_redoes_what_has(images, tmp_path):
    recipe, out = write_recipe(tmp_path, images), tmp_path / "out"
    dry = run_cli("run", str(recipe), "--dry-run")
    assert "quantize: would run (it has not finished before)" in dry.stdout
    assert not out.exists()
    first = run_cli("run", str(recipe))
    assert first.returncode in (0, 3), first.stderr  # 3: the machine was busy while it measured
    assert "Report: " in first.stdout
    page = (out / "report.html").read_text()
    for tag in ("<script src", "<link", "<img", "@import", "url(http"):
        assert tag not in page  # nothing is fetched
    for text in ("CPU latency", "says nothing about a GPU", "4 of 4 convolutions", "Repeat it"):
        assert text in page
    second = run_cli("run", str(recipe))
    assert second.stdout.count("skipped (nothing it depends on has changed)") == 7
    dry = run_cli("run", str(recipe), "--dry-run").stdout
    assert "would run" not in dry
    (out / "evaluate.json").write_text("{}")
    (out / "rtx3080-int8.engine").unlink()
    third = run_cli("run", str(recipe)).stdout
    assert "evaluate: ran (evaluate.json was altered)" in third
    assert "build rtx3080-int8: ran (rtx3080-int8.engine is missing)" in third
    assert "quantize: skipped" in third
    write_recipe(tmp_path, images, calib_images=17)
    assert (
        "quantize: would run (settings changed)" in run_cli("run", str(recipe), "--dry-run").stdout
    )


@pytest_rtx
@pytest.mark.slow
def test_a_run_killed_in_each_stage_goes_on(images, tmp_path):
    recipe = write_recipe(tmp_path, images)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-m", "trtq", "run", str(recipe)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(6)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
    done = run_cli("run", str(recipe))
    assert done.returncode in (0, 3), done.stderr
    assert read(tmp_path / "out/evaluate.json")["images"] == 16


@pytest_rtx
@pytest.mark.slow
def test_the_same_recipe_twice_at_once(images, tmp_path):
    recipe = write_recipe(tmp_path, images)
    args = [sys.executable, "-m", "trtq", "run", str(recipe)]
    both = [
        subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [p.communicate() for p in both]
    assert {p.returncode for p in both} <= {0, 3}, texts
    assert sum(out.count(": ran (") for out, _ in texts) == 7


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_every_artefact(cnn_out, images, tmp_path):
    assert inspect(cnn_out / "model.qdq.onnx")["quantized_layers"] == "5 of 5"
    assert inspect(cnn_out / "model.fp32.onnx")["kind"] == "ONNX"
    assert inspect(cnn_out / "encodings.safetensors")["quantizers"] >= 11
    assert inspect(cnn_out / "quantize.json")["kind"] == "quantize record"
    assert (
        inspect(next((cnn_out / "cache").glob("*.safetensors")))["kind"]
        == "calibration cache entry"
    )
    assert inspect(cnn_out)["altered_or_missing"] == []
    assert inspect(write_recipe(tmp_path, images))["recipe"]["quantize"]["calib_images"] == 16
    assert run_cli("inspect", str(cnn_out / "quantize.json")).stdout.startswith(
        "kind: quantize record"
    )
    odd = tmp_path / "odd.json"
    for text in (
        '{"verb": "bench", "rows": [{"a": {"b": [{"c": 1}]}}, "x"]}',
        '{"verb": ["a"]}',
        '{"verb": "search", "tries": [{}]}',
    ):
        odd.write_text(text)
        assert run_cli("inspect", str(odd)).stdout.startswith("kind: ")
    code = (
        f"import sys; from trtq import inspect; inspect({str(odd)!r}); assert 'torch' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inspect_says_what_was_altered_and_what_it_cannot_read(cnn_out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cnn_out, copy)
    with (copy / "model.qdq.onnx").open("ab") as handle:
        handle.write(b"x")
    assert inspect(copy)["altered_or_missing"] == ["model.qdq.onnx"]
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(ArtifactError, match="trtq writes .onnx"):
        inspect(tmp_path / "x.bin")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="it holds no JSON object"):
        inspect(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('{"a": 1')
    with pytest.raises(ArtifactError, match="it is not whole JSON"):
        inspect(tmp_path / "y.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="nothing of trtq's"):
        inspect(tmp_path / "empty")


# ---- data --------------------------------------------------------------------------------------


def test_zip_sources(images, tmp_path):
    shutil.make_archive(str(tmp_path / "set"), "zip", images.parent, images.name)
    part = open_source(f"{tmp_path}/set.zip/{images.name}")
    with pytest.raises(DataError, match="holds one folder that holds folders.* Use .*/set.zip/"):
        open_source(f"{tmp_path}/set.zip")
    assert part.classes == ["class0", "class1", "class2", "class3"]
    assert len(part) == 32
    assert part.labels[0] == 0
    assert open_source(str(images)).digest([0, 5]) == part.digest([0, 5])
    with pytest.raises(DataError, match="There is no folder 'trian'"):
        open_source(f"{tmp_path}/set.zip/trian")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a whole zip file"):
        open_source(f"{tmp_path}/bad.zip")


def test_zip_made_on_a_mac_and_hidden_folders(tmp_path):
    import zipfile

    folder = write_classes(tmp_path / "set", 2, 1)
    (folder / ".cache").mkdir()
    shutil.copy(folder / "class0/000.png", folder / ".cache/000.png")
    assert open_source(str(folder)).classes == ["class0", "class1"]
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as z:
        for c in ("class0", "class1"):
            z.write(folder / c / "000.png", f"{c}/000.png")
            z.writestr(f"__MACOSX/{c}/._000.png", b"finder")
    assert open_source(f"{tmp_path}/mac.zip").classes == ["class0", "class1"]


def test_preprocessing_of_wide_inputs_and_of_16_bit_images(tmp_path):
    import numpy as np
    from PIL import Image

    from trtq.data.preprocess import resolve_preprocess

    wide, _ = resolve_preprocess(input_size=(3, 36, 48), preset="imagenet")
    assert wide.resize is None
    assert wide.apply(Image.new("RGB", (100, 50))).shape == (3, 36, 48)
    photo, _ = resolve_preprocess(input_size=(3, 224, 224), preset="imagenet")
    assert (photo.resize, photo.crop) == (256, None)
    gray, _ = resolve_preprocess(input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    deep = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert gray.apply(deep).mean() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="Cannot read images for 4 channels"):
        resolve_preprocess(input_size=(4, 8, 8))


def test_the_same_names_elsewhere_are_not_the_same_images(cnn_out, images, tmp_path):
    other = write_classes(tmp_path / "other", 4, 8, size=44)
    record = evaluate(
        EvaluateSpec(
            onnx=f"{cnn_out}/model.qdq.onnx", data=str(other), exclude=f"{cnn_out}/quantize.json"
        )
    )
    assert record.images == 32
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    assert (
        evaluate(
            EvaluateSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                data=str(moved),
                exclude=f"{cnn_out}/quantize.json",
            )
        ).images
        == 8
    )


def test_a_recipe_that_cannot_end_well_is_refused_before_it_starts(images, tmp_path):
    recipe = write_recipe(tmp_path, images, calib_images=32)
    assert "leaves no image to evaluate" in run_cli("run", str(recipe)).stderr
    recipe.write_text(
        recipe.read_text()
        .replace("calib_images = 32", "calib_images = 8")
        .replace('source = "fp32"', "")
    )
    assert "asks for 'build rtx3080-int8' twice" in run_cli("run", str(recipe)).stderr
    recipe.write_text(recipe.read_text().replace("rtx3080", "rtx3008"))
    assert "Unknown target 'rtx3008'" in run_cli("run", str(recipe)).stderr
    assert not (tmp_path / "out").exists()


def test_cifar10_binary(tmp_path):
    import numpy as np

    record = np.zeros(3073, dtype=np.uint8)
    record[0], record[1:1025] = 3, 255  # a red cat
    (tmp_path / "data_batch_1.bin").write_bytes(record.tobytes() * 2)
    source = open_source(f"cifar10:{tmp_path}")
    assert len(source) == 2
    assert source.labels == [3, 3]
    assert source.image(0).getpixel((5, 5)) == (255, 0, 0)
    (tmp_path / "data_batch_1.bin").write_bytes(record.tobytes()[:100])
    with pytest.raises(DataError, match="not a multiple of 3073"):
        open_source(f"cifar10:{tmp_path}")
    (tmp_path / "py").mkdir()
    (tmp_path / "py/data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match="pickle, which trtq does not read"):
        open_source(f"cifar10:{tmp_path}/py")


def test_mixed_folder_and_flat_folder_with_class_index(images, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(images, mixed)
    shutil.copy(images / "class0/000.png", mixed / "loose.png")
    with pytest.raises(DataError, match="mixes class folders with images outside of them"):
        open_source(str(mixed))
    flat = write_images(tmp_path / "flat", 2)
    assert open_source(str(flat)).labels is None
    with pytest.raises(DataError, match="has no class folders"):
        open_source(str(flat), tmp_path / "index.json")


@pytest.mark.data
def test_real_images(trtq_data):
    source = open_source(f"{trtq_data}/imagenet-sample.zip", trtq_data / "imagenet-wnids.json")
    assert len(source) == 500
    assert len(source.classes) == 1000
    assert source.image(0).mode == "RGB"
    assert min(source.image(0).size) == 256
    with pytest.raises(DataError, match="Choose one: .*cifar10.zip/test or .*cifar10.zip/train"):
        open_source(f"{trtq_data}/cifar10.zip")
