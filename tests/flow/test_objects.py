"""Quantizing from Python: modules, DataLoaders, datasets and tensors, with no file in between."""

from __future__ import annotations

import inspect

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import trtq
from tests.support.small_net import FACTORY, Net
from trtq.errors import CaptureError, DataError, UsageError
from trtq.specs import QuantizeOptions, QuantizeSpec
from trtq.testing.images import write_classes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


class Pairs(Dataset):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])


def forms(images: torch.Tensor, labels: torch.Tensor) -> dict[str, object]:
    pairs = Pairs(images, labels)
    return {
        "loader": DataLoader(pairs, batch_size=7, shuffle=True),
        "dataset": pairs,
        "tensor dataset": TensorDataset(images, labels),
        "list": list(images),
        "tensor": images,
        "array": images.numpy(),
        "dicts": [{"x": x, "label": int(y)} for x, y in zip(images, labels, strict=True)],
        "generator": ((x, y) for x, y in zip(images, labels, strict=True)),
    }


@pytest.mark.parametrize(
    "form",
    ["loader", "dataset", "tensor dataset", "list", "tensor", "array", "dicts", "generator"],
)
def test_every_form_of_data_gives_the_same_ranges(net, images, labels, form):
    expected = trtq.quantize(net, images)
    found = trtq.quantize(net, forms(images, labels)[form])
    assert found.encodings.digest() == expected.encodings.digest() or form in ("generator",)
    for name, amax in expected.encodings.amax.items():
        torch.testing.assert_close(found.encodings.amax[name], amax)


def test_the_module_is_not_changed_and_the_simulation_is_what_onnx_runtime_computes(net, images):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    quantized = trtq.quantize(net, images)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        simulated = quantized.simulate()(images[:8]).numpy()
    session = onnxruntime.InferenceSession(
        quantized.export().model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answer = session.run(None, {"input": images[:8].numpy()})[0]
    np.testing.assert_allclose(answer, simulated, atol=0.05)
    assert "tensors in INT8" in quantized.summary
    assert "parity torch/ONNX Runtime passed" in quantized.summary


def test_the_signature_names_types_and_open_sizes(net, images):
    signature = trtq.quantize(net, images).signature
    assert signature.input.words == "input float32 [batch, 3, 16, 16]"
    assert signature.input.layout == "NCHW"
    assert [o.words for o in signature.outputs] == ["output float32 [batch, 4]"]
    assert signature.ranges["batch"].words == "1.."


def test_scores_of_the_exported_model_beside_the_float_model(net, images, labels):
    quantized = trtq.quantize(net, images)
    scored = quantized.evaluate(Pairs(images, labels))
    assert scored.task.name == "classification"
    assert scored.reference["top-1"].value == 100.0  # the labels are the float model's own answers
    assert scored.figures["top-1"].value == scored.outputs[0].agreement
    assert scored.samples == 40 and "top-1" in str(scored)
    plain = quantized.evaluate(images, task="tensors")
    assert plain.outputs[0].agreement is None and plain.figures == {}
    assert plain.outputs[0].sqnr_db is not None and plain.outputs[0].sqnr_db > 15


def test_segmentation_from_tensors(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    with torch.no_grad():
        masks = model(images).argmax(1)
    quantized = trtq.quantize(model, images)
    scored = quantized.evaluate(TensorDataset(images, masks))
    assert scored.task.name == "segmentation"
    assert scored.reference["mIoU"].value == 100.0
    assert scored.figures["pixel accuracy"].value == pytest.approx(
        scored.outputs[0].agreement, abs=1e-3
    )


def test_saved_folder_is_that_of_the_command(net, images, tmp_path):
    quantized = trtq.quantize(net, images, bits="w4a8", method=("bias-correction",))
    record = quantized.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "encodings.safetensors",
        "model.fp32.onnx",
        "model.qdq.onnx",
        "quantize.json",
    ]
    assert record.spec["bits"] == "w4a8" and record.data["source"] == "Tensor of the program"
    assert record.data["calibration_sha256"] and record.preprocess is None
    again = trtq.Encodings.load(tmp_path / "out/encodings.safetensors")
    assert again.digest() == quantized.encodings.digest()
    assert "quantize" in str(trtq.inspect(str(tmp_path / "out/quantize.json")))


def test_the_command_and_the_call_compute_the_same(tmp_path):
    write_classes(tmp_path / "images", 4, 9, size=32)
    source = inspect.getsource(Net) + FACTORY
    (tmp_path / "own.py").write_text("import torch\nfrom torch import nn\n\n\n" + source)
    options = {"calib_images": 16, "batch_size": 4}
    name = f"{tmp_path}/own.py:model"
    record = trtq.quantize(
        QuantizeSpec(
            model=name,
            data=str(tmp_path / "images"),
            out=str(tmp_path / "out"),
            input_size=(3, 16, 16),
            **options,
        )
    )
    model = trtq.load(name, input_size=(3, 16, 16))
    quantized = trtq.quantize(model, str(tmp_path / "images"), **options)
    written = trtq.Encodings.load(tmp_path / "out/encodings.safetensors")
    assert written.digest() == quantized.encodings.digest()
    assert record.data["calibration_ids"] == list(quantized.inputs.samples.ids)
    ours = quantized.export().model
    theirs = onnx.load(tmp_path / "out/model.qdq.onnx")
    assert [n.SerializeToString() for n in ours.graph.node] == [
        n.SerializeToString() for n in theirs.graph.node
    ]


def test_export_for_a_target_writes_what_its_release_reads(net, images):
    quantized = trtq.quantize(net, images)
    assert quantized.export("xavier@8.5").model.opset_import[0].version == 16
    assert quantized.export().model.opset_import[0].version == 20
    with pytest.raises(UsageError, match="Jetson Nano"):
        quantized.export("nano")


def test_a_width_for_single_layers(net, images):
    quantized = trtq.quantize(net, images, layer_bits={"body.0": "w4a8", "head": "fp16"})
    formats = quantized.encodings.formats
    assert formats["body.0.weight"].bits == 4 and formats["body.0.input"].bits == 8
    assert "head.weight" not in formats
    with pytest.raises(UsageError, match="that the model does not have"):
        trtq.quantize(net, images, layer_bits={"nothing": "w4a8"})
    with pytest.raises(UsageError, match="Cannot read the width 'tiny'"):
        trtq.quantize(net, images, layer_bits={"head": "tiny"})


class Augmented(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(3, 16, 16)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (lambda x: Augmented(), "is not the same in every pass.*Turn random augmentation off"),
        (
            lambda x: (x * 255).to(torch.uint8),
            "sample 0 of Tensor .*: input 'input' is uint8, the model takes float32",
        ),
        (
            lambda x: [x[0], x[1, :, :8]],
            r"sample 1 of list .*: input 'input' has the shape \[3, 8, 16\]",
        ),
        (lambda x: [(x[0], 1, 2)], "a sample has 3 parts"),
        (lambda x: [{"a": x[0], "b": x[1]}], r"Cannot call Net with a, b: forward\(\) takes x"),
        (lambda x: ["a.png", "b.png"], "input 'input' is a str, expected a tensor"),
        (lambda x: [], "it has no samples"),
        (lambda x: 7, "it is no tensor, list, Dataset, DataLoader or iterable"),
        (lambda x: [(x[0], 0.5), (x[1], 0.25)], None),
    ],
)
def test_data_that_cannot_be_used_says_why(net, images, data, text):
    if text is None:
        quantized = trtq.quantize(net, images)
        with pytest.raises(UsageError, match="its targets are float32, expected class indices"):
            quantized.evaluate(data(images), task="classification")
        return
    with pytest.raises((DataError, CaptureError), match=text):
        trtq.quantize(net, data(images))


def test_a_batch_axis_too_many_is_named(net, images):
    model = trtq.load(net, input_size=(3, 16, 16))
    with pytest.raises(
        DataError, match=r"has the shape \[1, 3, 16, 16\], the input is input float32 \[batch"
    ):
        trtq.quantize(model, [x[None] for x in images])


def test_targets_of_classes_that_the_model_does_not_have(net, images):
    quantized = trtq.quantize(net, images)
    with pytest.raises(DataError, match="highest class index is 9, the model has 4 classes"):
        quantized.evaluate([(x, 9) for x in images])


def test_modules_that_cannot_be_captured_say_why(images):
    with pytest.raises(CaptureError, match="Net is in training mode"):
        trtq.quantize(Net().train(), images)
    with pytest.raises(CaptureError, match="its parameters are float64, expected float32"):
        trtq.quantize(Net().eval().double(), images)
    with pytest.raises(UsageError, match="The inputs of Net are not known"):
        trtq.load(Net().eval())
    with pytest.raises(
        UsageError, match="Cannot use checkpoint with this model: a module in memory"
    ):
        trtq.load(Net().eval(), checkpoint="x.pt", input_size=(3, 16, 16))
    with pytest.raises(UsageError, match="Unknown setting 'bit'"):
        trtq.quantize(Net().eval(), images, bit="w8a8")


def test_options_are_those_of_the_spec():
    own = QuantizeOptions()
    shared = set(QuantizeSpec.__struct_fields__) & set(QuantizeOptions.__struct_fields__)
    assert set(QuantizeOptions.__struct_fields__) - shared == {"layer_bits"}
    made = QuantizeSpec(model="m", data="d", out="o")
    assert {f: getattr(made, f) for f in shared} == {f: getattr(own, f) for f in shared}


def test_a_sampler_that_gives_some_samples_is_heeded(net, images, labels):
    from torch.utils.data import SubsetRandomSampler

    pairs = Pairs(images, labels)
    some = DataLoader(pairs, batch_size=4, sampler=SubsetRandomSampler([3, 5, 7, 9]))
    assert len(trtq.samples(some)) == 4
    single = DataLoader(pairs, batch_size=None)
    assert len(trtq.samples(single)) == 40
    batches = DataLoader(pairs, batch_sampler=[[0, 1], [8, 9]])
    assert [list(b.ids) for b in trtq.samples(batches).batches(8)] == [
        ["000000", "000001", "000002", "000003"]
    ]
    assert torch.equal(next(trtq.samples(batches).batches(8)).input, images[[0, 1, 8, 9]])


def test_tensors_take_no_targets_and_an_own_task_gets_all(net, images):
    from trtq.tasks import Figure, Task

    class Error(Task):
        name = "regression"

        def score(self, *, ignore):
            return Sum()

    class Sum:
        def __init__(self):
            self.values = []

        def add(self, answer, targets):
            self.values.append(float(np.abs(answer - targets).mean()))

        @property
        def figures(self):
            return [Figure(name="mean error", value=float(np.mean(self.values)), unit="")]

    with torch.no_grad():
        wanted = net(images)
    quantized = trtq.quantize(net, images)
    pairs = list(zip(images, wanted, strict=True))
    scored = quantized.evaluate(pairs, task=Error())
    assert scored.reference["mean error"].value == pytest.approx(0.0, abs=1e-5)
    assert scored.figures["mean error"].value > 0.0
    assert quantized.evaluate(pairs, task="tensors").figures == {}
    assert scored.notes == ["40 of these samples were used for calibration"]


@pytest.mark.slow
def test_what_loading_says_is_noted_and_preprocessing_is_that_of_the_images(tmp_path):
    write_classes(tmp_path / "images", 4, 9, size=32)
    quantized = trtq.quantize("trtq.testing.models:tiny_cnn", str(tmp_path / "images"))
    assert any("ImageNet's mean and std are used" in line for line in quantized.notes)
    images = trtq.samples(str(tmp_path / "images"), preprocess=quantized.inputs.model.preprocess)
    own = trtq.quantize(quantized.inputs.model.module, images)
    assert own.inputs.model.preprocess == images.preprocess
    strange = msgspec.structs.replace(images.preprocess, mean=(0.1, 0.1, 0.1))
    model = trtq.load("trtq.testing.models:tiny_cnn")
    with pytest.raises(UsageError, match="are not made as .* takes them"):
        trtq.quantize(model, trtq.samples(str(tmp_path / "images"), preprocess=strange))


def test_arguments_without_effect_are_refused(net, images):
    model = trtq.load(net, input_size=(3, 16, 16))
    for given, text in (
        ({"input_size": (3, 16, 16)}, "Cannot use input_size with this model"),
        ({"method": ("smoth",)}, "Did you mean smooth"),
        ({"target": "nano"}, "Jetson Nano"),
        ({"calibrator": "nowhere.py:half"}, "nowhere.py"),
    ):
        with pytest.raises(trtq.TrtqError, match=text):
            trtq.quantize(model, images, **given)
    with pytest.raises(UsageError, match="masks are for images"):
        trtq.samples(images, masks="masks")
    spec = QuantizeSpec(model="m", data="d", out="o")
    with pytest.raises(UsageError, match="A QuantizeSpec names its data itself"):
        trtq.quantize(spec, images)
    with pytest.raises(UsageError, match="Cannot use options with this model"):
        trtq.quantize(spec, bits="w4a8")


def test_an_export_for_a_target_equals_whether_saved_or_not(net, images, tmp_path):
    quantized = trtq.quantize(net, images)
    before = quantized.export("xavier@8.5").model
    quantized.save(tmp_path / "out")
    assert quantized.export("xavier@8.5").model == before
    assert onnx.load(tmp_path / "out/model.qdq.onnx").graph == quantized.export().model.graph


def test_a_module_that_trains_on_does_not_change_what_was_loaded(images):
    torch.manual_seed(3)
    module = Net().eval()
    model = trtq.load(module, input_size=(3, 16, 16))
    quantized = trtq.quantize(model, images)
    before = quantized.simulate()(images[:4])
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3.0)
    assert torch.equal(quantized.simulate()(images[:4]), before)
    assert trtq.quantize(model, images).encodings.digest() == quantized.encodings.digest()


def test_a_child_in_training_mode_is_named_before_it_runs(images):
    module = Net().eval()
    module.stem[1].train()
    with pytest.raises(CaptureError, match="Net is in training mode at stem.1"):
        trtq.quantize(module, images)
    assert int(module.stem[1].num_batches_tracked) == 0


def test_samples_with_nan_are_the_data_s_fault():
    model = trtq.load(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), input_size=(3, 8, 8))
    with pytest.raises(DataError, match=r"hold NaN in the input input: 384 of 384 values"):
        trtq.quantize(model, [torch.full((3, 8, 8), float("nan"))] * 2)


def test_nan_answers_are_wrong_and_ignored_labels_do_not_count(net, images, labels):
    quantized = trtq.quantize(net, images)
    ruined = [(x * float("nan"), 0) for x in images[:4]]
    assert quantized.evaluate(ruined, "classification").reference["top-1"].value == 0.0
    rows = enumerate(zip(images, labels, strict=True))
    some = [(x, int(y) if i % 2 else 255) for i, (x, y) in rows]
    half = quantized.evaluate(trtq.samples(some, ignore_index=255), "classification")
    assert half.reference["top-1"].value == 100.0
    with pytest.raises(DataError, match="lowest class index is -1"):
        quantized.evaluate([(x, -1) for x in images], "classification")


def test_streams_buffers_and_targets_of_other_kinds(net, images):
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __len__(self) -> int:
            return len(images)

        def __iter__(self):
            yield from images

    def reuses_its_buffer():
        buffer = torch.zeros(3, 16, 16)
        for x in images:
            yield buffer.copy_(x)

    expected = trtq.quantize(net, images).encodings.amax
    for data in (Stream(), DataLoader(Stream(), 4), reuses_its_buffer()):
        found = trtq.quantize(net, data).encodings.amax
        assert all(torch.equal(found[n], v) for n, v in expected.items())
    named = [(x, "cat") for x in images]
    quantized = trtq.quantize(net, named)
    assert quantized.evaluate(named, task="tensors").figures == {}
    with pytest.raises(UsageError, match="its targets are no numbers, expected class indices"):
        quantized.evaluate(named, task="classification")
    mixed = [(x, "cat" if i else 1) for i, x in enumerate(images)]
    with pytest.raises(DataError, match="a target is a int, expected|a target is a str, expected"):
        quantized.evaluate(mixed, task="classification")
    with pytest.raises(UsageError, match="Cannot evaluate in batches of 0"):
        quantized.evaluate(images, batch_size=0)


def test_what_is_no_image_or_no_model_says_so(net, images):
    with pytest.raises(CaptureError, match=r"The model's forward pass fails on input \[2, 20\]"):
        trtq.quantize(net, torch.randn(8, 20))
    with pytest.raises(CaptureError, match="data hold one sample an item, without a batch axis"):
        trtq.quantize(net, [x[None] for x in images])
    with pytest.raises(UsageError, match=r"Cannot use input_size=\(20,\) for Net"):
        trtq.load(net, input_size=(20,))
    with pytest.raises(UsageError, match="Cannot load a NoneType as a model"):
        trtq.quantize(None, images)


def test_a_sampler_without_an_end_is_read_once(images, labels):
    class Endless(torch.utils.data.Sampler):
        def __iter__(self):
            while True:
                yield from range(40)

    loader = DataLoader(Pairs(images, labels), batch_size=4, sampler=Endless())
    assert len(trtq.samples(loader)) == 40


class Parts(nn.Module):
    """A number beside a vector in; a parameter of its own among the outputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.own = nn.Linear(6, 4), nn.Parameter(torch.randn(3))

    def forward(self, x, factor):
        return self.linear(x) * factor, self.own


def test_a_number_for_all_samples_and_a_parameter_as_an_output():
    torch.manual_seed(0)
    model = trtq.load(Parts().eval(), example={"x": torch.randn(2, 6), "factor": torch.tensor(3.0)})
    samples = [{"x": torch.randn(6), "factor": torch.tensor(3.0)} for _ in range(8)]
    quantized = trtq.quantize(model, samples)
    assert [a.name for a in quantized.done.parity.answers] == ["out.0", "out.1"]
    samples[3]["factor"] = torch.tensor(4.0)  # three batches, in place of one
    own = trtq.quantize(model, samples)
    assert own.done.parity.passed
    assert own.done.parity.images == 8


def test_a_type_that_no_file_has_is_named():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(x.float())

    given = torch.randint(0, 5, (8, 6), dtype=torch.uint16)
    with pytest.raises(trtq.TrtqError, match="uint16, expected one of float32"):
        trtq.quantize(Short().eval(), given)
