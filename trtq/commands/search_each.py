"""Searches of the candidates alone, in other processes or on other machines."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtq.artifact import read_record, write_json
from trtq.commands.candidates import candidates_of
from trtq.files import REFERENCE_JSON
from trtq.jobs.executors import Settings, open_executor
from trtq.jobs.together import carry_out, job_of
from trtq.records.search import Reference
from trtq.specs import SearchSpec
from trtq.specs.sweep import Slots
from trtq.workspace import Workspace


class Referred(msgspec.Struct, frozen=True):
    """The reference of a search: a search.json, or the file that several of them share.

    Attributes:
        reference: the float model.
    """

    reference: Reference

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Return the reference in a file.

        Args:
            path: of ``search.json`` or ``reference.json``.

        Raises:
            ArtifactError: it is missing, or no record of a search.
        """
        return read_record(path, cls, kind="record of a search").reference


def search_each(spec: SearchSpec, on: str, reference: Reference, work: Workspace) -> None:
    """Search every candidate alone.

    Each leaves its analysis and its tries where the search of all of them reads them. A try
    that one does not leave is measured by that search, or refused with its reason.

    Args:
        spec: of the search of all.
        on: the executor.
        reference: of all of them.
        work: of the search of all.

    Raises:
        UsageError: the executor cannot be used, or has workers with other versions.
    """
    shared = str(write_json(work.folder / REFERENCE_JSON, Referred(reference)).absolute())
    jobs = [
        job_of(n.label, "search", msgspec.structs.replace(n.alone(spec), reference=shared))
        for n in candidates_of(spec)
    ]
    settings = Settings(
        folder=work.folder,
        slots=Slots(gpus=int(spec.device == "cuda")),  # each a GPU of its own
        workers=spec.workers,
        retries=2,
        address=spec.address,
    )
    executor = open_executor(on, settings, work.progress)
    for name, ended in carry_out(jobs, executor, work.progress).items():
        if ended.reason:
            work.progress.note(f"{name} was not searched alone: {ended.reason}")
