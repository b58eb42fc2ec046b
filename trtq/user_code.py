"""A user's own code, imported without getting in the way of anything else."""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from trtq.artifact import digest_of, sha256_file
from trtq.errors import ModelError, said_by, suggest
from trtq.paths import expand_home


class _Source(SourceFileLoader):
    """Compiles the file that is there: a cached .pyc of the same second and size may be older."""

    def get_code(self, fullname: str) -> CodeType | None:  # noqa: ARG002
        """Return the code of the source."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _from_source(spec: ModuleSpec) -> ModuleSpec:
    if type(spec.loader) is SourceFileLoader:
        spec.loader = _Source(spec.loader.name, spec.loader.path)
    return spec


class _Neighbours(importlib.abc.MetaPathFinder):
    """Finds modules beside a user's file, for the user's code alone.

    They come before installed packages, and after the standard library.
    """

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.served: dict[str, str] = {}  # the folder each module came from

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a top-level module is, None where it is none of the user's."""
        if path is not None:
            return self._inside_package(name, path, target)
        if name in sys.stdlib_module_names or name == "trtq":
            return None
        for folder in self._of_importer():
            spec = PathFinder.find_spec(name, [folder], target)
            if spec is not None:
                self.served[name] = folder
                return _from_source(spec)
        return None

    def _inside_package(
        self, name: str, path: Sequence[str], target: ModuleType | None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.served:
            return None
        spec = PathFinder.find_spec(name, path, target)
        return None if spec is None else _from_source(spec)

    def _of_importer(self) -> list[str]:
        """Return the user's folders that hold the code with the import statement.

        The stack is walked to the first frame outside of importlib and this file. While a package
        is imported by name, the folder that was entered last counts.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file == __file__ and frame.f_code.co_name == _of_package.__name__:
                return self.folders[:1]
            if file != __file__ and not _is_importlib(file):
                return [f for f in self.folders if file.startswith(f"{f}{os.sep}")]
            frame = frame.f_back
        return []

    def enter(self, folder: str) -> None:
        """Look into ``folder`` first, and forget other folders' modules of the same names."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        if (
            folder not in sys.path
        ):  # for imports that other packages do on behalf of the user's code
            sys.path.append(folder)
        importlib.invalidate_caches()
        self.folders = [folder, *(f for f in self.folders if f != folder)]
        for name, origin in list(self.served.items()):
            if origin != folder and PathFinder.find_spec(name, [folder]) is not None:
                del self.served[name]
                for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
                    del sys.modules[loaded]

    def register(self, path: Path, module: ModuleType) -> None:
        """Make a file's own module known under its plain name, where nothing else has that name."""
        name, folder = path.stem, str(path.parent)
        if name not in sys.modules and name not in sys.stdlib_module_names and name.isidentifier():
            self.served[name] = folder
        if self.served.get(name) == folder:
            sys.modules[name] = module


def _is_importlib(file: str) -> bool:
    return (
        file.startswith("<frozen importlib") or Path(file).parent == Path(importlib.__file__).parent
    )


_neighbours = _Neighbours()


def import_named(name: str, what: str) -> Any:
    """Return the callable ``package.module:attribute`` or ``path/to/file.py:attribute``.

    Args:
        name: as the user wrote it.
        what: it is for, as errors call it.

    Raises:
        ModelError: as for :func:`attribute_of`, or what has that name is no callable.
        UsageError: the path begins with a home that nobody knows.
    """
    target = attribute_of(name, what)
    if not callable(target):
        where, _, attr = name.rpartition(":")
        raise ModelError(f"Cannot load the {what} {name!r}", f"{where} has no callable {attr!r}")
    return target


def attribute_of(name: str, what: str) -> Any:
    """Return the attribute ``package.module:attribute`` or ``path/to/file.py:attribute``.

    A file may import its neighbours; a neighbour never replaces a module of the standard library,
    nor one that another folder's file imported under the same name.

    Args:
        name: as the user wrote it.
        what: it is for, as errors call it.

    Raises:
        ModelError: the module cannot be imported, ends the program, or has nothing of that name.
        UsageError: the path begins with a home that nobody knows.
    """
    where, _, attr = expand_home(name, f"the {what}").rpartition(":")
    forms = "timm:NAME, torchvision:NAME, trtq:fcn_resnet18, " if what == "model" else ""
    try:
        module = _of_file(name, where, what) if where.endswith(".py") else _of_package(where)
    except (ModelError, KeyboardInterrupt):
        raise
    except (
        BaseException
    ) as exc:  # sys.exit() in the user's code must not end this program as if all were well
        known = f"Known forms: {forms}package.module:NAME, path/to/file.py:NAME"
        raise ModelError(
            f"Cannot load the {what} {name!r}",
            f"importing {where} raised {said_by(exc)}",
            _as_package(where, attr) if "relative import" in str(exc) else known,
        ) from exc
    if not hasattr(module, attr):
        names = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        raise ModelError(
            f"Cannot load the {what} {name!r}",
            f"{where} has no callable {attr!r}",
            suggest(attr, names),
        )
    return getattr(module, attr)


def source_digest(name: str, what: str) -> str:
    """Return a SHA-256 over the file of the user's callable and the files that it imports.

    Imports are followed from file to file, among those beside the callable's file.

    Args:
        name: as for :func:`import_named`.
        what: it is for, as errors call it.

    Raises:
        ModelError: it cannot be imported.
    """
    first = sys.modules[import_named(name, what).__module__]
    home = _file_of(first).parent
    known, pending = dict[Path, str](), [first]
    while pending:
        module = pending.pop()
        file = _file_of(module)
        if file in known or not file.is_relative_to(home) or not file.is_file():
            continue
        known[file] = sha256_file(file)
        used = {
            v.__name__ if isinstance(v, ModuleType) else getattr(v, "__module__", None)
            for v in vars(module).values()
        }
        pending += [sys.modules[n] for n in used if isinstance(n, str) and n in sys.modules]
    return digest_of(sorted([str(f.relative_to(home)), digest] for f, digest in known.items()))


def _file_of(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or "").resolve()


def _as_package(where: str, attr: str) -> str:
    """Return how to name a file that imports its neighbours as parts of a package."""
    path = Path(where).resolve()
    name, root = path.stem, path.parent
    while (root / "__init__.py").is_file() or name == path.stem:
        name, root = f"{root.name}.{name}", root.parent
    return f"It is a part of a package: cd {shlex.quote(str(root))}, and give {name}:{attr}"


def _of_file(name: str, where: str, what: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise ModelError(f"Cannot load the {what} {name!r}", f"there is no file {where}")
    own = f"_trtq_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(own, path, loader=_Source(own, str(path)))
    if spec is None or spec.loader is None:
        raise ModelError(f"Cannot load the {what} {name!r}", f"{where} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    _neighbours.enter(str(path.parent))
    sys.modules[own] = module  # dataclasses and pickles look their module up
    _neighbours.register(path, module)
    spec.loader.exec_module(module)
    return module


def _of_package(where: str) -> ModuleType:
    # A console script does not see the current folder; a user's own package usually is there.
    _neighbours.enter(str(Path.cwd()))
    return importlib.import_module(where)


def call_factory(factory: Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> Any:
    """Return what a model's factory makes.

    Args:
        factory: the callable.
        name: as the user wrote it, for messages.
        kwargs: its keyword arguments.

    Raises:
        ModelError: it raised, or ended the program.
    """
    try:
        return factory(**kwargs)
    except (ModelError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        raise ModelError(
            f"Cannot make the model {name!r}",
            f"its factory raised {said_by(exc)}",
            "Check --model-arg",
        ) from exc
