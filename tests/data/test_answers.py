"""What an output is and how two models' answers compare.

Only outputs with scores of classes have predictions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.conftest import read, run_cli, spec
from trtq import EvaluateSpec, QuantizeSpec, evaluate, quantize
from trtq.data.answers import OutputComparison, Tally, compare_answers, kind_of, percent_words
from trtq.data.preprocess import batches
from trtq.data.source import open_source
from trtq.errors import CaptureError, ParityError, UsageError

RNG = np.random.default_rng(21)
MAP = RNG.normal(size=(5, 3, 3, 3)).astype(np.float32)
HEAD = RNG.normal(size=(5, 7)).astype(np.float32)


def onnx_file(path: Path, nodes, outputs, weights) -> Path:
    """A foreign file on images [batch, 3, 32, 32]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def conv(output: str = "c"):
    return helper.make_node(
        "Conv", ["x", "w"], [output], name="conv", kernel_shape=[3, 3], pads=[1] * 4
    )


def pixels_file(path: Path, noise: float) -> Path:
    """The class index of each pixel."""
    weights = {
        "w": (MAP + noise * np.random.default_rng(22).normal(size=MAP.shape)).astype(np.float32)
    }
    nodes = [conv(), helper.make_node("ArgMax", ["c"], ["y"], name="argmax", axis=1, keepdims=0)]
    return onnx_file(path, nodes, [("y", TensorProto.INT64, ["batch", 32, 32])], weights)


def index_file(path: Path, noise: float) -> Path:
    """The class index of each image."""
    weights = {
        "w": MAP,
        "wf": (HEAD + noise * np.random.default_rng(23).normal(size=HEAD.shape)).astype(np.float32),
    }
    nodes = [
        conv(),
        helper.make_node("GlobalMaxPool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["l"]),
        helper.make_node("ArgMax", ["l"], ["y"], axis=1, keepdims=0),
    ]
    return onnx_file(path, nodes, [("y", TensorProto.INT64, ["batch"])], weights)


def asked(images: Path, file: Path, reference: Path | None = None, **more):
    values = {
        "onnx": str(file),
        "reference": reference and str(reference),
        "data": str(images),
        "preset": "half",
        **more,
    }
    return EvaluateSpec.make(values)


def truth(images: Path, preprocess, *files: Path) -> list[np.ndarray]:
    """What the files answer, by ONNX Runtime alone."""
    import onnxruntime as ort

    source = open_source(str(images))
    x = torch.cat(list(batches(source, range(len(source)), preprocess, 8))).numpy()
    return [
        ort.InferenceSession(str(f), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for f in files
    ]


@pytest.mark.parametrize("make", [pixels_file, index_file])
def test_class_indices_are_counted_as_integers(make, images: Path, tmp_path: Path):
    ref, low = make(tmp_path / "ref.onnx", 0.0), make(tmp_path / "low.onnx", 2.0)
    record = evaluate(asked(images, low, ref))
    a, b = truth(images, record.preprocess, ref, low)
    assert record.outputs[0].equal == pytest.approx(100.0 * float((a == b).mean()), abs=1e-4)
    assert 0 <= record.outputs[0].equal < 90
    assert record.agreement is None
    assert record.top1 is None
    assert f"{record.outputs[0].equal:.2f} % of its integers equal" in record.summary
    assert "agreement" not in record.summary
    same = evaluate(asked(images, ref, ref))
    assert same.outputs[0].exact


def test_every_output_is_compared(images: Path, tmp_path: Path):
    def two(path: Path, noise: float) -> Path:
        nodes = [
            conv(),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
            helper.make_node("MatMul", ["logits", "wf"], ["embedding"]),
        ]
        outputs = [
            ("logits", TensorProto.FLOAT, ["batch", 5]),
            ("embedding", TensorProto.FLOAT, ["batch", 7]),
        ]
        return onnx_file(
            path, nodes, outputs, {"w": MAP, "wf": (HEAD * (1 + noise)).astype(np.float32)}
        )

    record = evaluate(
        asked(images, two(tmp_path / "low.onnx", 0.1), two(tmp_path / "ref.onnx", 0.0))
    )
    first, second = record.outputs
    assert (first.name, first.exact) == ("logits", True)
    assert second.sqnr_db == pytest.approx(20.0, abs=0.01)
    assert second.cosine == pytest.approx(1.0, abs=1e-6)
    assert "embedding: SQNR 20.00 dB, cosine 1.000000" in record.summary


def test_files_with_other_outputs_are_not_compared(images: Path, tmp_path: Path):
    nodes = [conv("y")]
    maps = onnx_file(
        tmp_path / "maps.onnx", nodes, [("y", TensorProto.FLOAT, ["batch", 5, 32, 32])], {"w": MAP}
    )
    both = onnx_file(
        tmp_path / "both.onnx",
        [conv("y"), helper.make_node("Relu", ["y"], ["z"])],
        [
            ("y", TensorProto.FLOAT, ["batch", 5, 32, 32]),
            ("z", TensorProto.FLOAT, ["batch", 5, 32, 32]),
        ],
        {"w": MAP},
    )
    with pytest.raises(
        UsageError, match=r"Cannot compare .*maps.onnx with .*both.onnx: outputs y and y, z differ"
    ):
        evaluate(asked(images, maps, both))
    index = index_file(tmp_path / "index.onnx", 0.0)
    with pytest.raises(UsageError, match=r"outputs \[16, 5, 32, 32\] and \[16\] differ \(y\)"):
        evaluate(asked(images, maps, index))


def test_answers_that_mean_nothing_end_with_3(images: Path, tmp_path: Path):
    nan = MAP.copy()
    nan[0, 0, 0, 0] = np.nan
    maps = [("y", TensorProto.FLOAT, ["batch", 5, 32, 32])]
    bad = onnx_file(tmp_path / "nan.onnx", [conv("y")], maps, {"w": nan})
    zero = onnx_file(tmp_path / "zero.onnx", [conv("y")], maps, {"w": np.zeros_like(MAP)})
    good = onnx_file(tmp_path / "good.onnx", [conv("y")], maps, {"w": MAP})
    for file, reference, words in (
        (bad, good, "NOT VALID: some answers are NaN or infinite"),
        (bad, None, "NOT VALID: some answers are NaN or infinite"),
        (zero, zero, "NOT VALID: the output y is the same for every image"),
    ):
        record = evaluate(asked(images, file, reference))
        assert not record.valid
        assert words in record.summary
    done = run_cli("evaluate", str(bad), "--data", str(images), "--preset", "half")
    assert done.returncode == 3, done.stderr
    assert "NOT VALID" in done.stdout


class Own(nn.Module):
    """A network with an answer of a chosen kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.kind = kind
        self.a, self.b, self.c = (
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.Conv2d(16, 12, 3, 1, 1),
        )
        self.fc = nn.Linear(12, 6)

    def forward(self, x):
        y = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        pooled = self.fc(y.mean((2, 3)))
        return {
            "embedding": nn.functional.normalize(pooled, dim=1),
            "boxes": y.flatten(2).transpose(1, 2)[..., :4].sigmoid(),
            "depth": y[:, :1].exp(),
            "map": y[:, 0],
            "angle": torch.atan2(pooled[:, 0], pooled[:, 1]),
            "index": pooled.argmax(1),
            "pixels": y.argmax(1),
            "scores and index": pooled.softmax(1).max(1),
        }[self.kind]


def own(kind: str = "embedding") -> nn.Module:
    return Own(kind)


@pytest.mark.parametrize(
    "kind", ["embedding", "boxes", "depth", "map", "angle", "index", "pixels", "scores and index"]
)
def test_what_is_not_scores_has_no_agreement(kind: str, images: Path, tmp_path: Path):
    record = quantize(
        spec(
            images,
            tmp_path / "out",
            model=f"{__name__}:own",
            model_arg={"kind": kind},
            preset_quant="auto",
        )
    )
    answer = record.parity.answer
    assert answer.agreement is None
    assert "agreement" not in record.summary
    whole = kind in ("index", "pixels")
    assert (answer.equal is not None) == whole
    assert whole or answer.sqnr_db > 5
    assert any("not known to be scores of classes" in n for n in record.notes)
    found = evaluate(
        asked(
            images, tmp_path / "out/model.qdq.onnx", tmp_path / "out/model.fp32.onnx", preset=None
        )
    )
    assert (found.agreement, found.top1) == (None, None)
    assert any("no top-1: " in n and "give --task classification, or" in n for n in found.notes)
    from trtq.report.summary import summarize_run

    assert not any("Agreement" in row[0] for row in summarize_run(tmp_path / "out").rows)
    assert "of its predictions" not in summarize_run(tmp_path / "out").verdict


def test_scores_are_known_by_the_model_or_by_labels(images: Path, tmp_path: Path, cnn_out: Path):
    assert read(cnn_out / "quantize.json")["parity"]["agreement"] is not None, (
        "four columns, four folders"
    )
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, f in enumerate(sorted(images.rglob("*.png"))):
        (flat / f"{i}.png").write_bytes(f.read_bytes())
    one = quantize(spec(flat, tmp_path / "a", model=f"{__name__}:unnamed"))
    assert one.parity.agreement is None
    other = quantize(
        spec(
            flat,
            tmp_path / "b",
            model="timm:test_resnet",
            model_arg={"num_classes": 7},
            input_size="3x64x64",
        )
    )
    assert other.parity.agreement is not None
    found = evaluate(
        asked(flat, tmp_path / "b/model.qdq.onnx", tmp_path / "b/model.fp32.onnx", preset=None)
    )
    assert found.agreement is not None, "the file says what its output is"


def test_a_file_that_says_values_learns_from_labels(images: Path, tmp_path: Path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, f in enumerate(sorted(images.rglob("*.png"))):
        (flat / f"{i}.png").write_bytes(f.read_bytes())
    made = quantize(spec(flat, tmp_path / "o", model=f"{__name__}:unnamed"))
    assert made.parity.kind == "values"
    found = evaluate(
        asked(images, tmp_path / "o/model.qdq.onnx", tmp_path / "o/model.fp32.onnx", preset=None)
    )
    assert found.top1 is not None, "four folders, four columns"
    assert found.agreement is not None


def unnamed() -> nn.Module:
    net = Own("embedding")
    net.fc = nn.Linear(12, 4)
    return net


def test_constant_outputs_beside_the_first_are_no_doubt_and_names_may_differ(
    images: Path, tmp_path: Path
):
    anchors = np.ones((1, 3), dtype=np.float32)

    def made(path: Path, name: str) -> Path:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], [name]),
            helper.make_node("Identity", ["anchors"], ["fixed"]),
        ]
        outputs = [(name, TensorProto.FLOAT, ["batch", 5]), ("fixed", TensorProto.FLOAT, [1, 3])]
        return onnx_file(path, nodes, outputs, {"w": MAP, "anchors": anchors})

    assert evaluate(
        asked(images, made(tmp_path / "a.onnx", "y"), made(tmp_path / "b.onnx", "y"))
    ).valid
    with pytest.raises(UsageError, match="outputs y, fixed and z, fixed differ"):
        evaluate(asked(images, tmp_path / "a.onnx", made(tmp_path / "c.onnx", "z")))


class Lossy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        return self.a(y), self.b(y)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def lossy() -> nn.Module:
    return Lossy()


def constant() -> nn.Module:
    return Constant()


def test_an_output_whose_loss_removes_weights_stops_the_command(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(
        CaptureError, match=r"2 weights serve the others alone and would be lost: b.bias, b.weight"
    ):
        quantize(spec(images, out, model=f"{__name__}:lossy", outputs=("out.0",)))
    record = quantize(spec(images, out, model=f"{__name__}:lossy"))
    assert [a.name for a in record.parity.answers] == ["out.0", "out.1"]


def test_a_model_that_does_not_look_is_refused(images: Path, tmp_path: Path):
    with pytest.raises(ParityError, match="The model gives the same answer for every image"):
        quantize(spec(images, tmp_path / "out", model=f"{__name__}:constant"))
    assert not (tmp_path / "out/quantize.json").exists()


def test_a_constant_answer_is_noted_where_random_numbers_may_be_the_reason(tmp_path: Path):
    said = "the model gives the same answer for every one of 4 samples"
    record = quantize(
        QuantizeSpec(
            model=f"{__name__}:constant",
            data="random:4",
            input_size=(3, 32, 32),
            out=str(tmp_path / "out"),
        )
    )
    assert any(n.startswith(said) for n in record.notes)


@pytest.mark.parametrize(
    ("shape", "integer", "classes", "kind"),
    [
        (["batch", 10], False, 10, "classes"),
        ([8, 10], False, None, "values"),
        ([8, 384], False, 10, "values"),
        ([8], False, 10, "values"),
        ([8, 1], False, 2, "values"),
        ([8, 21, 32, 32], False, 21, "pixels"),
        ([8, 21, 4], False, 21, "values"),
        ([8, 10], True, 10, "indices"),
        ([8, 1], False, 1, "values"),
    ],
)
def test_kinds(shape, integer, classes, kind):
    assert kind_of(shape, integer=integer, classes=classes) == kind


def test_all_of_them_is_never_rounded_up_to():
    assert percent_words(99.999) == "99.9 %"
    assert percent_words(99.999, 2) == "99.99 %"
    assert percent_words(100.0, 2) == "100.00 %"
    assert percent_words(42.46) == "42.5 %"


def test_what_differs_in_shape_or_is_not_finite_is_not_comparable():
    a = np.ones((3, 4), dtype=np.float32)
    for b in (np.ones((2, 4), dtype=np.float32), np.full((3, 4), np.nan, dtype=np.float32)):
        found = compare_answers("y", a, b, "classes")
        assert (found.finite, found.sqnr_db, found.cosine, found.agreement, found.exact) == (
            False,
            None,
            None,
            None,
            False,
        )
        assert found.words == "not comparable: shapes differ, or values are NaN or infinite"


def test_an_answer_to_zeros_is_a_difference():
    zeros, ones = np.zeros((2, 3), dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    found = compare_answers("y", zeros, ones)
    # The smallest normal float32, 1.18e-38, over the squares of six ones.
    assert found.sqnr_db == pytest.approx(-387.08, abs=0.01) and not found.exact
    assert compare_answers("y", zeros, zeros).exact


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_batches_add_up(seed: int, size: int):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 12, 5)).astype(np.float32)
    tally = Tally("y", "classes")
    for i in range(0, 12, size):
        tally.add(a[i : i + size], b[i : i + size])
    whole: OutputComparison = compare_answers("y", a, b, "classes")
    assert (
        tally.result.agreement
        == whole.agreement
        == pytest.approx(100 * (a.argmax(1) == b.argmax(1)).mean(), abs=1e-5)
    )
    assert tally.result.sqnr_db == pytest.approx(whole.sqnr_db)
    assert tally.result.cosine == pytest.approx(
        float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())), abs=1e-5
    )
