"""Analysing, searching and training from Python: the same flows as the commands, on objects."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import trtq
from tests.support.small_net import FACTORY, Net
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import ArtifactError, DataError, UsageError
from trtq.flow.finetune import Finetuned
from trtq.flow.search import Searched
from trtq.specs import (
    AnalyzeOptions,
    AnalyzeSpec,
    FinetuneOptions,
    FinetuneSpec,
    QuantizeSpec,
    SearchOptions,
    SearchSpec,
)
from trtq.testing.images import write_classes

ANALYSED = {"metric": "l2", "images": 8, "calib_images": 16, "batch_size": 4}


@pytest.fixture(scope="module")
def quantized(net, images, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return trtq.quantize(net, list(images), bits="w4a8", calib_cache=cache)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def captures(monkeypatch) -> list[str]:
    """Every call that captures a model."""
    calls: list[str] = []
    for place, name in (
        ("trtq.flow.load", "capture_inputs"),
        ("trtq.flow.model", "capture_inputs"),
        ("trtq.commands.loading", "capture_inputs"),
    ):
        module = importlib.import_module(place)
        original = getattr(module, name)

        def counted(*args, original=original, place=place, **named):
            calls.append(place)
            return original(*args, **named)

        monkeypatch.setattr(module, name, counted)
    return calls


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Images in class folders and a factory of the model, for the commands."""
    folder = tmp_path_factory.mktemp("files")
    write_classes(folder / "images", 4, 9, size=32)
    (folder / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n\n" + inspect.getsource(Net) + FACTORY
    )
    return folder


def of_files(files: Path, **more):
    size = {"input_size": (3, 16, 16)}
    return {"model": f"{files}/own.py:model", "data": str(files / "images"), **size, **more}


# ---- analysis ----------------------------------------------------------------------------------


def test_an_analysis_of_a_module_and_a_list_of_tensors(net, images):
    record = trtq.analyze(net, list(images), bits=(4, 8), **ANALYSED)
    assert [layer.name for layer in record.layers] == ["stem.0", "body.0", "head"]
    assert all(layer.loss["w4a4"] > layer.loss["w8a8"] for layer in record.layers)
    assert record.preprocess is None and record.data["images"] == 40


def test_the_command_and_the_call_analyse_the_same(files, tmp_path, captures):
    asked = {**ANALYSED, "metric": "hessian", "probes": 2}
    spec = AnalyzeSpec(**of_files(files, out=str(tmp_path / "a.json")), **asked)
    by_command = trtq.analyze(spec)
    assert len(captures) == 1
    model = trtq.load(f"{files}/own.py:model", input_size=(3, 16, 16))
    by_call = trtq.analyze(model, str(files / "images"), out=tmp_path / "b.json", **asked)
    assert by_call.layers == by_command.layers
    assert (tmp_path / "b.json").is_file() and (tmp_path / "b.svg").is_file()
    assert by_command.spec["out"] == str(tmp_path / "a.json")


def test_targets_of_a_programs_own_are_read(net, images, labels):
    data = TensorDataset(images, labels)
    own = trtq.analyze(net, data, targets="model", **{**ANALYSED, "metric": "gradient"})
    same = trtq.analyze(net, data, **{**ANALYSED, "metric": "gradient"})
    assert [v.loss for v in own.layers] == [v.loss for v in same.layers]  # the labels are its own
    with pytest.raises(DataError, match="The metric gradient needs labels, .* its samples are no"):
        trtq.analyze(net, images, metric="gradient")
    with pytest.raises(DataError, match="the highest class index is 7, the model has 4 classes"):
        trtq.analyze(net, TensorDataset(images, labels * 0 + 7), metric="gradient")


# ---- search ------------------------------------------------------------------------------------


def test_a_search_of_a_module_and_a_list_of_pairs(net, images, labels, captures):
    pairs = list(zip(images, labels, strict=True))
    found = trtq.search(
        net,
        pairs,
        budget={"size": 0.3},
        min_accuracy=-100,
        bits=(4, 8),
        methods="never",
        **ANALYSED,
    )
    assert isinstance(found, Searched)
    assert len(captures) == 1
    assert found.record.met and found.record.best.folder == ""
    reference = found.record.reference
    assert (reference.model, reference.accuracy, reference.measure) == ("Net", 100.0, "top-1")
    assert found.allocation.costs["size"] <= 0.3 * found.allocation.full["size"]
    assert [v.name for v in found.analysis.layers] == ["stem.0", "body.0", "head"]
    widths = {layer.name: layer.option for layer in found.allocation.layers}
    again = trtq.quantize(
        net, images, layer_bits=widths, calib_images=16, batch_size=4, preset_quant="none"
    )
    assert found.best.encodings.digest() == again.encodings.digest()
    assert found.best.evaluate(TensorDataset(images, labels)).samples == 40
    held = [t for t in found.outcome.tried if t.quantized is not None]
    assert held == [found.outcome.best]  # one model in memory


@pytest.mark.slow
def test_the_command_and_the_call_find_the_same(files, tmp_path, captures):
    asked = {"budget": ("size=0.3",), "min_accuracy": -100.0, "methods": "never", "bits": ("4,8",)}
    spec = SearchSpec(**of_files(files, out=str(tmp_path / "out")), **asked, **ANALYSED)
    by_command = trtq.search(spec)
    assert len(captures) == 1
    by_call = trtq.search(
        f"{files}/own.py:model",
        str(files / "images"),
        input_size=(3, 16, 16),
        out=tmp_path / "own",
        **asked,
        **ANALYSED,
    )
    encodings = trtq.Encodings.load(tmp_path / "out/encodings.safetensors")
    assert by_call.best.encodings.digest() == encodings.digest()
    assert by_call.record.tries == by_command.tries
    for name in ("search.json", "frontier.json", "analysis.json", "report.html"):
        assert (tmp_path / "own" / name).is_file()
    resumed = trtq.search(
        f"{files}/own.py:model",
        str(files / "images"),
        input_size=(3, 16, 16),
        out=tmp_path / "own",
        **asked,
        **ANALYSED,
    )
    assert all(t.quantized is None for t in resumed.outcome.tried)  # nothing is measured again
    assert resumed.best.encodings.digest() == encodings.digest()


def test_candidates_are_models_and_val_is_data(net, images, labels):
    torch.manual_seed(3)
    other = Net().eval()
    found = trtq.search(
        [net, trtq.load(other, input_size=(3, 16, 16), name="other")],
        images,
        val=DataLoader(TensorDataset(images, labels), batch_size=8),
        budget=["size=0.5"],
        methods="never",
        **ANALYSED,
    )
    assert {t.model for t in found.record.tries} == {"Net", "other"}
    assert found.record.chosen.startswith("0-Net")
    assert found.outcome.best.scored.calibration_images == 16  # val shares them, which is said


def test_searches_from_python_that_make_no_sense(net, images, labels):
    with pytest.raises(UsageError, match="There is nothing to search for"):
        trtq.search(net, images)
    with pytest.raises(UsageError, match="There is no model to search"):
        trtq.search([], images, budget={"size": 0.3})
    with pytest.raises(UsageError, match=r"No image of .* is left to measure accuracy on"):
        trtq.search(net, TensorDataset(images, labels), budget={"size": 0.3}, calib_images=40)
    with pytest.raises(
        UsageError, match="Cannot use val and options with this model: a SearchSpec"
    ):
        trtq.search(SearchSpec(model="x", out="y"), val=images, rounds=3)
    with pytest.raises(UsageError, match="A SearchSpec names its data itself"):
        trtq.search(SearchSpec(model="x", out="y"), images)
    with pytest.raises(UsageError, match="Unknown setting 'bit'"):
        trtq.search(net, images, bit=(4, 8))


# ---- training ----------------------------------------------------------------------------------


def test_training_a_quantized_model_in_memory(net, images, labels, quantized, captures):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pairs = TensorDataset(images, labels)
    done = trtq.finetune(quantized, pairs, val=pairs, epochs=2, batch_size=8, lr=0.01)
    assert isinstance(done, Finetuned)
    assert captures == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert len(done.record.history) == 2 and done.record.measure == "top-1"
    assert "not augmented" in done.record.notes[0]
    assert done.quantized.encodings.digest() != quantized.encodings.digest()
    assert done.quantized.encodings.formats == quantized.encodings.formats
    scored = done.quantized.evaluate(pairs)
    assert done.record.evaluation is not None
    assert scored.figures["top-1"].value == done.record.evaluation.top1
    assert "6 tensors in W4A8" in done.quantized.summary


@pytest.mark.slow
def test_the_command_and_the_call_train_the_same(files, tmp_path):
    spec = QuantizeSpec(**of_files(files, out=str(tmp_path / "ptq")), bits="w4a8", calib_images=16)
    trtq.quantize(spec)
    encodings = str(tmp_path / "ptq/encodings.safetensors")
    asked = {"epochs": 1, "batch_size": 8, "lr": 0.01, "parity_images": 8}
    data = str(files / "images")
    by_command = trtq.finetune(
        FinetuneSpec(
            **of_files(files, out=str(tmp_path / "out")), val=data, encodings=encodings, **asked
        )
    )
    model = trtq.load(f"{files}/own.py:model", input_size=(3, 16, 16))
    by_call = trtq.finetune(
        model, data, val=data, encodings=encodings, out=tmp_path / "own", **asked
    )
    learned = trtq.Encodings.load(tmp_path / "out/encodings.safetensors")
    assert by_call.quantized.encodings.digest() == learned.digest()
    assert by_call.record.history[0].loss == by_command.history[0].loss
    assert by_call.record.evaluation is not None and by_command.evaluation is not None
    assert by_call.record.evaluation.top1 == by_command.evaluation.top1
    assert (tmp_path / "own/finetune.json").is_file()
    saved = done_files(tmp_path / "own")
    assert saved == done_files(tmp_path / "out")
    by_call.quantized.save(tmp_path / "again")
    assert (tmp_path / "again/model.qdq.onnx").read_bytes() == (
        tmp_path / "own/model.qdq.onnx"
    ).read_bytes()


def done_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "checkpoint")


class Noisy(Dataset):
    """Samples with random augmentation."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.randn(self.images[index].shape) * 0.1
        return self.images[index] + noise, int(self.labels[index])


def test_training_takes_augmented_samples_and_calibration_does_not(net, images, labels, quantized):
    noisy = trtq.samples(Noisy(images, labels))
    done = trtq.finetune(quantized, noisy, epochs=2, batch_size=16)
    assert len(done.record.history) == 2
    assert isinstance(noisy, TensorSamples) and not noisy.varies
    with pytest.raises(DataError, match="not the same in every pass"):
        trtq.quantize(net, Noisy(images, labels))


def test_a_float_model_is_quantized_first_and_an_analysis_ranks(net, images, labels):
    pairs = TensorDataset(images, labels)
    analysis = trtq.analyze(net, images, bits=(4, 8), **ANALYSED)
    done = trtq.finetune(net, pairs, epochs=1, analysis=analysis, worst=0.3, distill=1.0)
    assert any("training starts from trtq.quantize's defaults" in n for n in done.record.notes)
    assert any("1 of 3 layers are trained" in n for n in done.record.notes)


def test_samples_of_other_ranks_are_trained_on():
    torch.manual_seed(0)
    rows = torch.randn(24, 4, 6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        wanted = model(rows).argmax(1)
    start = trtq.quantize(model, rows)
    assert trtq.finetune(start, TensorDataset(rows, wanted), epochs=1, batch_size=8).record.history


def test_training_that_cannot_be(net, images, labels, quantized):
    pairs = TensorDataset(images, labels)
    with pytest.raises(DataError, match="Cannot train on .*: it has no labels"):
        trtq.finetune(quantized, images)
    with pytest.raises(UsageError, match="patience needs val"):
        trtq.finetune(quantized, pairs, patience=1)
    with pytest.raises(UsageError, match="worst needs sensitivity"):
        trtq.finetune(quantized, pairs, worst=0.5)
    with pytest.raises(UsageError, match="it is quantized already"):
        trtq.finetune(quantized, pairs, encodings="x.safetensors")
    with pytest.raises(DataError, match="the highest class index is 9, the model has 4 classes"):
        trtq.finetune(quantized, TensorDataset(images, labels * 0 + 9), epochs=1)
    torch.manual_seed(5)
    analysis = trtq.analyze(Net().eval(), images, bits=(4, 8), **ANALYSED)
    with pytest.raises(
        ArtifactError, match="Cannot rank layers by this analysis: it is of another"
    ):
        trtq.finetune(quantized, pairs, analysis=analysis)


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (AnalyzeOptions, AnalyzeSpec),
        (SearchOptions, SearchSpec),
        (FinetuneOptions, FinetuneSpec),
    ],
)
def test_options_are_those_of_the_spec(options, spec):
    import msgspec

    own = {f.name: (f.type, f.default) for f in msgspec.structs.fields(options)}
    theirs = {f.name: (f.type, f.default) for f in msgspec.structs.fields(spec)}
    assert own.items() <= theirs.items()
