"""Rows of the tables that inputs index."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

import trtq
from tests.support.onnx_files import text_encoder
from trtq.flow.data import needs_of
from trtq.graph.capture import capture
from trtq.graph.index_ranges import embedding_rows

IDS = torch.ones(2, 6, dtype=torch.int64)


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("places", torch.arange(9))


class Embedded(Table):
    def forward(self, ids):
        return functional.embedding(ids, self.weight)


class Selected(Table):
    def forward(self, ids):
        return self.weight.index_select(0, ids.reshape(-1)).reshape(*ids.shape, 4)


class OneHot(Table):
    def forward(self, ids):
        return (ids.unsqueeze(2).expand(-1, -1, 9) == self.places).float()


class FromTheEnd(Table):
    def forward(self, ids):
        return functional.embedding(torch.where(ids < 0, ids + 7, ids), self.weight)


class Computed(Table):
    def forward(self, ids):
        return functional.embedding(ids * 2, self.weight)


@pytest.mark.parametrize(
    ("net", "rows"), [(Embedded, 7), (Selected, 7), (OneHot, 9), (FromTheEnd, 7), (Computed, None)]
)
def test_rows_of_a_stored_table(net, rows):
    graph = capture(net().eval(), {"ids": IDS}).module
    assert list(embedding_rows(graph).values()) == ([] if rows is None else [rows])


def test_ids_of_an_onnx_file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(text_encoder(), path)
    file = text_encoder()
    table = next(i for i in file.graph.initializer if len(i.dims) == 2)
    needs = needs_of(trtq.load(str(path)))
    assert set(needs.rows.values()) == {table.dims[0]}
