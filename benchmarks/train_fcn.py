"""Train FCN-ResNet18 from nothing on CamVid at 240x320.

Usage: python benchmarks/train_fcn.py --camvid camvid.zip \
    --out fcn_resnet18_camvid.safetensors [--epochs 60] [--threads 2]

It is the float model that segmentation.py quantizes.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from smoke import SMOKE, arguments, data, few

SIZE = few((240, 320), (48, 64))
CLASSES, VOID = 11, 11
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(archive: zipfile.ZipFile, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 [N, 3, H, W] and masks uint8 [N, H, W] of a split."""
    height, width = SIZE
    images, masks = [], []
    for name in sorted(n for n in archive.namelist() if n.startswith(f"{split}/")):
        image = (
            Image.open(io.BytesIO(archive.read(name)))
            .convert("RGB")
            .resize((width, height), Image.Resampling.BILINEAR)
        )
        mask = Image.open(io.BytesIO(archive.read(f"{split}annot/{Path(name).stem}.png"))).resize(
            (width, height), Image.Resampling.NEAREST
        )
        images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
        masks.append(torch.from_numpy(np.asarray(mask).copy()))
    return torch.stack(images), torch.stack(masks)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (MEAN, STD))
    return ((images.float() / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)


def varied(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror half of the images and crop the batch.

    The crop is one window of 50 to 100 % of the side, resized back to the full size.
    """
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    masks = torch.where(flip[:, None, None], masks.flip(2), masks)
    share = float(torch.empty(()).uniform_(0.5, 1.0))
    height, width = (round(v * share) for v in SIZE)
    top, left = (
        int(torch.randint(SIZE[0] - height + 1, ())),
        int(torch.randint(SIZE[1] - width + 1, ())),
    )
    window = images[:, :, top : top + height, left : left + width].float()
    images = torch.nn.functional.interpolate(
        window, size=SIZE, mode="bilinear", align_corners=False
    )
    window = masks[:, None, top : top + height, left : left + width].float()
    return images, torch.nn.functional.interpolate(window, size=SIZE, mode="nearest")[:, 0].long()


def mean_iou(model: torch.nn.Module, images: torch.Tensor, masks: torch.Tensor) -> float:
    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    model.eval()
    with torch.inference_mode():
        for part, wanted in zip(images.split(8), masks.split(8), strict=True):
            found, truth = (
                model(normalised(part)).argmax(1).numpy(),
                wanted.numpy().astype(np.int64),
            )
            seen = truth != VOID
            counts += np.bincount(
                truth[seen] * CLASSES + found[seen], minlength=CLASSES**2
            ).reshape(CLASSES, CLASSES)
    both = np.diag(counts)
    return float(100.0 * np.mean(both / np.maximum(counts.sum(0) + counts.sum(1) - both, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = arguments(parser, camvid=data() / "camvid.zip" if SMOKE else None, epochs=1, batch=2)
    from trtq.models.fcn import fcn_resnet18

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with zipfile.ZipFile(args.camvid) as archive:
        images, masks = read(archive, "train")
        val = read(archive, "val")
    share = torch.bincount(masks.flatten(), minlength=CLASSES + 1)[:CLASSES].float()
    weights = 1.0 / torch.log(1.02 + share / share.sum())  # Paszke et al. 2016 (ENet), section 5.2
    model = fcn_resnet18(CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    steps = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * args.epochs, pct_start=0.2
    )
    loss_of = torch.nn.CrossEntropyLoss(weight=weights, ignore_index=VOID)
    for epoch in range(args.epochs):
        model.train()
        began, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images))
        for step in range(steps):
            pick = order[step * args.batch : (step + 1) * args.batch]
            x, y = varied(images[pick], masks[pick])
            optimizer.zero_grad()
            loss = loss_of(model(normalised(x)), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss)
        shown = (
            f", mIoU {mean_iou(model, *val):.2f} % on val"
            if epoch % 5 == 4 or epoch + 1 == args.epochs
            else ""
        )
        print(
            f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.perf_counter() - began:.0f} "
            f"s{shown}",
            flush=True,
        )
        if shown:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
