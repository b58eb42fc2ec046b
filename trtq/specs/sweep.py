"""Sweeps: what a sweep is asked for, and the ``[sweep]`` table of its file."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from trtq.specs.base import Doc, PathDoc, Spec, open_choice

Executor = Annotated[str, open_choice("executors", "local", "ray", "slurm")]
EXECUTED = Doc(
    description="Where runs are executed: processes of this machine, a Ray cluster, or Slurm's "
    "queue."
)
Address = Annotated[
    str,
    Doc(
        description="Address of the Ray cluster; default: $RAY_ADDRESS, else Ray is started on "
        "this machine."
    ),
]


class Slots(Spec, frozen=True, kw_only=True):
    """Resources of one run: the table ``[sweep.slots]``.

    Attributes:
        cpus: 0 for a run that mostly waits.
    """

    cpus: Annotated[int, Meta(ge=0)] = 1
    gpus: Annotated[int, Meta(ge=0)] = 0
    resources: dict[str, Annotated[float, Meta(gt=0)]] = {}

    @property
    def threads(self) -> int:
        """Threads of the processor that a run may start."""
        return max(self.cpus, 1)


class SweepTable(Spec, frozen=True, kw_only=True):
    """The ``[sweep]`` table: limits, the store and what a run takes."""

    limit: Annotated[int, Meta(ge=1)] = 500
    store: Annotated[str, PathDoc(description="Folder or URL of the store.")] = ""
    project: str = ""
    lease: Annotated[float, Meta(ge=0.5)] = 60.0
    retries: Annotated[int, Meta(ge=0)] = 2
    slots: Slots = Slots()
    leave_out: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()


class SweepSpec(Spec, frozen=True, kw_only=True):
    """Run every combination of the lists in a recipe, each once."""

    recipe: Annotated[
        str, PathDoc(description="A recipe with a [vary] table of dotted settings and lists.")
    ]
    on: Annotated[Executor, EXECUTED] = "local"
    workers: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Doc(description="Runs at a time; default: as many as the slots allow."),
    ] = None
    store: Annotated[
        str,
        PathDoc(
            description="Folder or URL (s3://bucket/folder, gs://...) that keeps finished runs; "
            "default: [sweep] store, else store in --out."
        ),
    ] = ""
    resume: Annotated[
        bool,
        Doc(description="Reuse the runs that are in the store; off: run them again."),
    ] = True
    out: Annotated[
        str,
        PathDoc(
            description="Folder for the record, the page and the runs' recipes; default: out of "
            "the recipe, else runs/ and its name."
        ),
    ] = ""
    address: Address = ""
    mlflow: Annotated[
        str,
        Doc(
            description="Log the runs' settings, scores and sizes to this MLflow tracking URI.  "
            "[default: off]"
        ),
    ] = ""
