"""Which number a class has, the same for training, validation and evaluation images."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import msgspec

from trtq.artifact import decode_json
from trtq.data.listing import is_image, same_name
from trtq.errors import DataError, listed, reason, suggest

ORDERS = ("text", "numeric")  # class indices without a file: the order of folder names
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
PARTS = frozenset(
    {
        "images",
        "image",
        "img",
        "imgs",
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "annotation",
        "leftimg8bit",
        "gtfine",
        "trainannot",
        "valannot",
        "testannot",
    }
)
FEW_NAMES = 5
Forms = Literal["classes", "arrays", "flat"]


@dataclass(slots=True)
class Arrangement:
    """The images of a listing and their classes.

    Attributes:
        ids: relative paths, sorted as text.
        labels: class index per image; None without class folders.
        classes: names in index order.
        ignored: files that are not images.
        indexed: whether a class index states the order.
        notes: lines that a user should read.
    """

    ids: list[str]
    labels: list[int] | None = None
    classes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    indexed: bool = False
    notes: list[str] = field(default_factory=list)


class Labelled(Protocol):
    """A source with classes."""

    name: str
    labels: list[int] | None
    classes: list[str]
    indexed: bool


def arrange(
    name: str,
    files: Sequence[str],
    folders: set[str],
    class_index: Path | None,
    *,
    forms: Forms = "classes",
) -> Arrangement:
    """Return the images among ``files`` and their classes: folders on the first level.

    Args:
        name: of the data, for errors.
        files: relative paths.
        folders: on the first level.
        class_index: the order of classes.
        forms: ``classes`` as above; ``arrays`` takes arrays in .npy files as images, too; ``flat``
            gives no classes, regardless of the folders, and leaves other files to the caller.

    Raises:
        DataError: no images, images beside class folders, folders that are not classes, or a class
            index that does not fit.
    """
    arrangement = _images(name, files, arrays=forms == "arrays")
    ids = arrangement.ids
    if forms == "flat":
        arrangement.notes.clear()
        return arrangement
    filled = sorted({f.split("/")[0] for f in ids if "/" in f})
    if not filled:
        _require_no_index(name, class_index)
        return arrangement
    loose = [f for f in ids if "/" not in f]
    nested = [f for f in ids if f.count("/") > 1]
    if class_index is None:
        _require_classes(name, filled, loose, nested=bool(nested))
    if loose:
        raise DataError(
            f"{name} mixes class folders with images outside of them",
            f"{loose[0]} and {len(loose) - 1} more are beside the folders",
        )
    class_names = {f: unicodedata.normalize("NFC", f) for f in sorted(folders)}
    _number(name, arrangement, class_names, class_index)
    empty = sorted(folders - set(filled))
    if empty:
        arrangement.notes.append(
            f"{len(empty)} class folders of {name} have no images but keep their class numbers, "
            f"such as {empty[0]}"
        )
    if nested:
        arrangement.notes.append(
            f"nested folders of {name} belong to the class of their first level, such as "
            f"{PurePosixPath(nested[0]).parent}"
        )
    return arrangement


def _images(name: str, files: Sequence[str], *, arrays: bool = False) -> Arrangement:
    images = sorted(f for f in files if is_image(f) or (arrays and f.lower().endswith(".npy")))
    arrangement = Arrangement(images, ignored=sorted(set(files) - set(images)))
    if not images:
        other = (
            f"; it has {len(arrangement.ignored)} other files, such as {arrangement.ignored[0]}"
            if arrangement.ignored
            else ""
        )
        why = (
            f"looked for .jpg, .jpeg, .png, .bmp, .webp, .ppm, .tif, .tiff{other}"
            if files
            else "the folder is empty"
        )
        raise DataError(f"There are no images in {name}", why)
    if arrangement.ignored:
        arrangement.notes.append(
            f"{len(arrangement.ignored)} files in {name} are not images and were ignored, such as "
            f"{arrangement.ignored[0]}"
        )
    return arrangement


def _require_no_index(name: str, class_index: Path | None) -> None:
    if class_index is not None:
        raise DataError(
            f"{name} has no class folders",
            "--class-index was given",
            "Leave --class-index out, or sort the images into folders",
        )


def _require_classes(name: str, folders: list[str], loose: list[str], *, nested: bool) -> None:
    """Refuse folders whose names or depth say that they are no classes."""
    place = name.rstrip("/")
    if not loose and {f.lower() for f in folders} <= SPLITS | PARTS:
        what = (
            f"{name} is not one set of images but several"
            if len(folders) > 1
            else f"{name} holds one folder, which is no class"
        )
        raise DataError(
            what,
            f"it holds only {', '.join(folders)}",
            f"Choose one: {' or '.join(f'{place}/{f}' for f in folders)}; if they are classes, add "
            "--class-index text",
        )
    if len(folders) == 1 and not loose and nested:
        raise DataError(
            f"{name} holds one folder that holds folders",
            f"{folders[0]} would be the only class",
            f"Use {place}/{folders[0]}",
        )


def _number(
    name: str, arrangement: Arrangement, names: Mapping[str, str], class_index: Path | None
) -> None:
    """Give every image its class index; ``names`` are the class names of folders."""
    arrangement.classes = _order(sorted(names.values()), class_index)
    arrangement.indexed = class_index is not None
    first: dict[str, str] = {}
    for one in names:
        other = first.setdefault(same_name(one), one)
        if other != one and (class_index is None or names[other] == names[one]):
            raise DataError(
                f"{name} has two folders for one class name",
                f"{other!r} and {one!r} differ only in case or in Unicode composition",
                "Rename or merge them",
            )
    position = {n: i for i, n in enumerate(arrangement.classes)}
    arrangement.labels = [position[names[f.split("/")[0]]] for f in arrangement.ids]


def _order(names: list[str], class_index: Path | None) -> list[str]:
    """Return class names in index order."""
    if class_index is None or (str(class_index) == "text" and not class_index.is_file()):
        return names
    if str(class_index) == "numeric" and not class_index.is_file():
        other = next((n for n in names if not n.isdecimal()), None)
        if other is not None:
            raise DataError(
                "Cannot use --class-index numeric",
                f"the folder {other!r} is not a number",
                "Give --class-index FILE",
            )
        return sorted(names, key=int)
    return _read_index(names, class_index)


def _read_index(names: list[str], class_index: Path) -> list[str]:
    try:
        named = decode_json(class_index.expanduser().read_bytes(), list[str])
    except (OSError, RuntimeError, msgspec.MsgspecError) as exc:
        raise DataError(
            f"Cannot use the class index {class_index}",
            f"{reason(exc)}; expected a JSON list of folder names",
            f"Give such a file, or one of: {', '.join(ORDERS)}",
        ) from exc
    order = [unicodedata.normalize("NFC", n) for n in named]
    twice = (
        next((n for n in order if order.count(n) > 1), None)
        if len(set(order)) < len(order)
        else None
    )
    if twice is not None:
        raise DataError(
            f"The class index {class_index} names {twice!r} twice",
            "a folder has one class number",
            "Remove one of them",
        )
    unknown = [n for n in names if n not in set(order)]
    if unknown:
        raise DataError(
            f"The class index {class_index} does not name the folder {unknown[0]!r}",
            f"{len(unknown)} of {len(names)} folders are missing from its {len(order)} names",
            suggest(unknown[0], order),
        )
    return order


def require_one_class_list(*sources: Labelled | None) -> None:
    """Refuse sets whose labels do not mean the same classes: call it wherever labels are used.

    Sets without labels are left alone.

    Args:
        sources: training images first; None is skipped.

    Raises:
        DataError: the numbers of classes are ambiguous, or differ between the sets.
    """
    labelled = [s for s in sources if s is not None and s.labels is not None]
    for source in labelled:
        _require_one_order(source)
    for other in labelled[1:]:
        require_known_classes(
            other, labelled[0].classes, labelled[0].name, indexed=labelled[0].indexed
        )


def _require_one_order(source: Labelled) -> None:
    """Refuse folders named by numbers whose order as text is not their order as numbers."""
    names = source.classes
    if source.indexed or not all(n.isdecimal() for n in names) or sorted(names, key=int) == names:
        return
    raise DataError(
        f"The class numbers of {source.name} are ambiguous",
        f"its folders are numbers; as text their order is {listed(names, FEW_NAMES)}, as numbers "
        f"{listed(sorted(names, key=int), FEW_NAMES)}",
        "Add --class-index numeric, --class-index text (the order of torchvision's ImageFolder) "
        "or --class-index FILE",
    )


def require_known_classes(
    source: Labelled, known: Sequence[str], owner: str, *, indexed: bool = False
) -> None:
    """Refuse labels whose numbers are not those of the classes that a model was trained on.

    Args:
        source: the labels.
        known: class names of the training images in index order.
        owner: of ``known``, for the message.
        indexed: whether a class index states the order of ``known``.

    Raises:
        DataError: a class is unknown or has another number.
    """
    if source.labels is None or list(known) == source.classes:
        return
    if indexed and source.indexed and len(known) == len(source.classes):
        return  # the user states both: the names of the same classes may differ
    foreign, moved = _differences(source.classes, known)
    if foreign or moved:
        _refuse(source, known, owner, foreign or moved)


def require_calibrated_classes(source: Labelled, known: Sequence[str], owner: str) -> None:
    """Refuse folders that lack classes of the calibration images, so that others change numbers.

    Calibration does not use labels: its images may show fewer classes than the model has.

    Args:
        source: images to evaluate on.
        known: classes of the calibration images in index order.
        owner: of ``known``, for the message.

    Raises:
        DataError: classes are missing, and others have therefore another number.
    """
    if source.labels is None or source.indexed or set(known) <= set(source.classes):
        return
    _, moved = _differences(source.classes, known)
    if moved:
        _refuse(source, known, owner, moved)


def _differences(names: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names that are not known, and the known ones that have another number."""
    number = {n: i for i, n in enumerate(known)}
    return [n for n in names if n not in number], [
        n for i, n in enumerate(names) if number.get(n, i) != i
    ]


def _refuse(source: Labelled, known: Sequence[str], owner: str, names: list[str]) -> None:
    ours = sorted(set(source.classes) - set(known))
    theirs = sorted(set(known) - set(source.classes))
    only = [
        f"{listed(ns, FEW_NAMES)} only in {where}"
        for ns, where in ((ours, source.name), (theirs, owner))
        if ns
    ]
    number = known.index(names[0]) if names[0] in known else "no class"
    raise DataError(
        f"{source.name} and {owner} do not have the same classes",
        f"{'; '.join(only) or 'their order differs'}; {names[0]} is class "
        f"{source.classes.index(names[0])} in {source.name} and {number} in {owner}",
        "Give --class-index FILE, a JSON list of all folder names in class order",
    )


def mirrored_pair(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes that become each other in a mirror, such as ``left`` and ``right``.

    Args:
        classes: names of classes; case does not count.

    Returns:
        The first such pair; None where no name with ``left`` has a partner with ``right``.

    >>> mirrored_pair(["turn_left", "turn_right", "straight"])
    ('turn_left', 'turn_right')
    """
    names = {n.lower(): n for n in classes}
    for low, name in names.items():
        other = names.get(low.replace("left", "right")) if "left" in low else None
        if other is not None:
            return name, other
    return None
