"""A package is whole or says what is not; what it may replace, and what it is made from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import trtq
from tests.conftest import read, run_cli
from trtq.artifact import sha256_file
from trtq.engine.manifest import read_engine
from trtq.errors import ArtifactError, EngineError, UsageError
from trtq.export.onnx_file import set_metadata_
from trtq.package import read as reader
from trtq.package.check import check_package
from trtq.package.read import read_contents


@pytest.fixture
def whole(engines, tmp_path):
    """A package for Triton."""
    record = trtq.package(engines.classifier, for_="triton", out=tmp_path / "out")
    assert record.summary.startswith("classifier for triton: ")
    return tmp_path / "out"


def test_the_record_has_every_file_and_the_manifest(whole, engines):
    record = read(whole / "package.json")
    assert record["verb"] == "package"
    assert record["manifest"]["engine_sha256"] == record["source_sha256"]
    assert record["source_sha256"] == sha256_file(engines.classifier)
    assert record["spec"]["for_"] == ["triton"]
    found = {
        p.relative_to(whole).as_posix(): sha256_file(p) for p in whole.rglob("*") if p.is_file()
    }
    assert {n: f["sha256"] for n, f in record["files"].items()} == {
        n: d for n, d in found.items() if n not in ("package.json", ".trtq.lock")
    }
    (consumer,) = record["consumers"]
    assert {"README.md", *consumer["files"]} == set(record["files"])
    text = (whole / "README.md").read_text()
    for part in (
        "- Inputs: `input float32 [batch, 3, 32, 32]`",
        "- Batch: 1 to 4, usual 2",
        "- Task: classification",
        "tritonserver --model-repository=$PWD/triton",
        "compute capability 8.6",
    ):
        assert part in text


def test_a_whole_package(whole):
    assert check_package(whole).whole
    done = run_cli("package", "--check", str(whole))
    assert (done.returncode, done.stdout.strip().endswith("; whole")) == (0, True)


def test_altered_missing_and_extra_files_are_named(whole):
    (whole / "triton/classifier/labels.txt").write_text("other\n")
    (whole / "triton/classifier/config.pbtxt").unlink()
    (whole / "triton/more").mkdir()
    (whole / "triton/more/file").write_text("")
    done = run_cli("package", "--check", str(whole))
    assert done.returncode == 1
    assert done.stdout.splitlines()[:-1] == [
        "altered: triton/classifier/labels.txt",
        "missing: triton/classifier/config.pbtxt",
        "extra: triton/more/file",
    ]
    assert done.stdout.splitlines()[-1].endswith("3 files are not as recorded")
    done = run_cli("package", "--check", str(whole), "--json")
    assert (done.returncode, json.loads(done.stdout)["whole"]) == (1, False)


def test_one_altered_file_is_named(whole):
    (whole / "README.md").write_text("other\n")
    done = run_cli("package", "--check", str(whole))
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "altered: README.md")
    assert done.stdout.strip().endswith("; 1 file is not as recorded")


def test_what_can_be_checked(whole, tmp_path):
    with pytest.raises(ArtifactError, match="Cannot check .*gone: there is no such folder"):
        check_package(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"package.json: it is not a folder"):
        check_package(whole / "package.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ArtifactError, match="Cannot check .*empty: it has no package.json. Give the"
    ):
        check_package(tmp_path / "empty")
    record = read(whole / "package.json")
    record["files"]["../../etc/passwd"] = {"sha256": "0", "bytes": 1}
    (whole / "package.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"Cannot use .*: it names '\.\./\.\./etc/passwd'"):
        check_package(whole)
    (whole / "package.json").write_text("{")
    with pytest.raises(ArtifactError, match="it is not whole JSON"):
        check_package(whole)
    done = run_cli("package", "--check", str(whole), "--name", "a")
    assert "trtq package --check takes nothing else: name is given, too" in done.stderr


def test_a_package_replaces_one_that_nobody_changed(whole, engines):
    trtq.package(engines.text, for_="triton", out=whole)
    assert not (whole / "triton/classifier").exists()
    assert (whole / "triton/text/config.pbtxt").is_file()
    assert check_package(whole).whole
    (whole / "triton/text/config.pbtxt").write_text("edited")
    (whole / "mine.txt").write_text("")
    with pytest.raises(
        ArtifactError,
        match="Cannot package into .*: it has a package and files that were changed or added "
        r"since: triton/text/config.pbtxt, mine.txt. Choose another out",
    ):
        trtq.package(engines.text, for_="triton", out=whole)
    assert (whole / "triton/text/config.pbtxt").read_text() == "edited"


def test_a_folder_with_other_files_stays(engines, tmp_path):
    (tmp_path / "own").write_text("")
    with pytest.raises(
        ArtifactError, match="Cannot package into .*: it has files, and no package.json"
    ):
        trtq.package(engines.text, for_="triton", out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_engines_need_their_manifest(engines, tmp_path):
    alone = shutil.copy(engines.classifier, tmp_path / "alone.engine")
    with pytest.raises(EngineError, match=r"alone.engine has no manifest: expected alone.eng"):
        read_contents(alone)
    shutil.copy(f"{engines.text}.json", tmp_path / "alone.engine.json")
    with pytest.raises(EngineError, match="The manifest alone.engine.json belongs to another eng"):
        read_contents(alone)
    manifest = read(engines.text.with_name("text.engine.json"))
    manifest["spec"]["strip_weights"] = True
    (tmp_path / "thin.engine.json").write_text(json.dumps(manifest))
    thin = shutil.copy(engines.text, tmp_path / "thin.engine")
    with pytest.raises(EngineError, match="Cannot package thin.engine: it has no weights"):
        read_contents(thin)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match=r"Cannot package .*a.txt: it is neither an .onnx file"):
        read_contents(tmp_path / "a.txt")


def test_consumers_are_named(files, tmp_path):
    out = ("--out", str(tmp_path / "o"))
    done = run_cli("package", str(files.yolo), "--for", "tritn", *out)
    assert "Cannot use --for tritn: known are triton" in done.stderr
    assert "Did you mean triton?" in done.stderr
    assert "trtq package needs --for" in run_cli("package", str(files.yolo), *out).stderr
    with pytest.raises(
        UsageError,
        match="trtq package needs --for: triton takes an engine of TensorRT or an ONNX file; deeps",
    ):
        trtq.package(files.yolo, for_=(), out=tmp_path / "o")
    with pytest.raises(UsageError, match="Cannot use other arguments beside a PackageSpec"):
        trtq.package(
            trtq.PackageSpec(file=str(files.yolo), for_=("triton",), out="o"), name="other"
        )
    done = run_cli("package", str(files.yolo), "--for", "triton", "--embed", *out)
    assert "--embed has no effect: it is for onnxruntime, which is not asked for" in done.stderr
    assert not (tmp_path / "o").exists()


def test_contents_of_an_engine_and_of_its_file_agree(engines, files):
    for name in ("classifier", "segmenter", "yolo", "text"):
        engine, file = (read_contents(getattr(g, name)) for g in (engines, files))
        for field in ("preprocess", "task_label", "classes", "pairs"):
            assert getattr(engine, field) == getattr(file, field), (name, field)
        assert [(t.name, t.dtype, t.dims) for t in (*engine.inputs, *engine.outputs)] == [
            (t.name, t.dtype, t.dims) for t in (*file.inputs, *file.outputs)
        ]


def test_what_the_file_says_and_does_not_fit_is_said(files, tmp_path):
    model = onnx.load(files.yolo)
    wrong = {"input_size": [3, 32, 32], "mean": [0], "std": [1], "resize": None, "crop": None}
    set_metadata_(model, {"preprocess": wrong, "task": "segmentation"})
    onnx.save(model, tmp_path / "wrong.onnx")
    contents = read_contents(tmp_path / "wrong.onnx")
    assert (contents.preprocess, contents.task) == (None, None)
    assert [n.partition(":")[0] for n in contents.notes] == [
        "the stored preprocessing is left out",
        "the task segmentation of the file is left out",
    ]
    set_metadata_(model, {"preprocess": {"size": 3}, "task": "file.py:task"})
    onnx.save(model, tmp_path / "wrong.onnx")
    contents = read_contents(tmp_path / "wrong.onnx")
    assert contents.task_label == "detection:yolo"  # its maker says that it detects
    assert contents.notes[0].startswith("the stored preprocessing cannot be read and is left out")


def test_inspect_explains_a_package(whole):
    shown = trtq.inspect(whole)
    assert (shown["kind"], shown["package"]["kind"]) == ("package", "package record")
    assert shown["package"]["task"] == "classification"
    assert [shown[k] for k in ("altered", "missing", "extra")] == [[], [], []]
    (whole / "README.md").write_text("")
    done = run_cli("inspect", str(whole))
    assert done.returncode == 0
    assert "kind: package\n" in done.stdout
    assert "altered: ['README.md']" in done.stdout
    assert (
        "summary: classifier for triton: " in run_cli("inspect", str(whole / "package.json")).stdout
    )


def test_packages_of_engines_in_memory(rtx, tmp_path):
    manifest, plan = read_engine(rtx.classifier)
    engine = trtq.Engine(plan=plan, manifest=manifest)
    record = trtq.package(engine, for_=["python", "cpp"], out=tmp_path / "o", name="a")
    assert record.summary.startswith("a for python, cpp: ")
    assert (tmp_path / "o/python/model.engine").read_bytes() == plan


def test_tensors_in_files_of_their_own_come_along(files, tmp_path, monkeypatch):
    file = tmp_path / "m.onnx"
    outside = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(onnx.load(files.segmenter), file, **outside)
    trtq.package(file, for_="triton", out=tmp_path / "o")
    whole = onnx.load(tmp_path / "o/triton/m/1/model.onnx", load_external_data=False)
    for got, wanted in zip(
        whole.graph.initializer, onnx.load(files.segmenter).graph.initializer, strict=True
    ):
        np.testing.assert_array_equal(numpy_helper.to_array(got), numpy_helper.to_array(wanted))
    monkeypatch.setattr(reader, "LARGEST_PROTOBUF", 10)
    with pytest.raises(
        UsageError, match=r"Cannot package m.onnx: its tensors have .* ends at 2 GB"
    ):
        trtq.package(file, for_="triton", out=tmp_path / "o")


def test_what_a_killed_run_left_goes(whole, engines):
    left = whole / ".trtq-new/triton/part"
    left.parent.mkdir(parents=True)
    left.write_text("part")
    assert check_package(whole).whole
    trtq.package(engines.classifier, for_="triton", out=whole)
    assert not left.parent.parent.exists()


def test_a_link_to_a_folder_is_a_file_that_is_not_of_the_package(whole, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (whole / "triton/extra").symlink_to(tmp_path / "elsewhere")
    assert check_package(whole).extra == ["triton/extra"]
