"""``trtq advise`` for a quantized model."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import trtq
from tests.conftest import run_cli
from trtq import AdviseSpec, BuildSpec, advise, build
from trtq.artifact import environment, header, sha256_file, write_json
from trtq.bench.record import BenchRecord, BenchRow, LayerTime
from trtq.commands.advise_int8 import quantizers
from trtq.cost.devices import find_device
from trtq.engine.choose_regions import EngineCosts, GraphCosts, choose, priced
from trtq.engine.int8_model import Int8Model
from trtq.engine.plan_kernels import read_plan_kernels
from trtq.engine.regions import compare_pieces
from trtq.errors import ArtifactError, UsageError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import digest_onnx, get_metadata, load_onnx
from trtq.files import ADVISE_JSON, ENCODINGS, FP32, QDQ
from trtq.graph.capture import capture
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize


class Mixed(nn.Module):
    """A depthwise convolution, one with many products, an attention and a head of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(32, 64, 1), nn.ReLU())
        self.big = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
        self.cls, self.box = nn.Conv2d(64, 11, 1), nn.Conv2d(64, 64, 1)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.point(self.depthwise(self.stem(x)))
        x = x + self.big(x)
        y = nn.functional.adaptive_avg_pool2d(x, 7).flatten(2).transpose(1, 2)
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(1, 2) / 8, -1)
        y = y + self.o(weights @ self.v(y))
        boxes = torch.cat([self.box(x).softmax(1), self.cls(x).sigmoid()], 1)
        return {"boxes": boxes.flatten(2), "text": y}


SIZE = 112
RTX = find_device("rtx3080")


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.fixture(scope="module")
def out(once) -> Path:
    """The folder of the quantized model."""
    torch.manual_seed(1)
    samples = [torch.randn(3, SIZE, SIZE) for _ in range(4)]
    return once("advised", lambda f: trtq.quantize(mixed(), samples).save(f))


def built(folder: Path, name: str, onnx_file: Path) -> Path:
    engine = folder / name
    build(
        BuildSpec(
            onnx=str(onnx_file),
            target="rtx3080",
            precision="fp16",
            batch=(1, 1, 1),
            out=str(engine),
        )
    )
    return engine


@pytest.fixture(scope="module")
def engines(once, out: Path) -> Path:
    """The INT8 and the FP16 engine of it."""
    pytest.importorskip("tensorrt_rtx")

    def make(folder: Path) -> None:
        built(folder, "int8.engine", out / QDQ)
        built(folder, "fp16.engine", out / FP32)

    return once("advised-engines", make)


def plan(engine: Path):
    kernels = read_plan_kernels(engine.read_bytes(), "1.7.1", 1)
    assert kernels is not None
    return kernels


def asked(model: Path, **changes):
    return advise(AdviseSpec(model=str(model), **changes))


def losing(record) -> set[str]:
    return {n for r in record.int8.losing for n in r.layers}


def test_the_graph_predicts_which_regions_lose(out: Path):
    record = asked(out, target="rtx3080")
    advice = record.int8
    assert advice.basis == "predicted" and advice.source == "roofline over the layers of the graph"
    assert "Predicted, not measured" in advice.how
    assert "depthwise.0/Conv" in losing(record) and "big.0/Conv" not in losing(record)
    kinds = {n: r.kind for r in advice.regions for n in r.layers}
    assert kinds["depthwise.0/Conv"] == "depthwise convolution"
    assert kinds["cls/Conv"] == kinds["box/Conv"] == "convolution, head"
    assert (record.strategy, record.precision) == ("INT8, losing regions in FP16", "INT8 / FP16")
    assert advice.chosen_ms < min(advice.int8_ms, advice.fp16_ms)
    assert "are predicted to lose from INT8 on the GeForce RTX 3080" in record.summary
    assert any("no engine of the file is known" in n for n in record.notes)
    # The layers that read one tensor are one region, and so are the products of an attention.
    sets = {frozenset(r.layers) for r in advice.regions}
    assert {"q/MatMul", "k/MatMul", "v/MatMul"} in sets and {"qk/MatMul", "av/MatMul"} in sets


def test_the_graph_has_the_kernels_of_the_plan(out: Path, engines: Path):
    """Bytes of the convolutions are equal within what the plan adds for small constants.

    The plan counts a shortcut twice where it is the convolution's input, too.
    """
    alone = ("depthwise.0/Conv", "point.0/Conv", "box/Conv")
    model = Int8Model(load_onnx(out / QDQ), "m", {}, 1, True)
    for name, in_float in (("int8", frozenset()), ("fp16", frozenset(model.quantized.layers))):
        kernels = plan(engines / f"{name}.engine")
        convs = {n: k for k in kernels for n in k.layers if k.kind == "conv" and "/Conv" in n}
        for kernel in model.kernels(in_float):
            if kernel.kind == "conv" and kernel.name in alone:
                assert kernel.bits == pytest.approx(convs[kernel.name].bits, rel=0.02), kernel
                assert kernel.precision == convs[kernel.name].precision
        own = sum(k.time(RTX).ms for k in model.kernels(in_float))
        assert own == pytest.approx(sum(k.time(RTX).ms for k in kernels), rel=0.3), name


def test_a_fused_kernel_has_the_products_of_its_body(out: Path, engines: Path):
    kernels = plan(engines / "fp16.engine")
    big = [k for k in kernels if "big.0/Conv" in k.layers]
    assert [(k.kind, k.macs) for k in big] == [("conv", (SIZE // 2) ** 2 * 64 * 64 * 9)]
    assert not any(k.unknown for k in kernels)


def test_two_plans_decide_and_the_new_engine_is_as_predicted(
    out: Path, engines: Path, tmp_path: Path
):
    record = asked(
        out, engine=str(engines / "int8.engine"), keep_winners=True, out=str(tmp_path / "w")
    )
    assert record.int8.source == "roofline over the kernels of int8.engine and fp16.engine"
    assert "depthwise.0/Conv" in losing(record) and "big.0/Conv" not in losing(record)
    assert record.int8.undecided == []
    engine = built(tmp_path, "w.engine", tmp_path / "w" / QDQ)
    ms = sum(k.time(RTX).ms for k in plan(engine))
    whole = sum(k.time(RTX).ms for k in plan(engines / "int8.engine"))
    assert ms < whole
    assert record.int8.chosen_ms == pytest.approx(ms - whole + record.int8.int8_ms, rel=0.05)


def scales(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    nodes = (n for n in model.graph.node if n.op_type == "DequantizeLinear")
    return {n.name: held[n.input[1]] for n in nodes}


def test_the_new_file_is_the_old_one_without_the_losing_pairs(out: Path, tmp_path: Path):
    record = asked(out, target="rtx3080", keep_winners=True, out=str(tmp_path))
    before, after = load_onnx(out / QDQ), load_onnx(tmp_path / QDQ)
    assert 0 < count_qdq(after) < count_qdq(before)
    assert set(record.int8.removed) == quantizers(before) - quantizers(after)
    assert all(np.array_equal(v, scales(before)[k]) for k, v in scales(after).items())
    kept = get_metadata(after)["kept_float"]
    assert set(kept) == losing(record)
    assert kept["depthwise.0/Conv"].startswith("predicted for the GeForce RTX 3080 10 GB (roofline")
    # The same file comes from the model and the encodings that were written beside it.
    encodings = Encodings.load(tmp_path / ENCODINGS)
    assert get_metadata(after)["encodings_sha256"] == encodings.digest()
    name = "depthwise.0.input"
    why = "INT8 is slower there, predicted (trtq advise)"
    assert encodings.left_in_float[name] == why and name not in encodings.amax
    assert encodings.left_in_float["k.input"] == why  # it has the node of q.input
    x = torch.randn(2, 3, SIZE, SIZE)
    graph = capture(mixed(), {"x": x}).module
    simulated = insert_fake_quantize(graph, placement_of(graph, encodings), encodings)
    session = ort.InferenceSession(tmp_path / QDQ)
    (name,) = (i.name for i in session.get_inputs())
    answers = session.run(None, {name: x.numpy()})
    for own, other in zip(simulated(x), answers, strict=True):
        assert torch.allclose(own, torch.from_numpy(other), atol=2e-4)
    assert set(record.int8.files) == {QDQ, FP32, ENCODINGS}
    assert json.loads((tmp_path / ADVISE_JSON).read_text())["int8"]["basis"] == "predicted"
    assert digest_onnx(tmp_path / FP32) == digest_onnx(out / FP32)


def test_a_file_without_names_and_without_encodings(out: Path, tmp_path: Path):
    model = load_onnx(out / QDQ)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "m.onnx")
    record = asked(
        tmp_path / "m.onnx", target="rtx3080", keep_winners=True, out=str(tmp_path / "w")
    )
    assert record.int8.losing and count_qdq(load_onnx(tmp_path / "w" / QDQ)) < count_qdq(model)
    assert any(n.startswith("no encodings.safetensors was written") for n in record.notes)


def test_a_shortcut_loses_its_pair_with_its_convolution(cnn_out: Path):
    model = Int8Model(load_onnx(cnn_out / QDQ), "m", {}, 1, True)
    adds = [n for n in model.quantized.reads if n not in model.quantized.layers]
    assert adds == model.riders(frozenset({"conv1/Conv"}))
    assert model.riders(frozenset({"stem/Conv"})) == []


def measured(folder: Path, out: Path, int8: dict[str, float], fp16: dict[str, float], **changes):
    """Write a record of the layers of two files."""
    rows = []
    for name, layers in ((QDQ, int8), (FP32, fp16)):
        given = {
            "file": str(out / name),
            "file_sha256": digest_onnx(out / name),
            "file_bytes": 1,
            "kind": "onnx",
            "device": "Jetson AGX Orin",
            "mode": "latency",
            "batch": 1,
            "input_shape": [1, 3, SIZE, SIZE],
            "settings": {},
            "valid": True,
            "reasons": [],
            "layers": [
                LayerTime(name=n, module=n, kind="layer", ms=ms, share=0.1)
                for n, ms in layers.items()
            ],
        }
        rows.append(BenchRow(**{**given, **changes.get(name, {})}))
    record = BenchRecord(
        **header("bench", trtq.BenchSpec(file=("a", "b"))),
        command="",
        rows=rows,
        verdicts=[],
        card={},
        valid=True,
        notes=[],
        seconds=0.0,
        environment=environment(),
    )
    write_json(folder / "bench.json", record)
    return str(folder / "bench.json")


LAYERS = {
    "stem.0/Conv + stem.1.silu/Mul": 0.2,
    "depthwise.0/Conv + depthwise.1.hardtanh/Clip": 0.1,
    "big.0/Conv || big.1.relu/Relu": 0.5,
    "Reformatting CopyNode for Input Tensor 0": 0.01,
}


def test_measured_layers_decide(out: Path, tmp_path: Path):
    """Here the depthwise convolution wins and the large one loses, against the prediction."""
    slower = {**LAYERS, "big.0/Conv || big.1.relu/Relu": 0.3}
    slower["depthwise.0/Conv + depthwise.1.hardtanh/Clip"] = 0.4
    path = measured(tmp_path, out, LAYERS, slower)
    record = asked(out, target="orin", measured=(path,), keep_winners=True, out=str(tmp_path / "w"))
    assert losing(record) == {"big.0/Conv"}
    assert record.int8.basis == "measured"
    assert "1 of 3 regions lose from INT8 on the Jetson AGX Orin" in record.summary
    assert "bench.json on Jetson AGX Orin)" in record.summary
    assert (record.int8.unnamed, round(record.int8.unnamed_ms, 3)) == (2, 0.02)
    assert "cls/Conv" in record.int8.undecided
    assert any("quantized layers remain in INT8" in n for n in record.notes)
    kept = get_metadata(load_onnx(tmp_path / "w" / QDQ))["kept_float"]["big.0/Conv"]
    assert kept.startswith("measured for the Jetson AGX Orin") and "FP16 saves 0.2" in kept


def test_generated_kernels_are_named_by_the_plan(out: Path, engines: Path, tmp_path: Path):
    """Profiles of TensorRT for RTX have names of kernels, not of nodes."""
    rows = {}
    for name in ("int8", "fp16"):
        path = engines / f"{name}.engine"
        kernels = plan(path)
        layers = {f"{k.name}_myl0_{i}": k.time(RTX).ms for i, k in enumerate(kernels)}
        rows[name] = path, layers
    digest = {n: sha256_file(p) for n, (p, _) in rows.items()}
    changes = {
        file: {"file": str(rows[n][0]), "file_sha256": digest[n], "kind": "engine"}
        for n, file in (("int8", QDQ), ("fp16", FP32))
    }
    path = measured(tmp_path, out, rows["int8"][1], rows["fp16"][1], **changes)
    record = asked(out, engine=str(rows["int8"][0]), measured=(path,))
    assert record.int8.undecided == [] and record.int8.basis == "measured"
    model = Int8Model(load_onnx(out / QDQ), "m", {}, 1, True)
    sides = [list(priced(plan(engines / f"{n}.engine"), RTX)) for n in ("int8", "fp16")]
    compared = compare_pieces(model.quantized, *sides)
    expected = choose(EngineCosts(compared.sides, model, RTX))
    assert losing(record) == {n for r in expected.regions if r.loses for n in r.layers}


def test_the_command_that_writes_the_file_has_the_options_of_the_advice(out: Path, tmp_path: Path):
    """Without them another basis would choose other regions."""
    copy = tmp_path / "a folder"
    shutil.copytree(out, copy)
    slower = {**LAYERS, "big.0/Conv || big.1.relu/Relu": 0.3}
    path = measured(tmp_path, copy, LAYERS, slower)
    record = asked(copy, target="orin", measured=(path,), batch=2)
    assert record.precision == "INT8 / FP16"
    words = shlex.split(record.commands[0])
    given = ["--target", "orin", "--measured", path, "--batch", "2"]
    assert words == ["trtq", "advise", str(copy), *given, "--keep-winners", "--out", "winners"]


def test_all_or_nothing(out: Path, tmp_path: Path):
    faster = dict.fromkeys(LAYERS, 0.01)
    names = {n: 0.1 for r in asked(out, target="orin").int8.regions for n in r.layers}
    path = measured(tmp_path, out, names, dict.fromkeys(names, 0.05))
    record = asked(out, target="orin", measured=(path,), keep_winners=True, out=str(tmp_path / "w"))
    assert (record.strategy, record.precision) == ("FP16 engine, no quantization", "FP16")
    assert "no new file was written: every region loses from INT8" in record.notes
    assert record.commands[0].startswith(f"trtq build {out / FP32} --target orin --precision fp16")
    assert not (tmp_path / "w" / QDQ).exists() and (tmp_path / "w" / ADVISE_JSON).is_file()
    path = measured(tmp_path, out, faster, LAYERS)
    record = asked(out, target="orin", measured=(path,), keep_winners=True, out=str(tmp_path / "x"))
    assert record.strategy == "INT8 everywhere" and record.int8.losing == []
    assert "no new file was written: no region loses from INT8" in record.notes


def test_fused_kernels_of_full_tensorrt_quantize_before_what_moves_values(out: Path):
    """On other targets an INT8 convolution and its epilogue are one kernel."""
    apart, fused = (Int8Model(load_onnx(out / QDQ), "m", {}, 1, rtx) for rtx in (True, False))
    assert any(k.name == "big.0/Conv epilogue" for k in apart.kernels(frozenset()))
    assert not any("epilogue" in k.name for k in fused.kernels(frozenset()))
    choice = choose(GraphCosts(fused, find_device("xavier")))
    assert choice.chosen_ms <= min(choice.int8_ms, choice.fp16_ms) * 1.001


class Joined(nn.Module):
    """Two convolutions whose results are joined, and one that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))


def test_a_concat_moves_codes_where_its_readers_read_codes():
    """TensorRT moves the QuantizeLinear before it: the convolutions write codes."""
    made = trtq.quantize(Joined().eval(), [torch.randn(3, 16, 16) for _ in range(4)])
    model = Int8Model(made.done.qdq, "m", {}, 1, False)
    names = [k.name for k in model.conversions(frozenset())]
    assert names == ["input to codes"]
    left = [k.name for k in model.conversions(frozenset({"a/Conv"}))]
    assert len(left) == 2 and "input to codes" in left  # a's result, before it is joined
    (concat,) = [k for k in model.kernels(frozenset()) if k.kind == "Concat"]
    assert concat.bits == 2 * 8 * 16 * 14 * 14
    assert [k.name for k in model.conversions(frozenset({"c/Conv"}))] == ["input to codes"]


def test_launches_that_decide_are_said(out: Path):
    notes = asked(out, target="orin").notes
    assert any("of the predicted time are launches, 100 us a kernel" in n for n in notes)


def refused(error, match: str, model: Path, **changes) -> None:
    with pytest.raises(error, match=match):
        asked(model, **changes)


def test_what_does_not_fit_is_refused(out: Path, cnn_out: Path, tmp_path: Path):
    refused(UsageError, "--data is for a float model: .* is quantized already", out, data="x")
    refused(UsageError, "--keep-winners needs --out", out, keep_winners=True)
    refused(UsageError, "trtq advise needs --target: .* does not say which device", out)
    refused(UsageError, "Cannot advise on INT8 for the .*: it has no INT8 ker", out, target="nano")
    refused(
        UsageError,
        "--out would overwrite the file it reads",
        out,
        target="orin",
        keep_winners=True,
        out=str(out),
    )
    refused(
        UsageError,
        "Cannot use --shapes y=: .* has no input y",
        out,
        target="orin",
        shapes=("y=1x3x8x8",),
    )
    refused(
        UsageError,
        "--keep-winners is for a quantized model: .* has no Q/DQ pairs",
        out / FP32,
        keep_winners=True,
        out=str(tmp_path),
    )
    refused(UsageError, "trtq advise needs --data", out / FP32)


def test_an_engine_of_another_file_or_device_is_refused(
    out: Path, engines: Path, cnn_out: Path, tmp_path: Path
):
    int8 = str(engines / "int8.engine")
    refused(ArtifactError, "int8.engine is not of .*: it was built from", cnn_out, engine=int8)
    refused(
        UsageError,
        r"Cannot advise for orin with this engine: it was built for rtx3080 \(compute capability "
        "8.6",
        out,
        engine=int8,
        target="orin",
    )
    other = built(tmp_path, "other.engine", cnn_out / FP32)
    refused(
        ArtifactError,
        "other.engine is not of the same model as .*int8.engine: none of its kernels names",
        out,
        engine=int8,
        baseline=str(other),
    )


def test_records_that_say_nothing_are_refused(out: Path, tmp_path: Path):
    path = measured(tmp_path, out, LAYERS, {})
    refused(
        ArtifactError,
        f"Cannot compare the layers in .*: expected layer times .*, found .*{QDQ} and none",
        out,
        target="orin",
        measured=(path,),
    )
    path = measured(tmp_path, out, LAYERS, LAYERS, **{FP32: {"device": "T4"}})
    refused(
        ArtifactError,
        "device is Jetson AGX Orin for .* and T4 for",
        out,
        target="orin",
        measured=(path,),
    )
    path = measured(tmp_path, out, {"a": 1.0}, {"b": 1.0})
    refused(
        ArtifactError,
        "Cannot use the layer times .*: no layer of the two names a quantized layer",
        out,
        target="orin",
        measured=(path,),
    )
    other = tmp_path / "c.json"
    other.write_text(json.dumps({"verb": "compare", "schema": 1}))
    why = "it is of trtq compare, expected trtq bench. Measure both, .*, and give DIR/bench.json"
    refused(ArtifactError, why, out, target="orin", measured=(str(other),))


def test_the_command_line(out: Path, tmp_path: Path):
    done = run_cli(
        "advise", str(out), "--target", "rtx3080", "--keep-winners", "--out", str(tmp_path / "w")
    )
    assert done.returncode == 0, done.stderr
    assert "FP16 (predicted): depthwise.0/Conv (depthwise convolution): INT8 " in done.stdout
    assert (
        f"$ trtq build {tmp_path}/w/model.qdq.onnx --target rtx3080 --precision fp16" in done.stdout
    )
