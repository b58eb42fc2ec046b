"""The answers of an engine compared with those of its model."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

from tests.support.builds import asked
from tests.support.onnx_files import model_of
from trtq import build
from trtq.engine.agreement import answers
from trtq.engine.runner import EngineRunner, OnnxRunner
from trtq.errors import AgreementError, UsageError

FLOAT = onnx.TensorProto.FLOAT

# ---- pain 3: the agreement gate ----------------------------------------------------------------


def test_agreement_without_a_gpu_runs_what_exists_and_says_so(files, images, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = build(
        asked(files, tmp_path, backend="auto", precision="fp16", data=str(images), check_images=8)
    )
    (one,) = made.agreement.comparisons
    assert one.runner == "what was built, in ONNX Runtime, every FP16 result rounded"
    assert one.passed and one.sqnr_db > 15.0
    assert any("torch's simulation agreed with the file on" in m for m in made.agreement.missing)
    assert any(
        "the engine did not run: it needs its NVIDIA GPU" in m for m in made.agreement.missing
    )
    same = build(asked(files, tmp_path, backend="auto", data=str(images), check_images=8))
    assert same.agreement.comparisons == []
    assert "nothing but the file itself ran" in same.summary


def test_pain_3_a_wrong_engine_fails_and_the_place_is_named(
    files, images, tmp_path, tensorrt, monkeypatch
):
    """The builder below doubles the scale of one layer.

    The shipped engine computes something else than the file.
    """
    tensorrt("10.3.0")
    monkeypatch.setattr("trtq.engine.verify.EngineRunner", partial(EngineRunner, device="cpu"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    good = build(asked(files, tmp_path, data=str(images), check_images=8))
    assert [c.runner for c in good.agreement.comparisons] == ["engine"]
    assert good.agreement.comparisons[0].agreement == 100.0
    kept = (tmp_path / "e.engine").read_bytes()
    broken = tmp_path / "fake-10.3.0/sitecustomize.py"
    broken.write_text(
        "import numpy as np, onnx\n"
        "from onnx import numpy_helper\n"
        "import trtq.testing.tensorrt as fake\n"
        "right = fake._Parser.parse\n"
        "def parse(self, model):\n"
        "    done = right(self, model)\n"
        "    graph = self.network.model.graph\n"
        "    pair = next(n for n in graph.node if n.name == 'conv1.input/DequantizeLinear')\n"
        "    scale = next(t for t in graph.initializer if t.name == pair.input[1])\n"
        "    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale) * "
        "np.float32(2), 'doubled'))\n"
        "    pair.input[1] = 'doubled'\n"
        "    return done\n"
        "fake._Parser.parse = parse\n"
    )
    with pytest.raises(
        AgreementError,
        match=r"does not compute what the ONNX file says: engine: .*they part first at conv1.input",
    ):
        build(asked(files, tmp_path, data=str(images), check_images=8))
    assert (tmp_path / "e.engine").read_bytes() == kept  # the engine that was right stays


def test_the_engine_that_ships_is_the_one_that_runs(files, images, tmp_path, tensorrt, monkeypatch):
    """The first plan of a builder is wrong and its second is right: the first must be compared."""
    tensorrt("10.3.0")
    monkeypatch.setattr("trtq.engine.verify.EngineRunner", partial(EngineRunner, device="cpu"))
    flag = tmp_path / "built-once"
    (tmp_path / "fake-10.3.0/sitecustomize.py").write_text(
        "import pathlib, onnx\n"
        "from onnx import numpy_helper\n"
        "import trtq.testing.tensorrt as fake\n"
        "right = fake._Parser.parse\n"
        "def parse(self, model):\n"
        "    done = right(self, model)\n"
        f"    flag = pathlib.Path({str(flag)!r})\n"
        "    if not flag.exists():\n"
        "        flag.touch()\n"
        "        t = next(t for t in self.network.model.graph.initializer if t.name == "
        "'head.weight')\n"
        "        t.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(t), t.name))\n"
        "    return done\n"
        "fake._Parser.parse = parse\n"
    )
    with pytest.raises(
        AgreementError, match="engine: .*they part first at the output, after the last of them"
    ):
        build(asked(files, tmp_path, data=str(images), check_images=10, batch=(4, 8, 8)))
    assert not (tmp_path / "e.engine").exists()


def test_fp16_that_overflows_does_not_pass(files, images, tmp_path):
    """ONNX Runtime computes chains of FP16 ops in float32 and shows no overflow.

    The gate rounds every result.
    """
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(files / "model.fp32.onnx")
    big = onnx.numpy_helper.from_array(np.float32(3e4), "big")
    small = onnx.numpy_helper.from_array(np.float32(1 / 3e4), "small")
    model.graph.initializer.extend([big, small])
    first = model.graph.node[0]
    up = [
        onnx.helper.make_node("Mul", ["input", "big"], ["u"], name="up"),
        onnx.helper.make_node("Mul", ["u", "big"], ["v"], name="up2"),
    ]
    down = [
        onnx.helper.make_node("Mul", ["v", "small"], ["w"], name="d"),
        onnx.helper.make_node("Mul", ["w", "small"], ["x2"], name="d2"),
    ]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "input":
                node.input[i] = "x2"
    nodes = [*up, *down, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for entry in list(model.metadata_props):
        if entry.key == "trtq.float_nodes":
            model.metadata_props.remove(entry)
    onnx.save(model, tmp_path / "m.onnx")
    assert first.op_type
    with pytest.raises(
        AgreementError,
        match="every FP16 result rounded: an output is missing, NaN or infinite.*they part first "
        "at",
    ):
        build(
            asked(
                files,
                tmp_path,
                onnx=f"{tmp_path}/m.onnx",
                backend="auto",
                precision="fp16",
                data=str(images),
            )
        )


def test_agreement_needs_to_know_the_preprocessing(files, images, tmp_path):
    model = onnx.load(files / "model.qdq.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(
        UsageError, match="the file does not say how images become its input. Leave --data out"
    ):
        build(
            asked(
                files, tmp_path, onnx=f"{tmp_path}/foreign.onnx", backend="auto", data=str(images)
            )
        )


def test_texts_of_several_lengths_are_compared():
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")]
    shape = ["batch", "length", 2]
    model = model_of(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    batches = [np.full((1, length, 2), length, np.float32) for length in (3, 5)]
    got = answers(OnnxRunner(model), batches)
    assert got["y"].tolist() == [3.0] * 6 + [5.0] * 10
