"""``trtq fleet``: several models on several boards side by side, in one table.

A board that fails leaves the others alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtq.artifact import ensure_writable_dir, environment, header, read_record
from trtq.commands.board_settings import power_of, require_mode
from trtq.commands.deploy import deploy, name_of
from trtq.deploy.agent_client import Agent
from trtq.deploy.answers import EngineAnswer, EngineEntry, Listing
from trtq.deploy.board import Board, probe
from trtq.deploy.devices import Device, find_device, known_devices
from trtq.deploy.ledger import board_manifest, is_known_engine
from trtq.deploy.record import FleetRecord, FleetRow, fleet_rows
from trtq.engine.manifest import EngineManifest
from trtq.errors import BoardError, TrtqError, UsageError
from trtq.files import DEPLOY_JSON, FLEET_HTML, FLEET_JSON
from trtq.jobs.executors import Settings, open_executor
from trtq.jobs.together import carry_out, job_of
from trtq.jobs.work import Ended, Job
from trtq.progress import Progress, or_silent
from trtq.report.fleet import write_fleet_page
from trtq.specs import DeployOptions, DeploySpec, FleetSpec
from trtq.specs.sweep import Slots
from trtq.workspace import Workspace

Done = tuple[list[FleetRow], list[str]]


def fleet(spec: FleetSpec, progress: Progress | None = None) -> FleetRecord:
    """Deploy every model to every device, or measure the engines on it.

    Writes ``fleet.json`` and what each device left; several devices have a folder each, and are
    served at once, each by a process of its own.

    A board that fails has a row with the reason, and the exit code says so.

    Args:
        spec: models, devices, and what to measure; without a model every engine on the devices is
            measured.
        progress: receives lines with the device's name in front.

    Raises:
        UsageError: no device, or an unknown one; the executor cannot be used.
    """
    progress = or_silent(progress)
    devices, names = _devices(spec.devices), model_names(spec.model)
    work = Workspace(Path(spec.out), FLEET_JSON, progress)
    with work.locked():
        if len(devices) == 1:
            done = [_one(*devices[0], spec, names, work.folder, progress)]
        else:
            done = _each(spec, devices, work)
        record = FleetRecord(
            **header("fleet", spec),
            rows=[r for rows, _ in done for r in rows],
            records=[p for _, paths in done for p in paths],
            seconds=work.clock.total,
            environment=environment(),
        )
        work.save(record)
        write_fleet_page(record, work.folder / FLEET_HTML)
    return record


def _each(spec: FleetSpec, devices: Sequence[tuple[str, Device]], work: Workspace) -> list[Done]:
    """Do every device by a fleet of its own, and return what each gave."""
    change, folder = msgspec.structs.replace, work.folder
    jobs = list[Job]()
    for typed, device in devices:
        (folder / device.name / FLEET_JSON).unlink(missing_ok=True)  # of an earlier fleet
        own = change(spec, devices=typed, out=str(folder / device.name), on="local", workers=None)
        jobs.append(job_of(device.name, "fleet", change(own, address="")))
    settings = Settings(
        folder=folder,
        slots=Slots(cpus=0),
        workers=spec.workers or len(jobs),
        retries=0,  # a device that went away has been waited for
        address=spec.address,
    )
    ended = carry_out(jobs, open_executor(spec.on, settings, work.progress), work.progress)
    return [_given(device, ended[device.name], folder) for _, device in devices]


def _given(device: Device, ended: Ended, folder: Path) -> Done:
    """Return what a device gave; without a record, a row that says why there is none."""
    path = folder / device.name / FLEET_JSON
    if not path.is_file():  # a fleet in which a device failed has a reason and a record
        why = ended.reason or f"{ended.host} left no {path}: name an --out that all workers see"
        return [FleetRow(device=device.name, board="", model="", why=why)], []
    record = read_record(path, FleetRecord)
    return record.rows, [f"{device.name}/{p}" for p in record.records]


def model_names(models: Sequence[str]) -> list[str]:
    """Return a name for each model that tells it from the others.

    Args:
        models: paths of ONNX files.

    Returns:
        Stems of the files; where two are equal, the name of the folder in front of each.

    Raises:
        UsageError: a file is missing, or two would have one name.
    """
    missing = next((m for m in models if not Path(m).is_file()), None)
    if missing is not None:
        raise UsageError(f"Cannot deploy {missing}", "there is no such file")
    names = [Path(m).stem for m in models]
    if _repeated(names) is not None:
        names = [name_of(Path(m)) for m in models]
    twice = _repeated(names)
    if twice is not None:
        raise UsageError(
            f"Two models would both be called {twice}",
            "the table could not tell them apart",
            "Put them into folders of different names",
        )
    return names


def _repeated(names: Sequence[str]) -> str | None:
    return next((n for n in names if names.count(n) > 1), None)


def _devices(text: str) -> list[tuple[str, Device]]:
    """Return the devices, each with what it was called."""
    names = [n.strip() for n in text.split(",") if n.strip()] or list(known_devices())
    if not names:
        raise UsageError(
            "There is no device",
            "none has been added yet",
            "Add one: trtq device add NAME user@host",
        )
    twice = _repeated(names)
    if twice is not None:
        raise UsageError(f"--devices names {twice} twice")
    return [(n, find_device(n)) for n in names]


def _one(
    typed: str, device: Device, spec: FleetSpec, names: list[str], out: Path, progress: Progress
) -> Done:
    """Do everything on one device; an error becomes a row that says it."""
    rows, paths = list[FleetRow](), list[str]()
    if not spec.model:
        return _measure_engines(device, spec, out, progress), []
    options = {n: getattr(spec, n) for n in DeployOptions.__struct_fields__}
    for model, name in zip(spec.model, names, strict=True):
        folder = f"{out}/{name}"
        try:
            record = deploy(DeploySpec(device=typed, model=model, out=folder, **options), progress)
            rows += record.table(name)
            paths.append(f"{name}/{DEPLOY_JSON}")
        except TrtqError as exc:
            progress.note(exc.coded)
            rows.append(FleetRow(device=device.name, board="", model=name, why=exc.coded))
    return rows, paths


def _measure_engines(
    device: Device, spec: FleetSpec, folder: Path, progress: Progress
) -> list[FleetRow]:
    """Measure every engine that is on a device."""
    rows = list[FleetRow]()
    agent = Agent(device, progress, patience_s=spec.reconnect_timeout)
    try:
        board = probe(agent)
        require_mode(spec, board)
        for entry in agent.ask("list", Listing).engines:
            rows += _measure_engine(agent, board, entry, spec, folder, progress)
        if not rows:
            why = "no engine there yet: trtq deploy"
            rows.append(FleetRow(device=device.name, board=board.name, model="", why=why))
    except TrtqError as exc:
        progress.note(exc.coded)
        rows.append(FleetRow(device=device.name, board="", model="", why=exc.coded))
    finally:
        agent.close()
    return rows


def _measure_engine(
    agent: Agent,
    board: Board,
    entry: EngineEntry,
    spec: FleetSpec,
    folder: Path,
    progress: Progress,
) -> list[FleetRow]:
    """Measure one engine; an error becomes a row that says it."""
    from trtq.deploy.measure import measure

    file = entry.file  # in the form of an engine's name: the reader sees to it
    name = f"{Path(entry.model).stem} ({file[:8]})"  # of one model there may be several
    path, device = f"{board.home}/engines/{file}", agent.device.name
    try:
        manifest = _manifest(agent, file, progress)
        place, nonce = ensure_writable_dir(folder / file[:12]), secrets.token_hex(8)
        rows = measure(agent, board, manifest, path, spec, power_of(spec), place, nonce)
        return fleet_rows(device, board.name, name, manifest, rows)
    except TrtqError as exc:
        return [FleetRow(device=device, board=board.name, model=name, why=exc.coded)]


def _manifest(agent: Agent, file: str, progress: Progress) -> EngineManifest:
    """Return the manifest of an engine that is on a device.

    Raises:
        BoardError: there is none, or it is not the one that was kept here.
    """
    answer, device = agent.ask("engine", EngineAnswer, name=f"engines/{file}"), agent.device
    cannot = f"Cannot measure {file[:12]} on {device.name}"
    if answer.manifest is None:
        why = "it was changed since it was built" if answer.changed else "it has no manifest"
        raise BoardError(cannot, why, "Deploy its model again")
    manifest = board_manifest(answer.manifest, device.name)
    known = is_known_engine(device, f"engines/{file}", manifest)
    if known is False:
        raise BoardError(
            cannot, "it is not the one that was built from here", "Deploy its model again"
        )
    if known is None:
        progress.note(f"{device.name}: another workstation built the engine {file[:12]}")
    return manifest
