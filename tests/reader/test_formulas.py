"""Operators that exporters write as formulas: read as one, written back to the same numbers."""

import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from tests.reader.test_files import assert_round_trip, written
from tests.support.onnx_files import model_of, random_weight
from trtq import ops
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.reader import read_onnx

FLOAT = TensorProto.FLOAT
ROOT = math.sqrt(0.5)
TANH = math.sqrt(2 / math.pi)
NUMBERS = {
    "root": ROOT,
    "two_root": math.sqrt(2),
    "half": 0.5,
    "one": 1,
    "two": 2,
    "three": 3,
    "six": 6,
    "sixth": 1 / 6,
    "zero": 0,
    "tanh": TANH,
    "cubic": 0.044715,
    "eps": 1e-5,
    "minus_half": -0.5,
}
# Each line is a node: its type, its operands and its result. x is the input, y the output.
FORMULAS = {
    "Gelu": [
        "Div x two_root a; Erf a b; Add b one c; Mul x c d; Mul d half y",
        "Mul x root a; Erf a b; Add one b c; Mul half c d; Mul x d y",
        "Mul x half h; Div x two_root a; Erf a b; Add b one c; Mul h c y",
        "Mul x root a; Erf a b; Mul b half c; Add c half d; Mul d x y",
        "Pow x three p; Mul p cubic q; Add x q r; Mul r tanh s; Tanh s t; Add t one u; "
        "Mul x half v; Mul v u y",
        "Mul x x p; Mul p x p3; Mul cubic p3 q; Add x q r; Mul tanh r s; Tanh s t; Add one t u; "
        "Mul u half v; Mul x v y",
        "Mul x tanh a; Mul x x p; Mul p cubic q; Add q one r; Mul a r s; Tanh s t; Add t one u; "
        "Mul x half v; Mul v u y",
    ],
    "Swish": ["Sigmoid x s; Mul x s y", "Sigmoid x s; Mul s x y"],
    "Mish": ["Softplus x s; Tanh s t; Mul x t y"],
    "HardSwish": [
        "Add x three a; Clip a zero six b; Mul x b c; Div c six y",
        "Add x three a; Clip a zero six b; Div b six c; Mul x c y",
        "Mul x sixth a; Add a half b; Clip b zero one c; Mul c x y",
        "HardSigmoid x s; Mul x s y",
    ],
    "HardSigmoid": ["Add x three a; Clip a zero six b; Mul b sixth y"],
    "Softmax": [
        "ReduceMax x m; Sub x m a; Exp a e; ReduceSum e last s; Div e s y",
        "Exp x e; ReduceSum e last s; Reciprocal s r; Mul e r y",
    ],
    "LayerNormalization": [
        "ReduceMean x m; Sub x m d; Pow d two p; ReduceMean p v; Add v eps a; Sqrt a s; "
        "Div d s n; Mul n scale w; Add w shift y",
        "ReduceMean x m; Sub x m d; Sub x m d2; Mul d2 d2 p; ReduceMean p v; Add eps v a; "
        "Sqrt a s; Reciprocal s r; Mul d r n; Mul scale n w; Add shift w y",
        "ReduceMean x m; Sub x m d; Mul d d p; ReduceMean p v; Add v eps a; Pow a minus_half r; "
        "Mul d r y",
        "ReduceMean x m; Sub x m d; Pow d two p; ReduceMean p v; Add v eps a; Pow a half s; "
        "Div d s n; Mul n scale3 y",
    ],
}
CASES = [(name, text) for name, texts in FORMULAS.items() for text in texts]
SETTINGS = {
    "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
    "ReduceMean": {"axes": [-1], "keepdims": 1},
    "ReduceMax": {"axes": [-1], "keepdims": 1},
}


def formula(text, *, outputs=("y",), opset=14, behind="y", dtype=np.float32, **settings):
    """A linear layer, a formula and another linear layer; the formula's result is ``behind``."""
    arrays = {k: np.array(v, dtype) for k, v in NUMBERS.items()}
    arrays |= {"matrix": random_weight(6, 8).astype(dtype), "last": np.array([-1], np.int64)}
    arrays["scale"] = np.linspace(0.5, 2, 8, dtype=dtype)
    arrays["shift"] = np.linspace(-1, 1, 8, dtype=dtype)
    arrays["scale3"] = arrays["scale"].reshape(1, 1, 8)
    nodes = [helper.make_node("MatMul", ["given", "matrix"], ["x"], "first")]
    for line in text.split(";"):
        op_type, *operands, result = line.split()
        attributes = {**SETTINGS, **settings}.get(op_type, {})
        nodes.append(helper.make_node(op_type, operands, [result], f"act/{result}", **attributes))
    nodes.append(helper.make_node("Neg", [behind], ["z"], "last"))
    kind = FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    read = {i for n in nodes for i in n.input}
    weights = {k: v for k, v in arrays.items() if k in read}
    results = [(o, kind, ["batch", 5, None]) for o in (*outputs, "z") if o != "y"]
    return model_of(
        nodes, [("given", kind, ["batch", 5, 6])], results, weights, opset=opset, check=False
    )


def assert_same(model, module):
    """The module computes what ONNX Runtime computes of the file."""
    given = np.random.default_rng(1).standard_normal((2, 5, 6)).astype(np.float32)
    wanted = open_session(model).run(None, {"given": given})
    with torch.no_grad():
        results = module(torch.from_numpy(given))
    for one, got in zip(wanted, results.values(), strict=True):
        assert np.abs(one - got.numpy()).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.parametrize(("op_type", "text"), CASES)
def test_a_formula_is_read_as_its_operator_and_computes_the_same(op_type, text):
    model = formula(text)
    module = read_onnx(model)
    assert [n.op_type for n in module.nodes] == ["MatMul", op_type, "Neg"]
    assert module.notes == [
        f"operators that the file has as formulas are read as one each: 1 {op_type}"
    ]
    assert_same(model, module)


@pytest.mark.parametrize("op_type", FORMULAS)
def test_a_formula_is_one_call_of_the_graph_and_is_written_back(tmp_path, op_type):
    model = formula(FORMULAS[op_type][0])
    loaded, made = written(tmp_path, model, opset=14)
    kinds = [ops.of(n).name for n in loaded.graph.module.graph.nodes if n.op == "call_function"]
    wanted = {"Swish": "silu", "LayerNormalization": "layer_norm"}.get(op_type, op_type.lower())
    assert kinds == ["linear", wanted, "neg"]
    assert_round_trip(model, loaded, made)
    assert_round_trip(model, loaded, export_onnx(loaded.graph.module, opset=20))


def test_the_last_node_of_a_formula_keeps_its_name(tmp_path):
    _, made = written(tmp_path, formula(FORMULAS["Gelu"][0]), opset=14)
    assert [(n.name, n.op_type) for n in made.graph.node] == [
        ("first", "MatMul"),
        ("act.y.gelu/Mul", "Mul"),
        ("act.y.gelu/Erf", "Erf"),
        ("act.y.gelu/Add", "Add"),
        ("act.y.gelu/Mul_1", "Mul"),
        ("act/y", "Mul"),
        ("last", "Neg"),
    ]


NEARLY = {
    "another factor": "Mul x half a; Erf a b; Add b one c; Mul x c d; Mul d half y",
    "another result": "Div x two_root a; Erf a b; Add b one c; Mul x c y",
    "of two tensors": "Sigmoid x s; Abs x n; Mul n s y",
    "another slope": "HardSigmoid x s; Mul x s y",
    "without epsilon": "ReduceMean x m; Sub x m d; Mul d d p; ReduceMean p v; Sqrt v s; Div d s y",
    "of another mean": "ReduceMean x m; Abs x n; Sub n m d; Mul d d p; ReduceMean p v; "
    "Add v eps a; Sqrt a s; Div d s y",
    "upside down": "Exp x e; ReduceSum e last s; Div s e y",
    "another cube": "Pow x two p; Mul p cubic q; Add x q r; Mul r tanh s; Tanh s t; Add t one u; "
    "Mul x half v; Mul v u y",
}


@pytest.mark.parametrize("text", NEARLY.values(), ids=NEARLY)
def test_what_is_no_formula_stays_as_it_is(text):
    settings = {"HardSigmoid": {"alpha": 0.2, "beta": 0.5}}
    model = formula(text, **settings)
    module = read_onnx(model)
    assert len(module.nodes) == len(model.graph.node)
    assert not module.notes
    assert_same(model, module)


def test_a_formula_whose_inside_is_read_elsewhere_stays():
    model = formula(FORMULAS["Swish"][0], outputs=("s",))
    module = read_onnx(model)
    assert [n.op_type for n in module.nodes] == ["MatMul", "Sigmoid", "Mul", "Neg"]
    assert_same(model, module)


def test_a_norm_whose_product_is_read_elsewhere_ends_before_it():
    model = formula(FORMULAS["LayerNormalization"][0], outputs=("n",))
    module = read_onnx(model)
    types = [n.op_type for n in module.nodes]
    assert types == ["MatMul", "LayerNormalization", "Mul", "Add", "Neg"]
    assert_same(model, module)


def test_axes_from_the_front_are_the_last_ones_where_the_rank_says_so():
    last, middle = ({"axes": [a], "keepdims": 1} for a in (2, 1))
    text = FORMULAS["LayerNormalization"][2]
    model = formula(text, ReduceMean=last)
    module = read_onnx(model)
    assert module.nodes[1].op_type == "LayerNormalization"
    assert_same(model, module)
    assert "ReduceMean" in [n.op_type for n in read_onnx(formula(text, ReduceMean=middle)).nodes]


def test_constants_of_fp16_are_as_exact_as_fp16_is():
    model = formula(FORMULAS["Gelu"][0], dtype=np.float16)
    assert [n.op_type for n in read_onnx(model).nodes] == ["MatMul", "Gelu", "Neg"]
