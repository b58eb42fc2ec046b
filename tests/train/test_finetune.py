"""Quantization-aware training.

Gradients are derived by hand, resuming is exact to the bit, and the exported model has the
placement of PTQ.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import read, spec
from tests.support.training import asked
from trtq import finetune, quantize
from trtq.errors import ArtifactError, CalibrationError, DataError, EncodingsError, UsageError
from trtq.graph.capture import capture
from trtq.quant.encodings import Encodings
from trtq.quant.formats import Format
from trtq.quant.simulate import insert_fake_quantize
from trtq.testing.models import tiny_cnn
from trtq.train.learned import LearnedFakeQuantize
from trtq.train.run_state import Draws, rate
from trtq.train.training_graph import TrainingGraph

# ---- the op ------------------------------------------------------------------------------------


def test_gradients_of_input_and_step_by_hand():
    made = LearnedFakeQuantize("q", torch.tensor(0.5), Format(bits=2), learn=True)
    x = torch.tensor([0.6, -3.0, 2.0, -0.2], requires_grad=True)  # positions 1.2, -6, 4, -0.4
    made(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0]
    # LSQ eq. 3: round(v) - v inside, the end code outside; then times the gradient scale and, for
    # the logarithm, the step
    wanted = ((1 - 1.2) + (-2) + 1 + (0 + 0.4)) / (4 * 1) ** 0.5 * 0.5
    assert made.log_step.grad is not None
    assert float(made.log_step.grad) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.01, 2.0))
def test_the_op_computes_what_simulation_computes(values, step):
    from trtq.quant.fake_quantize import fake_quantize

    x, s = torch.tensor(values), torch.tensor(step)
    made = LearnedFakeQuantize("q", s, Format(bits=4), learn=False)
    torch.testing.assert_close(
        made(x), fake_quantize(x, made.log_step.exp(), None, None, -8, 7, "q"), rtol=0, atol=0
    )


def test_steps_per_channel_learn_alone():
    made = LearnedFakeQuantize("q", torch.tensor([0.1, 10.0]), Format(bits=4, axis=0), learn=True)
    made(torch.full((2, 3), 5.0)).sum().backward()
    assert made.log_step.grad is not None
    assert made.log_step.grad.shape == (2,)
    assert float(made.log_step.grad[0]) > 0  # clipped: a wider step would give more
    assert float(made.log_step.grad[1]) != 0


def test_training_starts_where_ptq_ended(ptq: Path):
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    encodings = Encodings.load(ptq / "encodings.safetensors")
    started = TrainingGraph(captured.module, encodings, learn_amax=True)
    x = captured.examples[0]
    with torch.no_grad():
        wanted = insert_fake_quantize(captured.module, started.placement, encodings)(x)
        torch.testing.assert_close(started.module(x), wanted, rtol=1e-4, atol=1e-4)
    assert len(started.weights) >= 6
    assert set(started.learned().amax) == set(encodings.amax)


def test_training_goes_on_from_the_weights_a_method_made(images: Path, tmp_path: Path):
    quantize(
        spec(
            images,
            tmp_path / "ptq",
            bits="w4a4",
            method=["reconstruct", "bias-correction"],
            method_arg={"reconstruct.steps": 5},
        )
    )
    encodings = Encodings.load(tmp_path / "ptq/encodings.safetensors")
    assert encodings.constants
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    started = TrainingGraph(captured.module, encodings, learn_amax=True)
    with torch.no_grad():
        wanted = insert_fake_quantize(captured.module, started.placement, encodings)(
            captured.examples[0]
        )
        torch.testing.assert_close(
            started.module(captured.examples[0]), wanted, rtol=1e-4, atol=1e-4
        )
        for weight in started.weights.values():
            weight.add_(0.05)
        # What was trained is what is exported: under the names of the model, not under those of the
        # training graph.
        after = insert_fake_quantize(captured.module, started.placement, started.learned())(
            captured.examples[0]
        )
        torch.testing.assert_close(
            after, started.module(captured.examples[0]), rtol=1e-3, atol=1e-3
        )
        assert not torch.allclose(after, wanted)


def test_rates_and_augmentation():
    assert rate("constant", 0.7) == 1.0
    assert rate("onecycle", 0.3) == pytest.approx(1.0)
    assert rate("cosine", 1.0) == pytest.approx(0.0)
    x = torch.randn(6, 3, 16, 16)
    masks = (x[:, 0] * 10).round().long()  # so that a mask can be recognised

    def vary(how: str, seed: int, picks=range(6)):
        return Draws(how, 6, (16, 16), torch.Generator().manual_seed(seed)).vary(
            x[list(picks)], masks[list(picks)], picks
        )

    once, twice = vary("flip-crop", 3), vary("flip-crop", 3)
    assert torch.equal(once[0], twice[0])
    assert once[0].shape == x.shape
    assert not torch.equal(once[0], x)
    assert torch.equal((once[0][:, 0] * 10).round().long(), once[1])  # masks move with their images
    part = vary("flip-crop", 3, [1, 3, 5])  # a process that has only these
    assert torch.equal(part[0], once[0][[1, 3, 5]])
    assert torch.equal(vary("none", 0)[0], x)
    last = Draws("flip-crop", 6, (16, 16), torch.Generator().manual_seed(3)).vary(
        x.permute(0, 2, 3, 1), masks, range(6)
    )  # channels last: the same images, and their channels stay where they are
    assert torch.equal(last[0].permute(0, 3, 1, 2), once[0]) and torch.equal(last[1], once[1])
    flipped = vary("flip", 0)[0]
    assert all(
        torch.equal(f, o) or torch.equal(f, o.flip(2)) for f, o in zip(flipped, x, strict=True)
    )


# ---- the verb ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(images: Path, ptq: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("qat")
    record = finetune(asked(images, ptq, out, epochs=6, lr=0.02, distill=1.0, augment="none"))
    assert record.history[-1].loss < record.history[0].loss
    return out


def test_training_brings_the_answers_back(trained: Path, ptq: Path):
    record, before = read(trained / "finetune.json"), read(ptq / "quantize.json")
    assert record["parity"]["passed"]
    assert record["parity"]["quantization_sqnr_db"] > before["parity"]["quantization_sqnr_db"]
    assert record["evaluation"]["onnx_sha256"] == record["files"]["model.qdq.onnx"]["sha256"]
    assert record["trained"]["ranges"] > 0


def test_placement_is_that_of_ptq(trained: Path, ptq: Path):
    counted = []
    for folder in (ptq, trained):
        model = onnx.load(folder / "model.qdq.onnx")
        counted.append([(n.op_type, n.name) for n in model.graph.node])
    assert counted[0] == counted[1]
    assert (
        Encodings.load(trained / "encodings.safetensors").formats
        == Encodings.load(ptq / "encodings.safetensors").formats
    )


class Told:
    """Sends this process SIGTERM after some images."""

    def __init__(self, after: int) -> None:
        self.after, self.done, self.notes = after, 0, list[str]()

    def begin(self, label: str, total: int) -> None:
        self.counting = label.startswith("Epoch")

    def status(self, text: str) -> None:
        assert text.startswith("loss ")

    def advance(self, count: int) -> None:
        self.done += count if self.counting else 0
        if self.after <= self.done < self.after + count:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw", "ema": 0.9, "schedule": "onecycle"}, {"accumulate": 2}]
)
def test_a_stopped_run_ends_in_the_same_bits(changes, images: Path, ptq: Path, tmp_path: Path):
    finetune(asked(images, ptq, tmp_path / "whole", **changes))
    told = Told(24)
    with pytest.raises(KeyboardInterrupt):
        finetune(asked(images, ptq, tmp_path / "cut", **changes), told)
    assert any("the same command resumes there" in n for n in told.notes)
    assert not (tmp_path / "cut/finetune.json").exists()
    record = finetune(asked(images, ptq, tmp_path / "cut", **changes))
    assert any("resuming from epoch 1, step" in n for n in record.notes)
    digests = [
        Encodings.load(tmp_path / n / "encodings.safetensors").digest() for n in ("whole", "cut")
    ]
    assert digests[0] == digests[1]


def test_early_stopping_plateau_and_freezing(images: Path, ptq: Path, tmp_path: Path):
    record = finetune(
        asked(
            images,
            ptq,
            tmp_path / "a",
            epochs=5,
            lr=1e-9,
            lr_amax=1e-9,
            patience=1,
            schedule="plateau",
            freeze=("stem", "conv1"),
        )
    )
    assert len(record.history) < 5
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    encodings = Encodings.load(ptq / "encodings.safetensors")
    whole, part = (
        TrainingGraph(captured.module, encodings, learn_amax=False, freeze=f)
        for f in ((), ("stem",))
    )
    assert len(part.weights) < len(whole.weights)
    fixed = finetune(asked(images, ptq, tmp_path / "b", epochs=1, learn_amax=False))
    before, after = (Encodings.load(p / "encodings.safetensors") for p in (ptq, tmp_path / "b"))
    assert fixed.trained.ranges == 0
    for name, amax in before.amax.items():
        torch.testing.assert_close(after.amax[name], amax, rtol=1e-5, atol=0)


def test_what_cannot_be_trained_says_why(images: Path, ptq: Path, tmp_path: Path):
    with pytest.raises(EncodingsError, match="were made for another model"):
        finetune(asked(images, ptq, tmp_path, model_arg={"num_classes": 7}))
    with pytest.raises(UsageError, match="--freeze 'stm' matches no layer.*stem"):
        finetune(asked(images, ptq, tmp_path, freeze=("stm",)))
    with pytest.raises(CalibrationError, match="Nothing is left to train"):
        finetune(asked(images, ptq, tmp_path, freeze=("*",), learn_amax=False))
    with pytest.raises(CalibrationError, match=r"The loss is .* in epoch 1, step .*Lower --lr"):
        finetune(asked(images, ptq, tmp_path / "nan", lr=3e38, distill=0.0, epochs=3))
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(p for p in images.rglob("*") if p.is_file())[:9]):
        (flat / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    with pytest.raises(
        DataError, match="it has no labels.*or --distill 1 to learn from the float model"
    ):
        finetune(asked(flat, ptq, tmp_path))
    with pytest.raises(DataError, match="Cannot measure accuracy on .*: it has no labels"):
        finetune(asked(images, ptq, tmp_path, val=str(flat)))
    assert finetune(
        asked(flat, ptq, tmp_path / "flat-out", val=None, distill=1.0, epochs=1)
    ).history
    finetune(asked(images, ptq, tmp_path / "once", epochs=1))
    with pytest.raises(
        ArtifactError,
        match="is of another run: a setting, the weights, the encodings or the images differ",
    ):
        finetune(asked(images, ptq, tmp_path / "once", epochs=1, lr=0.5))
    (tmp_path / "once/checkpoint/state.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="Remove it to start again"):
        finetune(asked(images, ptq, tmp_path / "once", epochs=1))


def test_methods_that_put_ops_into_the_graph_are_refused(images: Path, tmp_path: Path):
    vit = "trtq.testing.models:tiny_vit"
    quantize(
        spec(images, tmp_path / "ptq", model=vit, method=["integer-softmax"], attention="float")
    )
    with pytest.raises(
        EncodingsError,
        match=r"its methods \(integer-softmax\) put ops into the graph that the model itself does "
        r"not have",
    ):
        finetune(asked(images, tmp_path / "ptq", tmp_path / "o", model=vit))


def test_requests_that_would_do_nothing_or_harm(images: Path, ptq: Path, tmp_path: Path):
    with pytest.raises(
        UsageError,
        match="is the folder of the encodings: training would overwrite what it starts from",
    ):
        finetune(asked(images, ptq, ptq))
    with pytest.raises(UsageError, match="--patience needs --val"):
        finetune(asked(images, ptq, tmp_path, val=None, patience=1))
    with pytest.raises(UsageError, match="--schedule plateau needs --val"):
        finetune(asked(images, ptq, tmp_path, val=None, schedule="plateau"))


def test_frozen_layers_keep_their_weights_and_weight_ranges(ptq: Path):
    captured = capture(tiny_cnn().eval(), (3, 32, 32))
    graph = TrainingGraph(
        captured.module,
        Encodings.load(ptq / "encodings.safetensors"),
        learn_amax=True,
        freeze=("*",),
    )
    assert not graph.weights
    learning = [n for n, q in graph.quantizers.items() if q.log_step.requires_grad]
    assert learning
    assert not any(n.endswith(".weight") for n in learning)


def test_one_step_is_a_step(images: Path, ptq: Path, tmp_path: Path):
    finetune(asked(images, ptq, tmp_path, epochs=1, batch_size=64, lr=0.01, lr_amax=0.01))
    before, after = (Encodings.load(p / "encodings.safetensors") for p in (ptq, tmp_path))
    assert any(
        float((after.amax[n] - before.amax[n]).abs().max()) > 1e-4 * float(before.amax[n].max())
        for n in before.amax
    )


def test_other_labels_are_another_run(images: Path, ptq: Path, tmp_path: Path):
    names = sorted(p.name for p in images.iterdir() if p.is_dir())
    index = tmp_path / "classes.json"
    index.write_text(json.dumps(names))
    finetune(asked(images, ptq, tmp_path / "o", epochs=1, class_index=str(index)))
    index.write_text(json.dumps(names[::-1]))
    with pytest.raises(ArtifactError, match="is of another run"):
        finetune(asked(images, ptq, tmp_path / "o", epochs=1, class_index=str(index)))


def test_accumulated_updates_are_those_of_the_whole_batch(images: Path, ptq: Path, tmp_path: Path):
    base = {
        "epochs": 1,
        "limit": 24,
        "augment": "none",
        "lr": 0.05,
        "distill": 0.0,
        "learn_amax": False,
        "schedule": "constant",
        "val": None,
    }
    whole = finetune(asked(images, ptq, tmp_path / "a", batch_size=24, **base))
    parts = finetune(
        asked(images, ptq, tmp_path / "b", batch_size=8, accumulate=8, **base)
    )  # 3 steps, one update
    assert parts.history[0].loss == pytest.approx(whole.history[0].loss, rel=1e-4)
    first, second = (Encodings.load(tmp_path / n / "encodings.safetensors") for n in ("a", "b"))
    for name, value in first.constants.items():
        torch.testing.assert_close(second.constants[name], value, rtol=1e-3, atol=1e-5)


def test_falling_widths_resume_to_the_bit(images: Path, ptq: Path, tmp_path: Path):
    changes = {"epochs": 4, "lower_bits": (8, 6), "learn_amax": False}
    finetune(asked(images, ptq, tmp_path / "whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        finetune(
            asked(images, ptq, tmp_path / "cut", **changes), Told(32 * 2 + 8)
        )  # in the third epoch
    finetune(asked(images, ptq, tmp_path / "cut", **changes))
    ranges, digests = Encodings.load(ptq / "encodings.safetensors").amax, []
    for name in ("whole", "cut"):
        found = Encodings.load(tmp_path / name / "encodings.safetensors")
        assert all(torch.equal(found.amax[n], a) for n, a in ranges.items())
        digests.append(found.digest())
    assert digests[0] == digests[1]


def test_disk_full_while_saving(images: Path, ptq: Path, small_disk: Path):
    with pytest.raises(
        ArtifactError,
        match=r"Cannot write .*state.safetensors: No space left on device. Free some space",
    ):
        finetune(asked(images, ptq, small_disk))
    assert not list(small_disk.rglob("*.tmp"))


def test_what_is_not_finite_is_named_and_never_kept(images: Path, ptq: Path, tmp_path: Path):
    finetune(asked(images, ptq, tmp_path / "good", epochs=1))
    with pytest.raises(
        CalibrationError,
        match=r"first not finite: the (weight|output of|range of) .*Lower --lr or --lr-amax",
    ):
        finetune(asked(images, ptq, tmp_path / "bad", lr=3e38, distill=0.0, epochs=3))
    state = tmp_path / "bad/checkpoint/state.safetensors"
    if state.exists():
        from safetensors.torch import load_file

        assert all(bool(torch.isfinite(v).all()) for v in load_file(state).values())


def test_what_the_files_cannot_hold_is_said_before_training(images, ptq, tmp_path):
    with pytest.raises(
        UsageError,
        match="Cannot store weights as INT4: ONNX has INT4 from opset 21 on, asked for 20. Give "
        "--opset 21",
    ):
        finetune(asked(images, ptq, tmp_path / "q", weight_storage="int4"))
    with pytest.raises(
        UsageError,
        match="Cannot quantize to INT8 for Jetson Nano: .* 5.3 has no INT8 arithmetic",
    ):
        finetune(asked(images, ptq, tmp_path / "q", target="nano"))


def test_codes_that_cannot_learn(images, ptq, tmp_path):
    encodings = Encodings.load(ptq / "encodings.safetensors")
    encodings.formats.update(
        {k: Format(kind="fp8", axis=f.axis) for k, f in encodings.formats.items()}
    )
    (tmp_path / "fp8").mkdir()
    encodings.save(tmp_path / "fp8/encodings.safetensors")
    with pytest.raises(
        EncodingsError,
        match="The format fp8.* cannot be trained: only integer codes around 0 learn their range",
    ):
        finetune(asked(images, tmp_path / "fp8", tmp_path / "q"))
