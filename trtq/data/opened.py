"""Data that a text named: opened and checked, not yet the inputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtq.data.model_inputs import InputNeeds
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.data.source import Source
from trtq.data.tensor_samples import TensorSamples

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request of a user.

    Attributes:
        text: as it was written.
        class_index: the order of classes, for images.
        masks: where the masks of the images are.
        ignore_index: the target value that is not counted; None for the usual one.
        limit: keep at most so many samples of data that can be read once only, or draw so many.
        tokenizer: file of the tokenizer, for texts.
        note: receives what a user should read.
    """

    text: str
    class_index: str | None = None
    masks: str | None = None
    ignore_index: int | None = None
    limit: int | None = None
    tokenizer: str | None = None
    note: Note | None = None

    @property
    def place(self) -> str:
        """The text behind the word and its colon."""
        return self.text.partition(":")[2]

    def tell(self, *lines: str) -> None:
        """Pass lines to the user."""
        for line in lines:
            if self.note is not None:
                self.note(line)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Source that a text names.

    Attributes:
        name: the text.
        make: returns the samples for what a model takes and how images become its input; either
            can be None where it is not known.
        source: the images, where the data are images.
        tensors: the samples, where these are known before the model is.
        first: returns a batch of two for the names of a model's inputs, where only it can.
        axes: names of the axes of each input, the batch included, where samples differ in size.
    """

    name: str
    make: Callable[[InputNeeds | None, Preprocess | None], Samples]
    source: Source | None = None
    tensors: TensorSamples | None = None
    first: Callable[[Sequence[str]], object] | None = None
    axes: tuple[str, ...] = ()

    @classmethod
    def of_tensors(cls, samples: TensorSamples) -> Data:
        """Return data that are inputs already.

        Args:
            samples: not bound to a model yet.
        """

        def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
            del picture
            return samples if needs is None else samples.bound(needs)

        axes: tuple[str, ...] = getattr(samples.rows, "axes", ())
        return cls(name=samples.name, make=make, tensors=samples, axes=axes)

    @classmethod
    def of_samples(cls, samples: Samples) -> Data:
        """Return samples that a program opened before.

        Args:
            samples: of any kind.
        """
        return cls(
            name=samples.name,
            make=lambda needs, _: samples if needs is None else samples.bound(needs),
            first=lambda _: next(samples.batches(2, count=2)).input,
        )

    def first_batch(self, names: Sequence[str]) -> object:
        """Return the first two samples as a batch to capture a model with.

        It is None for images, and where the model must be known first.

        Args:
            names: of the model's inputs, such as the parameters of ``forward``.

        Raises:
            DataError: a sample cannot be read.
        """
        if self.first is not None:
            return self.first(names)
        return None if self.tensors is None else self.tensors.first_batch(names)

    def identity(self) -> str | None:
        """Return a digest of all that the data hold; None where that depends on the model."""
        if self.source is not None:
            return self.source.identity()
        return None if self.tensors is None else self.tensors.digest()


OpenData = Callable[[Request], Data]
