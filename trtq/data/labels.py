"""Targets: the class of an image, or of each of its pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import torch

from trtq.artifact import digest_of
from trtq.data.decode import TURNED, UndecodableError, decode_mask, turn
from trtq.data.preprocess import Preprocess
from trtq.data.source import Source, open_source
from trtq.errors import DataError, reason

ARRAYS = "images:"  # in front of a folder: arrays in .npy files count as images
MAP_AXES = 2
# Cityscapes names an image and its mask with other endings; what is between is the same.
ENDINGS = ("_leftImg8bit", "_gtFine_labelTrainIds", "_labelTrainIds")


class Labels:
    """Class indices of the images of a source.

    Args:
        source: the images, with class folders.

    Attributes:
        source: the images.
        dense: whether every pixel has a class.
        ignore: the class index that is ignored.
    """

    dense = False
    ignore = -100

    def __init__(self, source: Source) -> None:
        self.source, self.reported = source, False

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the classes of images, int64 [N].

        Args:
            indices: positions in the source.
        """
        assert self.source.labels is not None
        return torch.tensor([self.source.labels[i] for i in indices])

    def identity(self) -> object:
        """Return what tells two sets of labels apart."""
        return digest_of(self.source.labels)

    def expect(self, classes: int, model: str) -> None:
        """Refuse classes that a model does not have: labels now, masks when they are read.

        Other numbers of classes are reported once, unless a class index states the order.

        Args:
            classes: how many the model tells apart.
            model: its name, for the message.

        Raises:
            DataError: names both numbers.
        """
        assert self.source.labels is not None
        self._check(max(self.source.labels), classes, model)
        if len(self.source.classes) != classes and not self.source.indexed and not self.reported:
            self.reported = True
            counts = (
                f"{self.source.name} has {len(self.source.classes)} classes, the model {classes}"
            )
            self.source.tell(
                f"{counts}: accuracy is right only if these are its first (--class-index)"
            )

    def _check(self, highest: int, classes: int, model: str) -> None:
        if highest < classes:
            return
        hint = (
            "the ignored class index with --ignore-index, or another model"
            if self.dense
            else "the class order with --class-index"
        )
        raise DataError(
            f"The {'masks' if self.dense else 'labels'} of {self.source.name} do not fit {model}",
            f"the highest class index is {highest}, the model has {classes} classes",
            f"Give {hint}",
        )


class PixelLabels(Labels):
    """Class indices of pixels, from one mask per image.

    Args:
        source: the images.
        masks: where the masks are, written as for images; one of the same name for each image.
        preprocess: of the images; masks follow its geometry.
        ignore: the class index of pixels that are ignored.

    Raises:
        DataError: an image has no mask.
    """

    dense = True
    what, hint = "mask", "Give masks whose pixels are class indices: one channel, or a palette"

    def __init__(self, source: Source, masks: str, preprocess: Preprocess, ignore: int) -> None:
        super().__init__(source)
        self.expected: tuple[int, str] | None = None
        self.masks, self.preprocess, self.ignore = open_source(masks), preprocess, ignore
        names = self.masks.ids
        if any(_bare(n).endswith("_labelTrainIds") for n in names):
            names = [n for n in names if _bare(n).endswith("_labelTrainIds")]
        place = {n: i for i, n in enumerate(self.masks.ids)}
        position = _by_key(self.masks, names, place)
        lacking = [n for n in source.ids if _key(n) not in position]
        if lacking:
            raise DataError(
                f"{lacking[0]} of {source.name} has no mask in {masks}",
                f"{len(lacking)} of {len(source)} images have none",
                "A mask has the name of its image (.png), in the same folders",
            )
        self.places = [position[_key(n)] for n in source.ids]

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the classes of the images' pixels, int64 [N, H, W].

        Args:
            indices: positions in the source.

        Returns:
            H and W are those of the model's input; pixels that count for no class have
            :attr:`ignore`.

        Raises:
            DataError: a mask is damaged, or has a class that :meth:`expect` refuses.
        """
        classes = torch.stack(
            [self.preprocess.apply_mask(self._mask(i), self.ignore) for i in indices]
        )
        if self.expected is not None:
            known = classes[classes != self.ignore]
            self._check(int(known.max()) if known.numel() else 0, *self.expected)
        return classes

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        self.expected = classes, model

    def _mask(self, index: int) -> np.ndarray:
        """Return the values of an image's pixels, turned as the image is."""
        place = self.places[index]
        try:
            values = self._decode(self.masks.read(place))
        except UndecodableError as exc:
            raise DataError(
                f"Cannot use the {self.what} {self.masks.ids[place]} of {self.masks.name}",
                str(exc),
                self.hint,
            ) from exc
        height, width = values.shape
        self.preprocess.require_room(width, height, f"{self.masks.ids[place]} of {self.masks.name}")
        return self._upright(index, values)

    def _decode(self, data: bytes) -> np.ndarray:
        """Return the values of a file, [H, W].

        Raises:
            UndecodableError: says what it is.
        """
        return decode_mask(data)

    def _upright(self, index: int, values: np.ndarray) -> np.ndarray:
        """Return a mask in the geometry of its image.

        A mask drawn on the stored pixels is turned by the image's EXIF orientation.

        Raises:
            DataError: the sizes leave open whether the mask was drawn on the stored image or on the
                upright one.
        """
        image = self.source.geometry(index)
        if image.orientation == 1:
            return values
        stored, upright = (image.height, image.width), (image.width, image.height)
        if image.orientation in TURNED and stored != upright and values.shape in (stored, upright):
            return turn(values, image.orientation) if values.shape == stored else values
        raise DataError(
            f"Cannot place the mask of {self.source.ids[index]} of {self.source.name}",
            f"the image has the EXIF orientation {image.orientation}, and sizes do not tell "
            "whether the mask is upright",
            "Turn the image's pixels and remove its orientation (exiftran -a, or jpegtran and "
            "exiftool)",
        )

    def identity(self) -> object:
        """Return what tells two sets of masks apart."""
        return [self.masks.identity(), self.ignore]


class PixelMaps(PixelLabels):
    """Numbers of pixels, such as depths, from one ``.npy`` file per image.

    Pixels that a crop or a letterbox adds beyond the image are 0, which is ignored.

    Args:
        source: the images.
        maps: folder or .zip of them, each [H, W] of the name of its image.
        preprocess: of the images; maps follow its geometry.
    """

    dense = False
    what, hint = "map", "Write one number for each pixel: numpy.save(path, values) of [H, W]"

    def __init__(self, source: Source, maps: str, preprocess: Preprocess) -> None:
        super().__init__(source, ARRAYS + maps.removeprefix(ARRAYS), preprocess, 0)

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the numbers of the images' pixels, float32 [N, H, W].

        Args:
            indices: positions in the source.

        Returns:
            H and W are those of the model's input; 0 where there is no number.

        Raises:
            DataError: a map is damaged, or is no array [H, W] of numbers.
        """
        return torch.stack([self.preprocess.apply_map(self._mask(i)) for i in indices])

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        raise DataError(
            f"The maps of {self.source.name} do not fit {model}",
            f"they hold numbers, the model has {classes} classes",
            "Give masks of class indices, or the task of the model: --task depth",
        )

    def _decode(self, data: bytes) -> np.ndarray:
        try:
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, OSError, EOFError, MemoryError) as exc:
            raise UndecodableError(f"it is no array of NumPy ({reason(exc)})") from exc
        if not isinstance(values, np.ndarray):
            raise UndecodableError("it holds several arrays")
        values = values.reshape(values.shape[-2:]) if values.shape[:-2] == (1,) else values
        if values.ndim != MAP_AXES or values.dtype.kind not in "fiu":
            raise UndecodableError(f"it is {values.dtype} {list(values.shape)}")
        return values


def _by_key(masks: Source, names: Sequence[str], place: Mapping[str, int]) -> dict[str, int]:
    """Return the position of the mask of each image name.

    Raises:
        DataError: two masks are for the same image.
    """
    positions: dict[str, int] = {}
    for name in names:
        other = positions.setdefault(_key(name), place[name])
        if other != place[name]:
            raise DataError(
                f"{masks.name} has two masks for one image",
                f"{masks.ids[other]} and {name} differ only in their endings",
                "Remove one",
            )
    return positions


def _bare(name: str) -> str:
    return PurePosixPath(name).stem


def _key(name: str) -> str:
    path = str(PurePosixPath(name).with_suffix(""))
    return next((path.removesuffix(e) for e in ENDINGS if path.endswith(e)), path)


def open_labels(
    source: Source, masks: str | None, preprocess: Preprocess, ignore: int
) -> Labels | None:
    """Return the labels of a source: masks or maps where given, else class folders, else None.

    Args:
        source: the images.
        masks: folder or .zip of masks or of ``.npy`` maps; None for class folders.
        preprocess: of the images.
        ignore: the class index that is ignored.

    Raises:
        DataError: an image has no mask.
    """
    if masks is not None and _are_arrays(masks):
        return PixelMaps(source, masks, preprocess)
    if masks is not None:
        return PixelLabels(source, masks, preprocess, ignore)
    return Labels(source) if source.labels is not None else None


def _are_arrays(masks: str) -> bool:
    """Whether all files of a folder or a .zip are ``.npy`` files."""
    try:
        names = open_source(ARRAYS + masks.removeprefix(ARRAYS)).ids
    except DataError:
        return False  # opened as masks, it says why
    return all(PurePosixPath(n).suffix.lower() == ".npy" for n in names)
