"""Archives of torch.export and programs in memory."""

import io
import zipfile

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import ModelError
from trtq.models.pt2 import load_pt2


def _program():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    example = (torch.randn(2, 3, 8, 8),)
    return net, torch.export.export(net, example, dynamic_shapes=dims, strict=False)


def test_an_archive_is_the_model_that_it_was_saved_from(tmp_path):
    net, program = _program()
    torch.export.save(program, tmp_path / "m.pt2")
    model = trtq.load(str(tmp_path / "m.pt2"))
    (example,) = model.graph.examples
    assert example.shape == (2, 3, 8, 8)
    torch.testing.assert_close(model.graph.module(example), net(example))
    names = [n.meta["trtq_name"] for n in model.graph.module.graph.nodes if "trtq_name" in n.meta]
    assert names[0] == "0"


def test_a_program_in_memory_is_a_model():
    net, program = _program()
    model = trtq.load(program)
    (example,) = model.graph.examples
    torch.testing.assert_close(model.graph.module(example), net(example))


def test_a_missing_and_a_damaged_archive_are_named(tmp_path):
    with pytest.raises(ModelError, match="there is no such file"):
        load_pt2(tmp_path / "m.pt2")
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ModelError, match="not a whole archive of torch.export"):
        load_pt2(tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("not json", "model_weights_config.json in it is damaged"),
        ("[1]", "model_weights_config.json in it is damaged"),
        ('{"config": {"w": 1}}', "model_weights_config.json in it is damaged"),
        (
            '{"config": {"w": {"path_name": "weight_0", "use_pickle": true}}}',
            "m/data/weights/weight_0 is missing in it",
        ),
    ],
)
def test_a_damaged_table_of_an_archive_is_named(tmp_path, table, why):
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data/weights/model_weights_config.json", table)
    with pytest.raises(ModelError, match=why):
        load_pt2(tmp_path / "m.pt2")


class _Runs:
    def __reduce__(self):
        return (print, ("code ran",))


def test_nothing_is_unpickled_that_could_run_code(tmp_path, capsys):
    buffer = io.BytesIO()
    torch.save(_Runs(), buffer)
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("m/data/sample_inputs/model.pt", buffer.getvalue())
    with pytest.raises(ModelError, match="reading it could run code"):
        load_pt2(tmp_path / "m.pt2")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_program_of_another_float_is_refused_with_what_to_do(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval().to(dtype)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8, dtype=dtype),), strict=False)
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"weights are {word}, expected float32.*model.float\(\)"):
        trtq.load(program)


def test_a_program_with_channels_last_takes_images_of_its_size():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, pixels):
            return self.conv(pixels.permute(0, 3, 1, 2)).mean((2, 3))

    program = torch.export.export(Last().eval(), (torch.randn(2, 8, 10, 3),), strict=False)
    model = trtq.load(program)
    assert model.preprocess.input_size == (3, 8, 10)
    assert model.preprocess.layout == "NHWC"
