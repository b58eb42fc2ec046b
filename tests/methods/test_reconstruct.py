"""Learned rounding, learned ranges, and bias correction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import spec
from trtq import quantize
from trtq.errors import CalibrationError
from trtq.methods.reconstruct import LearnedRange, SoftRounding, _mirrored
from trtq.quant.encodings import Encodings
from trtq.train.learning_state import LearningState


def test_learned_rounding_beats_rounding_to_nearest(images, tmp_path):
    nearest = quantize(spec(images, tmp_path / "a", bits="w3a8")).parity.quantization_sqnr_db
    learned = quantize(
        spec(
            images,
            tmp_path / "b",
            bits="w3a8",
            method=["reconstruct"],
            method_arg={"reconstruct.steps": 150},
        )
    ).parity.quantization_sqnr_db
    assert learned > nearest + 1.0


def test_shared_tensors_learn_one_range(images, tmp_path):
    (tmp_path / "fork.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        "
        "super().__init__()\n"
        "        self.stem, self.a, self.b, self.last = (torch.nn.Conv2d(i, 8, 3) for i in (3, "
        "8, 8, 8))\n"
        "    def forward(self, x):\n        y = torch.relu(self.stem(x))\n        return "
        "self.last(self.a(y) * self.b(y)).mean((2, 3))\n"
        "def make():\n    torch.manual_seed(0)\n    return M()\n"
    )
    asked = spec(
        images,
        tmp_path / "o",
        model=f"{tmp_path}/fork.py:make",
        bits="w4a4",
        method=["reconstruct"],
        method_arg={"reconstruct.steps": 10},
    )
    plain = {
        q.name: q.amax
        for q in quantize(
            spec(images, tmp_path / "p", model=f"{tmp_path}/fork.py:make", bits="w4a4")
        ).quantizers
    }
    learned = {q.name: q.amax for q in quantize(asked).quantizers}
    assert learned["a.input"] == learned["b.input"] != plain["a.input"]


def test_soft_rounding_starts_at_the_weight_and_ends_on_a_code():
    weight = torch.tensor([[0.26, -0.74, 0.5, 9.0]])
    soft = SoftRounding(weight, torch.tensor(0.5), -8, 7)
    assert torch.allclose((soft.floor + soft.up())[0, :2] * 0.5, weight[0, :2], atol=1e-3)
    soft().sum().backward()
    assert bool((soft.logits.grad[0, :3] != 0).all())
    assert soft.logits.grad[0, 3] == 0.0
    assert soft.hard().tolist() == [[0.5, -0.5, 0.5, 3.5]]
    with torch.no_grad():
        soft.logits.fill_(20.0)
    assert soft.hard()[0, 0] == 0.5
    # What runs while learning is what is kept, and the gradient still flows.
    assert torch.equal(soft(), soft.hard())


def test_a_learned_range_has_lsqs_gradient():
    # LSQ eq. 3: d out / d step is round(v) - v inside the codes and the outermost code outside;
    # times step in the log domain.
    learned = LearnedRange(torch.tensor(0.5), -8, 7)
    x = torch.tensor([0.6, 100.0, -100.0])
    learned(x, 1.0).sum().backward()
    assert learned.log_step.grad.item() == pytest.approx(((1.0 - 1.2) + 7.0 - 8.0) * 0.5, abs=1e-5)


def test_bias_correction_keeps_the_channel_means(images, tmp_path):
    errors = []
    for methods in ([], ["bias-correction"]):
        out = tmp_path / str(len(methods))
        quantize(spec(images, out, bits="w3a4", method=methods))
        from trtq.export.ort import open_session

        x = np.random.default_rng(0).normal(size=(64, 3, 32, 32)).astype(np.float32)
        plain, quantized = (
            open_session(out / f"model.{k}.onnx").run(None, {"input": x})[0]
            for k in ("fp32", "qdq")
        )
        errors.append(float(np.abs((quantized - plain).mean(0)).max()))
    assert errors[1] < errors[0]


# ---- learning resumes --------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3])
def test_a_killed_learning_run_goes_on_and_ends_the_same(rank, images, tmp_path, monkeypatch):
    from trtq.train import learning_state as learning

    asked = {
        "bits": "w4a4",
        "method": ["reconstruct"],
        "method_arg": {
            "reconstruct.steps": 12,
            "reconstruct.keep": 0.5,
            "reconstruct.rank": rank,
        },
    }
    quantize(spec(images, tmp_path / "whole", **asked))
    wanted = Encodings.load(tmp_path / "whole" / "encodings.safetensors")

    class KilledError(Exception):
        pass

    class Dies:
        def __init__(self):
            self.steps, self.notes = 0, []

        def begin(self, label, total):
            self.learning = label == "Learning the rounding"

        def advance(self, count):
            if self.learning:
                self.steps += count
                if self.steps == 7:
                    raise KilledError

        def note(self, text):
            self.notes.append(text)

    monkeypatch.setattr(learning, "EVERY_S", 0.0)
    again = spec(images, tmp_path / "cut", **asked)
    with pytest.raises(KilledError):
        quantize(again, Dies())
    record = quantize(again)
    assert "reconstruct resumes at step 7 of 12, where an earlier run stopped" in record.notes
    got = Encodings.load(tmp_path / "cut" / "encodings.safetensors")
    assert all(torch.equal(got.amax[k], v) for k, v in wanted.amax.items())
    assert all(torch.equal(got.constants[k], v) for k, v in wanted.constants.items())
    (state,) = (tmp_path / "cut" / "cache").glob("learned-*.safetensors")
    state.write_bytes(state.read_bytes()[:1000])  # torn: it starts again, and ends the same
    quantize(again)
    assert Encodings.load(tmp_path / "cut" / "encodings.safetensors").digest() == got.digest()


def test_images_are_mirrored_left_to_right_whatever_the_order_of_their_axes():
    x = torch.rand(2, 3, 8, 9)
    (first,) = _mirrored((x,))
    (last,) = _mirrored((x.permute(0, 2, 3, 1),))
    assert torch.equal(first, x.flip(3)) and torch.equal(last.permute(0, 3, 1, 2), first)
    other = (torch.rand(2, 8),)
    assert _mirrored(other) is other


def test_the_generator_of_a_gpu_is_taken_up_too(tmp_path, monkeypatch):
    states = {0: torch.tensor([1], dtype=torch.uint8), 1: torch.tensor([2], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda gpu: states[gpu])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: states.update({gpu: state}))

    def state(*gpus: int) -> LearningState:
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
        return LearningState(optimizer, torch.Generator(), key="run", gpus=gpus)

    state(1).save(tmp_path, 3, [1.0, 0.5], last=True)
    states[1] = torch.tensor([9], dtype=torch.uint8)
    assert state(1).load(tmp_path) == (3, [1.0, 0.5])
    assert states[1].tolist() == [2]
    assert states[0].tolist() == [1]
    assert state(0).load(tmp_path) == (0, [])  # of another GPU: its numbers are not known


def _refined(images, out, arguments, **changes):
    values = {f"refine.{name}": value for name, value in arguments.items()}
    asked = spec(images, out, calib_images=16, method=["refine"], method_arg=values, **changes)
    return quantize(asked)


def test_refining_at_8_bits_is_kept_where_samples_that_were_not_learned_from_gain(images, tmp_path):
    clipped = {"calibrator": "percentile", "percentile": 97.0}
    result = _refined(images, tmp_path / "r", {"steps": 60}, **clipped)
    did = result.methods[0].did
    before, after = did["error"]
    assert did["kept"] and after < 0.95 * before
    assert (did["held_out"], did["images"]) == (4, 12)
    plain = quantize(spec(images, tmp_path / "p", calib_images=16, **clipped))
    assert result.parity.quantization_sqnr_db > plain.parity.quantization_sqnr_db
    assert result.parity.passed
    assert any("that were not learned from: kept" in note for note in result.notes)


def test_refining_that_spoils_the_answers_is_taken_back(images, tmp_path):
    result = _refined(images, tmp_path / "r", {"steps": 4, "lr_range": 2.0})
    did = result.methods[0].did
    assert not did["kept"] and did["error"][1] > did["error"][0]
    assert any(note.endswith("not kept") for note in result.notes)
    plain = quantize(spec(images, tmp_path / "p", calib_images=16))
    assert [q.amax for q in result.quantizers] == [q.amax for q in plain.quantizers]
    assert result.parity.quantization_sqnr_db == plain.parity.quantization_sqnr_db


def test_refining_needs_samples_to_judge(images, tmp_path):
    with pytest.raises(CalibrationError) as e:
        quantize(spec(images, tmp_path / "o", calib_images=7, method=["refine"]))
    assert "holds every 4th sample out, and calibration has 7, expected at least 8" in str(e.value)
