"""Samples of several inputs, and data that cannot be used: names, types, shapes, ends."""

from __future__ import annotations

import importlib.util
import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

import trtq
from tests.support.texts import save_tokenizer
from trtq.data.model_inputs import InputNeeds
from trtq.data.random_inputs import nearest
from trtq.data.rows import IN_MEMORY
from trtq.errors import DataError, MissingExtraError, UsageError
from trtq.graph.capture import capture
from trtq.graph.signature import SizeRange, TensorSpec

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="bool", shape=("batch", "length"))
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 4, 4), layout="NCHW")
RANGES = {"length": SizeRange(least=2, most=8, multiple=2)}
TEXTS = InputNeeds(model="encoder", inputs=(IDS, MASK), ranges=RANGES, rows={"ids": 100})
LABELS = InputNeeds(
    model="scorer", inputs=(TensorSpec(name="labels", dtype="int64", shape=("batch",)),)
)


def read(data: object, needs: InputNeeds = TEXTS, **more: object) -> Mapping[str, torch.Tensor]:
    return next(trtq.samples(data, **more).bound(needs).batches(4)).inputs


def text(length: int = 4, **changes: object) -> dict[str, object]:
    return {
        "ids": np.arange(length),
        "mask": np.ones(length, dtype=np.bool_),
        **changes,
    }


def test_names_order_and_targets():
    ids, mask = torch.arange(4), torch.ones(4, dtype=torch.bool)
    for sample in (
        (ids, mask),
        [ids, mask, 3],
        {"mask": mask, "ids": ids},
        {"ids": ids, "mask": mask, "label": 3},
    ):
        samples = trtq.samples([sample]).bound(TEXTS)
        batch = next(samples.batches(1))
        assert list(batch.inputs) == ["ids", "mask"] and batch.inputs["mask"].dtype == torch.bool
        assert samples.has_targets == (len(sample) == 3)
    stacked = trtq.samples({"ids": np.zeros((5, 4), int), "mask": np.ones((5, 4), bool)})
    assert len(stacked.bound(TEXTS)) == 5
    labels = trtq.samples([{"labels": np.int64(3), "target": 1}]).bound(LABELS)
    assert labels.has_targets and int(next(labels.batches(1)).inputs["labels"]) == 3
    alone = trtq.samples([{"labels": np.int64(3)}]).bound(LABELS)
    assert not alone.has_targets


class Nested(nn.Module):
    def forward(self, pair, bias):
        return pair["x"] * pair["y"][0] + pair["y"][1] + bias


def nested(**changes: object) -> dict[str, object]:
    x, first, second, bias = torch.randn(4, 4).unbind()
    return {"pair": {"x": x, "y": (first, second)}, "bias": bias, **changes}


@pytest.mark.parametrize(
    "data",
    [
        [nested(label=3), nested(label=1)],
        [(nested(), 3), (nested(), 1)],
        DataLoader([(nested(), 3), (nested(), 1)], batch_size=2),
        DataLoader([nested(target=1), nested(target=2)], batch_size=2),
    ],
    ids=["mappings", "pairs", "loader of pairs", "loader of mappings"],
)
def test_structures_of_tensors_are_inputs_by_the_way_to_each(data):
    samples = trtq.samples(data)
    batch = samples.first_batch()
    assert isinstance(batch["pair"]["y"], (tuple, list)) and batch["bias"].shape == (2, 4)
    signature = capture(Nested(), batch).signature
    assert [t.name for t in signature.inputs] == ["pair.x", "pair.y.0", "pair.y.1", "bias"]
    bound = samples.bound(InputNeeds(model="nested", inputs=signature.inputs))
    inputs = next(bound.batches(2)).inputs
    assert torch.equal(inputs["pair.y.1"], torch.as_tensor(batch["pair"]["y"][1]))
    assert bound.has_targets and bound.class_targets


def test_a_structure_in_a_tuple_needs_names():
    with pytest.raises(DataError, match="input 'input' is a tuple, expected") as caught:
        trtq.samples([((torch.zeros(4), torch.zeros(4)), 1)]).first_batch()
    assert "a mapping of its tensors by name: {'left': ..., 'right': ...}" in caught.value.hint


@pytest.mark.parametrize("form", [tuple, list])
@pytest.mark.parametrize("wrap", [list, lambda rows: DataLoader(rows, batch_size=2)])
def test_a_pair_of_a_tuple_of_inputs_and_a_target_is_a_sample(form, wrap):
    """``for (x1, x2), y in loader`` is how training scripts write several inputs."""
    rows = [(form([torch.full((4,), float(i)), torch.full((3,), -float(i))]), i) for i in range(4)]
    samples = trtq.samples(wrap(rows))
    assert [tuple(v.shape) for v in samples.first_batch(("left", "right")).values()] == [
        (2, 4),
        (2, 3),
    ]
    needs = InputNeeds(
        model="pair",
        inputs=[
            TensorSpec(name="left", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="right", dtype="float32", shape=("batch", 3)),
        ],
    )
    batch = next(samples.bound(needs).batches(4))
    assert batch.inputs["left"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert batch.inputs["right"][:, 0].tolist() == [0.0, -1.0, -2.0, -3.0]
    assert batch.targets().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        ({"ids": np.arange(4)}, "the input 'mask' is missing; it has ids"),
        (text(more=1), "'more' is no input of the model, which takes ids, mask"),
        ((np.arange(4),), r"a sample has 1 parts, expected 2 \(ids, mask\)"),
        (text(ids=np.arange(4) + 0.5), "'ids' is float64, the model takes int64: 0.5 would become"),
        (text(mask=np.array([0, 1, 2, 1])), "'mask' is int64, the model takes bool: 2 would"),
        (text(ids=np.arange(4).reshape(1, 4)), r"'ids' has the shape \[1, 4\], the input is ids"),
        (text(10), "'length' of input 'ids' is 10, the model takes 2 to 8, in multiples of 2"),
        (text(3), "'length' of input 'ids' is 3, the model takes"),
        (text(mask=np.ones(2, bool)), "the size 'length' is 4 in 'ids' and 2 in 'mask'"),
        (text(ids=np.array([1, 2, 3, 100])), "has the index 100, the embedding .* has 100 rows"),
        (text(ids=np.array([-1, 2, 3, 4])), "has the index -1"),
        (text(ids=np.array([None] * 4)), "input 'ids' is an array of object, expected"),
    ],
)
def test_samples_that_do_not_fit_are_named(sample, why):
    with pytest.raises(DataError, match=f"Cannot use sample 1 of list of the program: .*{why}"):
        list(trtq.samples([text(), sample], note=None).bound(TEXTS).batches(2))


def test_casts_that_keep_values_are_noted_once():
    lines: list[str] = []
    rows = [text(ids=np.arange(4, dtype=np.int32), mask=np.ones(4, np.uint8)) for _ in range(3)]
    inputs = read(rows, note=lines.append)
    assert inputs["ids"].dtype == torch.int64 and inputs["mask"].dtype == torch.bool
    assert (
        len(lines) == 2
        and "input 'ids' is int32, the model takes int64; its values are cast" in (lines[0])
    )
    needs = InputNeeds(model="net", inputs=(IMAGE,))
    double = np.full((2, 3, 4, 4), 0.1)
    assert read(double, needs, note=lines.append)["image"].dtype == torch.float32
    assert "its values are rounded" in lines[-1]
    with pytest.raises(DataError, match=r"1e\+300 is beyond its range"):
        read(double * 1e301, needs)
    with pytest.raises(DataError, match="'image' is uint8, the model takes float32.*scale to"):
        read(np.zeros((2, 3, 4, 4), np.uint8), needs)
    with pytest.raises(DataError, match="'image' is complex64, .* complex numbers have no such"):
        read(np.ones((2, 3, 4, 4), np.complex64), needs)
    with pytest.raises(DataError, match=r"give array\.transpose\(2, 0, 1\)"):
        read(np.ones((2, 4, 4, 3), np.float32), needs)
    swapped = np.ones((2, 3, 4, 4), dtype=">f4")[:, ::-1]
    assert float(read(swapped, needs)["image"].mean()) == 1.0


def test_samples_of_different_lengths_are_in_different_batches():
    samples = trtq.samples([text(4), text(4), text(6), text(4)]).bound(TEXTS)
    assert [b.inputs["ids"].shape for b in samples.batches(4)] == [(2, 4), (1, 6), (1, 4)]
    assert [len(b.ids) for b in samples.batches(4)] == [2, 1, 1]


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

    def forward(self, left, right):
        return self.net(left) - self.net(right)


def test_two_inputs_from_python(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = Siamese().eval()
    pairs = [(torch.randn(3, 8, 8), torch.randn(3, 8, 8), i % 4) for i in range(12)]
    first = trtq.quantize(model, pairs, preset_quant="none")
    assert [i.name for i in first.signature.inputs] == ["left", "right"]
    named = [{"right": b, "left": a, "label": y} for a, b, y in pairs]
    second = trtq.quantize(model, named, preset_quant="none")
    for name, amax in first.encodings.amax.items():
        torch.testing.assert_close(second.encodings.amax[name], amax)
    scored = first.evaluate(pairs, task="classification")
    assert scored.figures["top-1"].value is not None
    (tmp_path / "npz").mkdir()
    for i, (a, b, y) in enumerate(pairs):
        np.savez(tmp_path / f"npz/{i:02d}.npz", left=a, right=b, target=y)
    files = trtq.quantize(model, str(tmp_path / "npz"), preset_quant="none")
    assert len(files.inputs.samples) == 12 and files.inputs.samples.has_targets
    random = trtq.quantize(
        trtq.load(model, example=(pairs[0][0][None], pairs[0][1][None])), "random:8"
    )
    assert "NOT CALIBRATED" in random.summary


class Rows(Dataset):
    def __init__(self, claims: int = 8) -> None:
        self.claims = claims

    def __len__(self) -> int:
        return self.claims

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= 8:
            raise IndexError(index)
        return torch.full((2,), float(index))


class Odd(Sampler):
    calls = 0

    def __iter__(self):
        Odd.calls += 1
        return iter([Odd.calls % 7])

    def __len__(self) -> int:
        return 1


def test_samplers_are_repeatable_or_refused():
    some = RandomSampler(Rows(), num_samples=3)
    weighted = WeightedRandomSampler([1.0] * 8, 4)
    seeded = RandomSampler(Rows(), num_samples=3, generator=torch.Generator().manual_seed(1))
    for sampler in (some, weighted, seeded):
        loader = DataLoader(Rows(), sampler=sampler)
        assert trtq.samples(loader).digest() == trtq.samples(loader).digest()
    with pytest.raises(DataError, match="gives other samples in every pass: 2 positions differ"):
        trtq.samples(DataLoader(Rows(), sampler=Odd()))


class OneReader(Dataset):
    """Data that break when two threads read at once, such as an open file."""

    def __init__(self):
        self.reads, self.busy = [], threading.Lock()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index):
        assert self.busy.acquire(blocking=False), "two readers"
        time.sleep(0.005)
        self.reads.append(index)
        self.busy.release()
        return torch.zeros(3), index % 2


def test_data_of_a_program_have_one_reader_at_a_time():
    data = OneReader()
    samples = trtq.samples(data)
    assert samples.has_targets and not samples.boxed and data.reads == [0]
    for batch in samples.select(range(12)).batches(2):
        assert len(batch.targets()) == 2
    assert data.reads == [0, *range(12)]
    for batch in trtq.samples(OneReader()).batches(2):
        batch.targets()


def test_targets_of_any_type_have_an_identity():
    pair = (np.zeros(2, dtype=np.float32), torch.ones(2, dtype=torch.bfloat16))
    other = (pair[0], torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    first, second = (trtq.samples([p]).targets_identity() for p in (pair, other))
    assert first != second and first == trtq.samples([pair]).targets_identity()


def test_samples_with_other_inputs_than_the_first_are_refused():
    zero = torch.zeros(2)
    with pytest.raises(DataError, match="one has the inputs a, b, another a"):
        trtq.samples([{"a": zero, "b": zero}, {"a": zero}]).first_batch()


def test_arrays_with_sizes_that_no_array_has(tmp_path):
    header = io.BytesIO()
    form = {"descr": "<f4", "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, {**form, "shape": (-1, 3)})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(24))
    with pytest.raises(DataError, match=r"it is damaged \(its shape is \[-1, 3\]\)"):
        trtq.samples(f"{tmp_path}/a.npy")


def test_data_that_end_early_or_never():
    class Short(IterableDataset):
        def __len__(self) -> int:
            return 5

        def __iter__(self):
            yield from torch.zeros(3, 2)

    with pytest.raises(DataError, match="ends early: it gave 3 samples, its length says 5"):
        trtq.samples(Short())
    with pytest.raises(DataError, match="ends at sample 8: its length is 9"):
        list(trtq.samples(Rows(9)).batches(4))

    def broken():
        yield torch.zeros(2)
        raise RuntimeError("no disk")

    with pytest.raises(DataError, match="Cannot read sample 1 of .*RuntimeError: no disk"):
        trtq.samples(broken())

    def endless():
        while True:
            yield 0.0

    lines: list[str] = []
    assert len(trtq.samples(endless(), limit=3, note=lines.append)) == 3
    assert lines == ["generator of the program can be read once only: its first 3 samples are used"]
    with pytest.raises(DataError, match="has not ended after 100000 samples.*Give a limit"):
        trtq.samples(endless())


def test_streams_beyond_memory_are_kept_on_disk():
    rows = (torch.full((2**20,), float(i)) for i in range(6))  # 4 MiB each
    samples = trtq.samples(rows)
    assert samples.rows.end > IN_MEMORY and samples.rows.file._rolled
    assert [float(b.input[0, 0]) for b in samples.batches(1)] == [0, 1, 2, 3, 4, 5]


def test_collate_functions_of_every_kind():
    def pairs(rows):
        return tuple(zip(*[(r, i) for i, r in enumerate(rows)], strict=True))

    assert trtq.samples(DataLoader(Rows(), 2, collate_fn=pairs)).has_targets
    for collate, why in (
        (lambda rows: torch.stack(rows * 2), "makes 2 samples of one"),
        (lambda rows: (torch.stack(rows), torch.zeros(3)), "not lists of as many samples"),
        (lambda rows: object(), "it is a object, expected a tensor"),
    ):
        with pytest.raises(DataError, match=why):
            trtq.samples(DataLoader(Rows(), 2, collate_fn=collate)).contents()


def test_open_sizes_of_random_inputs():
    assert nearest(30, None) == 30
    assert nearest(30, SizeRange(least=32, most=64, multiple=32)) == 32
    assert nearest(50, SizeRange(least=32, most=64, multiple=32)) == 32
    assert nearest(3, SizeRange(least=2, multiple=2)) == 2


@pytest.fixture
def words(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text(
        "one two\n\nthree four one two three four one two three\nfour one\n"
    )
    return tmp_path


def test_texts(words):
    lines: list[str] = []
    options = {"tokenizer": str(words / "tokenizer.json"), "note": lines.append}
    inputs = [b.inputs for b in trtq.samples(f"{words}/t.txt", **options).bound(TEXTS).batches(1)]
    assert [i["ids"][0].tolist() for i in inputs] == [[2, 3], [4, 5, 2, 3, 4, 5, 2, 3], [5, 2]]
    assert inputs[0]["mask"].dtype == torch.bool and bool(inputs[0]["mask"].all())
    assert any("1 empty lines" in line for line in lines)
    assert any("cut at 8 tokens" in line for line in lines)
    fixed = TensorSpec(name="input_ids", dtype="int32", shape=(1, 4))
    mask = TensorSpec(name="attention_mask", dtype="int32", shape=(1, 4))
    padded = InputNeeds(model="m", inputs=(fixed, mask))
    rows = next(trtq.samples(f"{words}/t.txt", **options).bound(padded).batches(1)).inputs
    assert rows["input_ids"].tolist() == [[2, 3, 0, 0]] and rows["input_ids"].dtype == torch.int32
    assert rows["attention_mask"].tolist() == [[1, 1, 0, 0]]
    joined = [b.inputs for b in trtq.samples(f"{words}/t.txt", **options).bound(TEXTS).batches(2)]
    assert joined[0]["ids"].tolist() == [[2, 3, *[0] * 6], [4, 5, 2, 3, 4, 5, 2, 3]]
    assert joined[0]["mask"].sum(1).tolist() == [2, 8] and joined[0]["mask"].dtype == torch.bool
    assert joined[1]["ids"].tolist() == [[5, 2]]
    assert sum("padded to the longest of a batch" in line for line in lines) == 1
    alone = trtq.samples(f"{words}/t.txt", **options).bound(InputNeeds(model="m", inputs=(IDS,)))
    assert [b.inputs["ids"].shape for b in alone.batches(3)] == [(1, 2), (1, 9), (1, 2)]
    ranges = {"length": SizeRange(least=4, most=16, multiple=4)}
    steps = InputNeeds(model="m", inputs=(IDS, MASK), ranges=ranges)
    sizes = [
        b.inputs["mask"] for b in trtq.samples(f"{words}/t.txt", **options).bound(steps).batches(1)
    ]
    assert [(m.shape[1], int(m.sum())) for m in sizes] == [(4, 2), (12, 9), (4, 2)]
    small = InputNeeds(model="m", inputs=(IDS, MASK), rows={"ids": 4})
    with pytest.raises(DataError, match="has the index 5, .*4 rows.*Use the tokenizer that"):
        list(trtq.samples(f"{words}/t.txt", **options).bound(small).batches(1))
    with pytest.raises(DataError, match="do not fit the model: its inputs are image, ids"):
        trtq.samples(f"{words}/t.txt", **options).bound(InputNeeds(model="m", inputs=(IMAGE, IDS)))
    (words / "bad.json").write_text("{}")
    for file, why in (("bad.json", "Give tokenizer.json"), ("gone.json", "there is no such file")):
        with pytest.raises(DataError, match=why):
            trtq.samples(f"{words}/t.txt", tokenizer=str(words / file))


def test_texts_are_filled_up_as_their_tokenizer_says(words):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(f"{words}/tokenizer.json")
    tokenizer.enable_padding(pad_id=3, pad_token="two")
    tokenizer.save(f"{words}/own.json")
    (words / "t.txt").write_text("one\x0cone\u2028one\nfour\n")
    fixed = TensorSpec(name="input_ids", dtype="int64", shape=(1, 4))
    samples = trtq.samples(f"{words}/t.txt", tokenizer=f"{words}/own.json")
    rows = samples.bound(InputNeeds(model="m", inputs=(fixed,))).batches(2)
    assert next(rows).inputs["input_ids"].tolist() == [[2, 2, 2, 3], [5, 3, 3, 3]]


def test_texts_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "t.txt"
    path.write_text("one\n")
    with pytest.raises(UsageError, match="need a tokenizer.*tokenizer=.tokenizer.json"):
        trtq.samples(str(path))
    if importlib.util.find_spec("tokenizers") is None:
        with pytest.raises(MissingExtraError, match=r"Install it: pip install trtq\[text\]"):
            trtq.samples(str(path), tokenizer="t.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="Write it as UTF-8 text"):
        trtq.samples(str(path), tokenizer="t.json")
    path.write_text("\n")
    with pytest.raises(DataError, match="it has no line of text"):
        trtq.samples(str(path), tokenizer="t.json")
