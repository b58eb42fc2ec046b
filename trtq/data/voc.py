"""The adapter of images with boxes in PASCAL VOC's form: one XML file an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from trtq.data.boxed import boxed_data, image_places, tell_ignored
from trtq.data.boxes import Boxes
from trtq.data.opened import Data, Request
from trtq.data.source import FileSource, open_source
from trtq.data.voc_xml import VocFile, read_voc
from trtq.errors import DataError, UsageError, listed
from trtq.paths import expand_home
from trtq.typed import present

SHOWN = 3
SPLITS = "ImageSets/Main"
CLASS_FILES = ("classes.txt", "labels.txt")


def open_voc(request: Request) -> Data:
    """Return the images and boxes of a folder or a zip, of all its images or of one split.

    Corners count pixels from 1 as in VOC, or from 0 where a box of the data begins at 0; both
    become pixels from 0. Class indices follow ``classes.txt`` or ``labels.txt``, else the order of
    names.

    Args:
        request: its ``text`` is ``voc:FOLDER``, ``voc:FILE.zip`` or either with ``/SPLIT``.

    Raises:
        DataError: an annotation file is damaged, or images are missing.
        UsageError: there is no such split.
    """
    root, split = _root_and_split(request)
    source = open_source(root, None, request.note, forms="flat")
    assert isinstance(source, FileSource)
    source.name = request.text
    files = _read_all(source)
    classes = _classes(request, source, {o.name for f in files.values() for o in f.objects})
    used = {*files, *_helpers(source)}
    tell_ignored(request, source, used)
    chosen = files if split is None else _of_split(request, source, files, split)
    names = _image_names(source, chosen)
    places = image_places(source, names, "its .xml files")
    _require_once(source, places, list(chosen))
    numbers = {name: i for i, name in enumerate(classes)}
    start = _first_pixel(request, list(files.values()))
    by_place = dict(zip(places, chosen.values(), strict=True))
    boxes = {p: _boxes(f, numbers, start) for p, f in by_place.items()}
    empty = sum(len(f.objects) - len(boxes[p]) for p, f in by_place.items())
    if empty:
        request.tell(f"{empty} objects of {request.text} have no box with an area and are left out")
    sizes = {p: f.size or (None, None) for p, f in by_place.items()}
    return boxed_data(request, source, boxes=boxes, classes=classes, sizes=sizes)


def _root_and_split(request: Request) -> tuple[str, str | None]:
    """Return where the data are, and the split behind them if there is one."""
    place = Path(expand_home(request.place, "--data"))
    if place.exists() or place.suffix or not place.parent.exists():
        return str(place), None
    return str(place.parent), place.name


def _helpers(source: FileSource) -> list[str]:
    """Return the files that list images or classes."""
    paths = [(n, PurePosixPath(n)) for n in source.ignored]
    return [n for n, p in paths if p.name in CLASS_FILES or p.parent.as_posix().endswith(SPLITS)]


def _read_all(source: FileSource) -> dict[str, VocFile]:
    """Return the annotation files by name.

    Raises:
        DataError: there are none, or one is damaged.
    """
    names = [n for n in source.ignored if n.lower().endswith(".xml")]
    if not names:
        raise DataError(
            f"There are no annotations in {source.name}",
            "there is no .xml file",
            "Give the folder with Annotations and JPEGImages",
        )
    files = {}
    for name in names:
        try:
            files[name] = read_voc(source.read_other(name))
        except ValueError as exc:
            raise DataError(
                f"Cannot read the annotations {name} of {source.name}",
                str(exc),
                "Give .xml files in PASCAL VOC's form: annotation, object, name, bndbox",
            ) from exc
    return files


def _classes(request: Request, source: FileSource, names: set[str]) -> Sequence[str]:
    """Return the class names in index order: of a list beside the images, or sorted.

    Raises:
        DataError: the list lacks a class of the annotations.
    """
    lists = [n for n in source.ignored if PurePosixPath(n).name in CLASS_FILES]
    if not lists:
        request.tell(
            f"the {len(names)} classes of {request.text} are numbered in the order of their names; "
            f"{CLASS_FILES[0]} with one name a line states another order"
        )
        return sorted(names)
    text = source.read_other(lists[0]).decode("utf-8-sig", "replace")
    classes = [line.strip() for line in text.splitlines() if line.strip()]
    missing = sorted(names - set(classes))
    if missing or len(set(classes)) < len(classes):
        raise DataError(
            f"The class list {lists[0]} of {source.name} does not fit the annotations",
            f"it lacks {listed(missing, SHOWN)}" if missing else "it has a name twice",
            "Write one name of a class a line, in the order of the model's classes",
        )
    return classes


def _of_split(
    request: Request, source: FileSource, files: Mapping[str, VocFile], split: str
) -> Mapping[str, VocFile]:
    """Return the annotation files that a split lists.

    Raises:
        DataError: it lists images without annotations.
        UsageError: there is no such split.
    """
    lists = [n for n in source.ignored if PurePosixPath(n).parent.as_posix().endswith(SPLITS)]
    own = [n for n in lists if PurePosixPath(n).stem == split]
    if not own:
        known = sorted({PurePosixPath(n).stem for n in lists})
        raise UsageError(
            f"Cannot use --data {request.text}",
            f"there is no {SPLITS}/{split}.txt; known: {', '.join(known) or 'none'}",
            f"Leave /{split} out to use all images",
        )
    by_place = {(_set_of(n), PurePosixPath(n).stem): n for n in files}
    by_stem = {PurePosixPath(n).stem: n for n in files}
    wanted = [(PurePosixPath(n).parents[2], stem) for n in own for stem in _stems(source, n)]
    names = [by_place.get((root, stem)) or by_stem.get(stem) for root, stem in wanted]
    missing = [stem for (_, stem), name in zip(wanted, names, strict=True) if name is None]
    if missing:
        raise DataError(
            f"{source.name} lists images without annotations",
            f"{len(missing)} of {len(wanted)} in {own[0]}: {listed(missing, SHOWN)}",
            "Add their .xml files, or remove their lines",
        )
    return {name: files[name] for name in present(names)}


def _stems(source: FileSource, name: str) -> list[str]:
    """Return the names that a list of a split has, one a line."""
    text = source.read_other(name).decode("utf-8-sig", "replace")
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _set_of(name: str) -> PurePosixPath:
    """Return the folder with Annotations and JPEGImages that a file of one of them is in."""
    return PurePosixPath(name).parent.parent


def _image_names(source: FileSource, files: Mapping[str, VocFile]) -> list[str]:
    """Return the image of each annotation file: that of its own name, else that it names.

    With several images of its name it is that of the written path, or in the same set (VOC2007).
    """
    by_stem: dict[str, list[str]] = {}
    for image in source.ids:
        by_stem.setdefault(PurePosixPath(image).stem, []).append(image)
    names = []
    for name, file in files.items():
        same = by_stem.get(PurePosixPath(name).stem, [])
        path = PurePosixPath(file.filename.replace("\\", "/"))
        same = [i for i in same if f"/{i}".endswith(f"/{path}")] or same
        same = [i for i in same if _set_of(i) == _set_of(name)] or same
        names.append(same[0] if len(same) == 1 else path.name or f"{PurePosixPath(name).stem}.jpg")
    return names


def _require_once(source: FileSource, places: Sequence[int], names: Sequence[str]) -> None:
    """Refuse two annotation files for one image."""
    first: dict[int, str] = {}
    for place, name in zip(places, names, strict=True):
        other = first.setdefault(place, name)
        if other != name:
            raise DataError(
                f"{source.name} has two annotation files for {source.ids[place]}",
                f"{other} and {name}",
                "Remove one",
            )


def _first_pixel(request: Request, files: Sequence[VocFile]) -> int:
    """Return the number of the first pixel: 1 as in VOC, 0 where a box begins there."""
    corners = [o.corners for f in files for o in f.objects]
    if not any(min(c[:2]) < 1 for c in corners):
        return 1
    request.tell(
        f"boxes of {request.text} begin at 0: pixels are counted from 0, not from 1 as in VOC"
    )
    return 0


def _boxes(file: VocFile, numbers: Mapping[str, int], start: int) -> Boxes:
    """Return the objects of an image; ``start`` is the number of the first pixel."""
    corners = [(o.corners[0] - start, o.corners[1] - start, *o.corners[2:]) for o in file.objects]
    rows = [
        (box, o)
        for box, o in zip(corners, file.objects, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]
    return Boxes.of(
        [box for box, _ in rows],
        [numbers[o.name] for _, o in rows],
        difficult=[o.difficult for _, o in rows],
    )
