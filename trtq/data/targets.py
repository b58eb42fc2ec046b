"""What the answers should be: the class of an image, or of each of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch

from trtq.artifact import digest_of
from trtq.data.preprocess import Preprocess
from trtq.data.source import Source, open_source
from trtq.errors import DataError

# Cityscapes names an image and its mask with other endings; what lies between is the same.
ENDINGS = ("_leftImg8bit", "_gtFine_labelTrainIds", "_labelTrainIds")


class Targets:
    """Class indices of the images of a source.

    Attributes:
        source: the images.
        dense: whether every pixel has a class.
        ignore: the class index that counts for nothing.
    """

    dense = False
    ignore = -100

    def __init__(self, source: Source) -> None:
        self.source = source

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the classes of images, int64 [N]."""
        assert self.source.labels is not None
        return torch.tensor([self.source.labels[i] for i in indices])

    def identity(self) -> object:
        """Return what tells two sets of targets apart."""
        return digest_of(self.source.labels)

    def expect(self, classes: int, model: str) -> None:
        """Refuse classes that a model does not have: labels now, masks when they are read.

        Raises:
            DataError: names both numbers.
        """
        assert self.source.labels is not None
        self._check(max(self.source.labels), classes, model)

    def _check(self, highest: int, classes: int, model: str) -> None:
        if highest < classes:
            return
        mend = "the index that means nothing with --ignore-index, or another model" if self.dense else "the class order with --class-index"
        raise DataError(
            f"The {'masks' if self.dense else 'labels'} of {self.source.name} do not fit {model}",
            f"the highest class index is {highest}, the model has {classes} classes", f"Give {mend}",
        )  # fmt: skip


class PixelTargets(Targets):
    """Class indices of pixels, from one mask an image.

    Args:
        source: the images.
        masks: where the masks lie, written as for images; one of the same name for each image.
        preprocess: of the images; masks follow its geometry.
        ignore: the class index of pixels that count for nothing.

    Raises:
        DataError: an image has no mask.
    """

    dense = True

    def __init__(self, source: Source, masks: str, preprocess: Preprocess, ignore: int) -> None:
        super().__init__(source)
        self.expected: tuple[int, str] | None = None
        self.masks, self.preprocess, self.ignore = open_source(masks), preprocess, ignore
        names = self.masks.ids
        if any(_bare(n).endswith("_labelTrainIds") for n in names):
            names = [n for n in names if _bare(n).endswith("_labelTrainIds")]
        place = {n: i for i, n in enumerate(self.masks.ids)}
        held = {_key(n): place[n] for n in names}
        lacking = [n for n in source.ids if _key(n) not in held]
        if lacking:
            raise DataError(
                f"{lacking[0]} of {source.name} has no mask in {masks}", f"{len(lacking)} of {len(source)} images have none",
                "A mask has the name of its image (.png), in the same folders",
            )  # fmt: skip
        self.places = [held[_key(n)] for n in source.ids]

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the classes of the images' pixels, int64 [N, H, W]."""
        found = torch.stack([self.preprocess.apply_mask(self._mask(i), self.ignore) for i in indices])
        if self.expected is not None:
            known = found[found != self.ignore]
            self._check(int(known.max()) if known.numel() else 0, *self.expected)
        return found

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        self.expected = classes, model

    def _mask(self, index: int) -> np.ndarray:
        image = self.masks.image(self.places[index])
        values = np.asarray(image)
        if values.ndim != 2:
            raise DataError(
                f"The mask {self.masks.ids[self.places[index]]} of {self.masks.name} holds colours", f"its mode is {image.mode}",
                "Give masks whose pixels are class indices: one channel, or a palette",
            )  # fmt: skip
        return values

    def identity(self) -> object:
        """Return what tells two sets of masks apart: names, and the content of at most 64."""
        return [self.masks.identity(), self.ignore]


def _bare(name: str) -> str:
    return PurePosixPath(name).stem


def _key(name: str) -> str:
    path = str(PurePosixPath(name).with_suffix(""))
    return next((path.removesuffix(e) for e in ENDINGS if path.endswith(e)), path)


def open_targets(source: Source, masks: str | None, preprocess: Preprocess, ignore: int) -> Targets | None:
    """Return the targets of a source: its masks when there are, else its labels, else None."""
    if masks is not None:
        return PixelTargets(source, masks, preprocess, ignore)
    return Targets(source) if source.labels is not None else None
