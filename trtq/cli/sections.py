"""Help whose options are grouped by subject, from the model to the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from trtq.specs import FinetuneOptions, InputSpec, ModelInputSpec, QuantizeSpec
from trtq.specs.inputs import PictureSpec

SETTINGS = "Settings"
OUTPUT = ("out", "calib_cache", "as_json", "mlflow", "overwrite", "force")
_OF_IMAGES = tuple(PictureSpec.__struct_fields__)
_OF_DATA = (
    *(n for n in InputSpec.__struct_fields__ if n not in _OF_IMAGES),
    *("masks", "val_masks", "ignore_index", "limit"),
    *("val", "val_class_index", "val_limit"),
)
_OF_MODEL = tuple(
    n for n in ModelInputSpec.__struct_fields__ if n not in InputSpec.__struct_fields__
)
_GENERAL = ("task", "batch_size", "device", "seed", "target", "opset", "parity_images")
_OTHERS = (*ModelInputSpec.__struct_fields__, *_OF_DATA, *OUTPUT, *_GENERAL)
_OF_QUANTIZATION = (
    *(n for n in QuantizeSpec.__struct_fields__ if n not in _OTHERS),
    *("encodings", "ranges", "lower_bits", "codebook", "weight_storage"),  # of training, imports
)
_OF_TRAINING = (
    *(n for n in FinetuneOptions.__struct_fields__ if n not in (*_OTHERS, *_OF_QUANTIZATION)),
    *("sensitivity", "worst"),
)
ARGUMENTS = "Arguments"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model": _OF_MODEL,
    "Data": _OF_DATA,
    "Images": _OF_IMAGES,
    "Quantization": _OF_QUANTIZATION,
    "Training": _OF_TRAINING,
    SETTINGS: (),
    "Output": OUTPUT,
}


def group_of(name: str | None) -> str:
    """Return the section of an option, by its name in the spec.

    >>> [group_of(name) for name in ("model", "data", "resize", "bits", "epochs", "seed", "out")]
    ['Model', 'Data', 'Images', 'Quantization', 'Training', 'Settings', 'Output']
    """
    return next((title for title, names in GROUPS.items() if name in names), SETTINGS)


class Documented(click.Argument):
    """A positional argument that the help describes.

    Attributes:
        about: the description.
    """

    def __init__(self, *args: Any, about: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.about = about


class Sectioned(click.Command):
    """A command whose help has its options in sections, where it takes a model or data."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments and options, each group under its title; a short list remains one."""
        params = self.get_params(ctx)
        arguments = [p for p in params if isinstance(p, Documented)]
        if arguments:
            with formatter.section(ARGUMENTS):
                formatter.write_dl([(p.make_metavar(ctx), p.about) for p in arguments])
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for param in (p for p in params if isinstance(p, click.Option)):
            row = param.get_help_record(ctx)
            if row is not None:
                title = "Output" if "--help" in param.opts else group_of(param.name)
                rows[title].append(row)
        if not rows["Data"] and not rows["Images"]:
            super().format_options(ctx, formatter)
            return
        for title, definitions in rows.items():
            if definitions:
                with formatter.section(title):
                    formatter.write_dl(definitions)
