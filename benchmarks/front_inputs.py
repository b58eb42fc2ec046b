"""Models of any inputs and outputs, and the forms that samples have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from front_common import Door, image, timm_model, torchvision_model
from torch import nn
from torch.nn import functional

from trtq.data.preprocess import resolve_preprocess

COUNT, SIZE = 8, 64  # samples of a row, and the side of its images


class Siamese(nn.Module):
    """Two images, one distance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = (self.body(x).mean((2, 3)) for x in (left, right))
        return functional.cosine_similarity(a, b)


class Stereo(nn.Module):
    """Two images, a cost volume over shifts, a disparity."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.fuse = nn.Conv3d(16, 4, 3, padding=1)
        self.head = nn.Conv3d(4, 1, 3, padding=1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = self.body(left), self.body(right)
        shifts = [functional.pad(b, (i, 0))[..., : b.shape[-1]] for i in range(4)]
        cost = torch.stack([torch.cat([a, shifted], 1) for shifted in shifts], 2)
        weights = self.head(self.fuse(cost).relu()).squeeze(1).softmax(1)
        return (weights * torch.arange(4.0).view(1, 4, 1, 1)).sum(1)


class Bytes(nn.Module):
    """Pixels as they come: uint8, normalised in the graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(pixels.permute(0, 3, 1, 2).float() / 255.0)


class Audio(nn.Module):
    """A wave form through convolutions and a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4, 4), nn.ReLU(), nn.Conv1d(16, 32, 9, 4, 4), nn.ReLU()
        )
        self.rnn = kind(32, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, wave: torch.Tensor) -> dict[str, torch.Tensor]:
        seen, _ = self.rnn(self.body(wave).transpose(1, 2))
        return {"logits": self.head(seen[:, -1]), "frames": seen}


class Depth(nn.Module):
    """Colours and depth, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(1, 8, 3, 2, 1)
        self.join = nn.Conv2d(16, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.head(self.join(torch.cat([self.rgb(rgb), self.depth(depth)], 1)).relu())


class Points(nn.Module):
    """A point cloud: layers for each point, the largest over all."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(self.each(points.transpose(1, 2)).amax(2))


class Tabular(nn.Module):
    """An image with numbers, a category and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.kinds = nn.Embedding(10, 4)
        self.head = nn.Sequential(nn.Linear(8 + 5 + 4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(
        self,
        picture: torch.Tensor,
        numbers: torch.Tensor,
        kind: torch.Tensor,
        known: torch.Tensor,
    ) -> torch.Tensor:
        numbers = torch.where(known, numbers, torch.zeros_like(numbers))
        return self.head(torch.cat([self.body(picture).mean((2, 3)), numbers, self.kinds(kind)], 1))


class Nested(nn.Module):
    """Answers in tuples, lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, n, 1) for n in (2, 3, 4))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        seen = self.stem(x).relu()
        a, b, c = (head(seen) for head in self.heads)
        return {"maps": [a, (b, c)], "best": c.argmax(1), "score": c.amax((1, 2, 3))}


class Half(nn.Module):
    """An input in float16, computed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.float())


def small_net(channels: int = 3) -> nn.Module:
    """Return a small classifier of images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def clip(name: str) -> Door:
    return Door(make=torchvision_model("video", name), example=lambda: torch.randn(2, 3, 8, 32, 32))


INPUTS = {
    "siamese": Door(make=Siamese, example=lambda: {"left": image(), "right": image()}),
    "stereo": Door(make=Stereo, example=lambda: {"left": image(), "right": image()}),
    "rgb and depth": Door(make=Depth, example=lambda: {"rgb": image(), "depth": image(1)}),
    "image, numbers, category, flags": Door(
        make=Tabular,
        example=lambda: {
            "picture": image(),
            "numbers": torch.randn(2, 5),
            "kind": torch.randint(0, 10, (2,)),
            "known": torch.rand(2, 5) > 0.5,
        },
    ),
    "uint8 NHWC": Door(
        make=lambda: Bytes(small_net()),
        example=lambda: torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8),
    ),
    "float16 input": Door(make=Half, example=lambda: {"x": image().half()}),
    "audio GRU": Door(make=lambda: Audio(nn.GRU), example=lambda: {"wave": torch.randn(2, 1, 800)}),
    "audio LSTM": Door(
        make=lambda: Audio(nn.LSTM, bidirectional=True, num_layers=2),
        example=lambda: {"wave": torch.randn(2, 1, 800)},
    ),
    "points [N, 3]": Door(make=Points, example=lambda: {"points": torch.randn(2, 64, 3)}),
    "nested answers": Door(make=Nested, example=image),
    **{
        f"{n} channels": Door(make=timm_model("resnet18", in_chans=n), example=lambda n=n: image(n))
        for n in (1, 2, 4, 6)
    },
    **{f"video {n}": clip(n) for n in ("r3d_18", "mc3_18", "r2plus1d_18")},
    "optical flow raft_small": Door(
        make=torchvision_model("optical_flow", "raft_small"),
        example=lambda: {"image1": image(3, 128), "image2": image(3, 128)},
    ),
}


def arrays(channels: int = 3) -> np.ndarray:
    shape = (COUNT, channels, SIZE, SIZE)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def npz_folder(folder: Path) -> str:
    for i, (left, right) in enumerate(zip(arrays(), arrays()[::-1], strict=True)):
        np.savez(folder / f"{i}.npz", left=left, right=right)
    return str(folder)


def npz_file(folder: Path) -> str:
    np.savez(folder / "all.npz", left=arrays(), right=arrays()[::-1])
    return str(folder / "all.npz")


def npy_folder(folder: Path) -> str:
    for i, one in enumerate(arrays()):
        np.save(folder / f"{i}.npy", one)
    return str(folder)


def npy_file(folder: Path) -> str:
    np.save(folder / "all.npy", arrays())
    return str(folder / "all.npy")


class Own(torch.utils.data.Dataset[Any]):
    """A Dataset of a program's own: an image and its class."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(arrays()[index]), index % 10


class Pairs(Own):
    """Samples with two named inputs."""

    def __getitem__(self, index: int) -> Any:
        return {"left": arrays()[index], "right": arrays()[-1 - index]}


def own_dataset(_folder: Path) -> object:
    return Own()


def loader_of_dicts(_folder: Path) -> object:
    return torch.utils.data.DataLoader(Pairs(), batch_size=4)


def generator(_folder: Path) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(one) for one in arrays())


def array_dict(_folder: Path) -> object:
    return {"left": arrays(), "right": arrays()[::-1].copy()}


def factory(folder: Path) -> str:
    text = (
        "import torch\n\n\ndef samples(signature):\n"
        "    shapes = [[d for d in s.shape[1:]] for s in signature.inputs]\n"
        f"    return [tuple(torch.randn(*s) for s in shapes) for _ in range({COUNT})]\n"
    )
    (folder / "own_samples.py").write_text(text)
    return f"{folder / 'own_samples.py'}:samples"


def pictures(mode: str, suffix: str = "png") -> Callable[[Path], str]:
    """Return what writes images of one mode of Pillow."""

    def write(folder: Path) -> str:
        from PIL import Image

        rng = np.random.default_rng(0)
        bands = len(Image.new(mode, (1, 1)).getbands())
        for i in range(COUNT):
            small = rng.integers(0, 256, (12, 16, bands), dtype=np.uint8).squeeze()
            large = Image.fromarray(small).resize((96, 80))
            if suffix == "tiff":
                pages = [large.rotate(90 * k, expand=False) for k in range(2)]
                pages[0].save(folder / f"{i}.tiff", save_all=True, append_images=pages[1:])
            else:
                large.save(folder / f"{i}.{suffix}")
        return f"images:{folder}"

    return write


def coco_boxes(folder: Path) -> str:
    import json

    pictures("RGB", "jpg")(folder)
    names = sorted(p.name for p in folder.glob("*.jpg"))
    boxes = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [5, 5, 20, 20],
            "area": 400,
            "iscrowd": 0,
        }
        for i in range(len(names))
    ]
    listing = {
        "images": [
            {"id": i, "file_name": n, "width": 96, "height": 80} for i, n in enumerate(names)
        ],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "annotations.json").write_text(json.dumps(listing))
    return f"coco:{folder}"


def yolo_boxes(folder: Path) -> str:
    images, labels = folder / "images" / "val", folder / "labels" / "val"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    pictures("RGB", "jpg")(images)
    for p in images.iterdir():
        (labels / f"{p.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text(f"path: {folder}\nval: images/val\nnames: [thing]\n")
    return f"yolo:{folder / 'data.yaml'}"


def of_images(channels: int, data: Callable[[Path], object], **preprocess: Any) -> Door:
    """Return a row whose samples are image files."""
    known = {} if "preset" in preprocess else {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    made, _ = resolve_preprocess(input_size=(channels, SIZE, SIZE), **{**known, **preprocess})
    return Door(make=lambda: small_net(channels), data=data, load={"preprocess": made})


SAMPLES = {
    "samples: folder of npz": Door(
        make=Siamese, example=INPUTS["siamese"].example, data=npz_folder
    ),
    "samples: one npz": Door(make=Siamese, example=INPUTS["siamese"].example, data=npz_file),
    "samples: folder of npy": Door(make=small_net, example=image, data=npy_folder),
    "samples: one npy": Door(make=small_net, example=image, data=npy_file),
    "samples: own Dataset": Door(make=small_net, example=image, data=own_dataset),
    "samples: DataLoader of dicts": Door(
        make=Siamese, example=INPUTS["siamese"].example, data=loader_of_dicts
    ),
    "samples: dict of arrays": Door(
        make=Siamese, example=INPUTS["siamese"].example, data=array_dict
    ),
    "samples: generator": Door(make=small_net, example=image, data=generator),
    "samples: file.py:factory": Door(make=Siamese, example=INPUTS["siamese"].example, data=factory),
    "samples: gray images": of_images(1, pictures("L")),
    "samples: RGBA images": of_images(4, pictures("RGBA")),
    "samples: TIFF of 2 pages": of_images(2, pictures("L", "tiff")),
    "samples: letterbox": of_images(3, pictures("RGB"), preset="yolo"),
    "samples: BGR": of_images(3, pictures("RGB"), channel_order="bgr"),
    "samples: COCO": of_images(3, coco_boxes),
    "samples: YOLO": of_images(3, yolo_boxes),
}
