"""The adapter of images: folders, zips, CIFAR-10, digits."""

from __future__ import annotations

from trtq.data.labels import open_labels
from trtq.data.model_inputs import InputNeeds
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import ImageSamples, Samples
from trtq.data.source import open_source

IGNORE = 255


def open_images(request: Request) -> Data:
    """Return the images behind a text.

    Args:
        request: what was asked for; its ``text`` names the data.

    Raises:
        DataError: missing, empty, damaged, or classes that are not clear.
    """
    source = open_source(request.text, request.class_index, request.note)
    ignored = IGNORE if request.ignore_index is None else request.ignore_index

    def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
        assert picture is not None
        labels = open_labels(source, request.masks, picture, ignored)
        samples = ImageSamples(
            source=source, picture=picture, indices=range(len(source)), labels=labels
        )
        return samples if needs is None else samples.bound(needs)

    return Data(name=request.text, make=make, source=source)
