"""The agent's answers in the only accepted form, and its advice in this machine's words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from trtq.agent import HINTS, MARK, MOST_TEXT
from trtq.artifact import decode_json
from trtq.errors import BoardError, reason

Text: TypeAlias = Annotated[str, Meta(max_length=4000)]
Short: TypeAlias = Annotated[str, Meta(max_length=256)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 50)]
Digest: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Key: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-z]{2,64}\Z")]
EngineName: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\.engine\Z")]
Folder: TypeAlias = Annotated[str, Meta(pattern=r"\A/[^\x00-\x1f\x7f]*\Z", max_length=4096)]
Number: TypeAlias = Annotated[float, Meta(ge=-1e15, le=1e15)]
Whole: TypeAlias = Annotated[int, Meta(ge=-(1 << 50), le=1 << 50)]
Numbers: TypeAlias = Annotated[dict[Short, Number], Meta(max_length=4096)]


class Answer(msgspec.Struct, frozen=True):
    """One answer; the ``event`` of a line says which, see ``ANSWERS``."""


class Hint(msgspec.Struct, frozen=True):
    """Advice: a name of ``HINTS``, and what the board puts into it."""

    name: Annotated[str, Meta(max_length=40)]
    arguments: Annotated[
        dict[Short, Annotated[str, Meta(max_length=MOST_TEXT)]], Meta(max_length=8)
    ]


class Hello(Answer, frozen=True):
    """The first line."""

    protocol: int
    agent: Short


class Broken(Answer, frozen=True):
    """The agent could not start.

    Texts are in hexadecimal: nothing could be imported to encode them otherwise.
    """

    why: Annotated[str, Meta(pattern=r"\A[0-9a-f]*\Z", max_length=8000)]
    python: Annotated[str, Meta(pattern=r"\A[0-9a-f]*\Z", max_length=8000)]


class Refusal(Answer, frozen=True):
    """The board cannot, or must not."""

    why: Text
    mend: Hint


class Beat(Answer, frozen=True):
    """The agent is at work."""


class Stale(Answer, frozen=True):
    """Another agent is there, or none."""


class Done(Answer, frozen=True):
    """The request is done."""


class Installed(Answer, frozen=True):
    """Answer of ``install``."""

    whole: bool


class Upload(Answer, frozen=True):
    """Answer of ``have`` and ``put``: how much of a file is there.

    Attributes:
        state: ``stored`` (whole, with the right digest), ``part``, ``cut`` (the link broke),
            ``busy`` (another upload of it), ``damaged`` (another digest: nothing is kept).
        have: bytes that are there.
        path: of the file on the board.
    """

    state: Literal["stored", "part", "cut", "busy", "damaged"]
    have: Count
    path: Folder | None = None


class File(Answer, frozen=True):
    """Before the bytes of a file."""

    size: Count
    sha256: Digest


class EngineAnswer(Answer, frozen=True):
    """Answer of ``engine``.

    Attributes:
        manifest: where it is that of this very file; None where there is no engine or no manifest,
            or they do not belong together.
        changed: whether both are there and do not belong together.
    """

    manifest: dict[str, object] | None
    changed: bool


class Written(msgspec.Struct, frozen=True):
    """A file that a step made."""

    sha256: Digest
    bytes: Count


class Step(msgspec.Struct, frozen=True):
    """One program of a job.

    Attributes:
        name: as it was asked for.
        rc: exit status; 124 after its time limit, 127 where it does not start.
        seconds: duration.
        marks: when the texts that were looked for appeared, by name; those that did not are left
            out.
        files: what it made, by path on the board.
        begin, end: seconds of the board's monotonic clock, as the marks and the readings.
    """

    name: Short
    rc: Whole
    seconds: Number
    marks: Annotated[dict[Short, Number], Meta(max_length=64)]
    files: Annotated[dict[Text, Written], Meta(max_length=64)]
    begin: Number
    end: Number


class Gpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """The GPU's clocks, Hz."""

    name: Short = ""
    min_freq: Whole | None = None
    max_freq: Whole | None = None
    cur_freq: Whole | None = None


class Cpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """The CPU's clocks, kHz."""

    governor: Short = ""
    scaling_min_freq: Whole | None = None
    scaling_max_freq: Whole | None = None
    scaling_cur_freq: Whole | None = None


class Clocks(msgspec.Struct, frozen=True):
    """Clocks, and whether they are pinned."""

    gpu: Gpu
    cpu: Cpu
    pinned: bool


class Card(msgspec.Struct, frozen=True):
    """The state of a board at one moment.

    Attributes:
        power_mode: name of the nvpmodel mode.
        temperatures: degrees Celsius by thermal zone.
        memory_available, swap_free: bytes.
        load: average over one minute.
        boot: id of this boot.
        uptime: seconds of the monotonic clock.
    """

    power_mode: Short | None
    clocks: Clocks
    temperatures: Numbers
    memory_available: Whole | None
    swap_free: Whole | None
    load: Number
    boot: Short
    uptime: Number


class Watched(msgspec.Struct, frozen=True):
    """Observations during a job.

    Attributes:
        columns: of the table of readings, which is a file of its own.
        scope: what the power covers, or why there is none; "" before the first reading.
        source: where the power is read.
        failed: why the readings of power ended, "" for nothing.
        least_free: smallest available memory, bytes.
        swapped: bytes that went to swap.
        throttled: growth of over-current counters, and levels of alerts, by name; only those that
            rose.
        hottest_c: highest temperature of any zone, degrees Celsius.
        samples: rows of the table.
    """

    columns: Annotated[list[Short], Meta(max_length=64)]
    scope: Text
    source: Short
    failed: Text
    least_free: Whole | None
    swapped: Count
    throttled: Annotated[dict[Short, Whole], Meta(max_length=256)]
    hottest_c: Number | None
    samples: Count


class Result(msgspec.Struct, frozen=True):
    """Result of a job, and the state of the board around it; a job that never began has none.

    Attributes:
        ok: whether every step ended with status 0.
        steps: those that ran; after a failure the rest is left out.
        why, mend: of a failure: the reason, and advice.
        restored: power mode after everything was set back; None where nothing had been set.
    """

    ok: bool
    steps: Annotated[list[Step], Meta(max_length=256)]
    why: Text
    mend: Hint
    before: Card | None = None
    after: Card | None = None
    watch: Watched | None = None
    restored: Short | None = None


class JobAnswer(Answer, frozen=True):
    """A job's status, and what is known of it in that state.

    Attributes:
        state: ``none`` (never asked for), ``waiting`` (for the board), ``running``, ``done``,
            ``lost`` (it ended without a result).
        run: when its process started; another value is another run of the same work.
        step: what it does now.
        why: of ``lost``.
        offset: bytes of its log that were passed on.
        result: of ``done``.
    """

    state: Literal["none", "waiting", "running", "done", "lost"]
    key: Key
    run: Short | None = None
    step: Text | None = None
    why: Text = ""
    offset: Count = 0
    result: Result | None = None


class Log(Answer, frozen=True):
    """A piece of a job's log.

    Attributes:
        text: the piece.
        offset: where it ends in the log, bytes.
        step: what the job does now.
        run: which run of the job wrote it.
    """

    text: Annotated[str, Meta(max_length=1 << 18)]
    offset: Count
    step: Text | None
    run: Short | None


class EngineEntry(msgspec.Struct, frozen=True):
    """An engine in a listing."""

    file: EngineName
    bytes: Count
    model: Text


class JobEntry(msgspec.Struct, frozen=True):
    """A job in a listing: seconds since it was asked for, and who asked, as ``user@host``."""

    key: Key
    age_s: Number
    state: Short
    title: Text
    owner: Text
    why: Text


class Listing(Answer, frozen=True):
    """Answer of ``list``."""

    engines: Annotated[list[EngineEntry], Meta(max_length=100_000)]
    jobs: Annotated[list[JobEntry], Meta(max_length=100_000)]


class Logs(Answer, frozen=True):
    """Answer of ``logs``: the last MiB of a log; ``left_out`` bytes are before it."""

    text: Annotated[str, Meta(max_length=1 << 21)]
    left_out: Count


class Cleaned(Answer, frozen=True):
    """Answer of ``clean``: how many bytes were removed, and the keys of jobs that wait or run."""

    bytes: Count
    kept: list[Key]


class Missing(msgspec.Struct, frozen=True):
    """Missing parts of a board."""

    what: Text
    mend: Hint


class Trtexec(msgspec.Struct, frozen=True):
    """The board's trtexec.

    Attributes:
        path: of it.
        number: of its TensorRT, such as 8201 or 100300; None where it does not start.
        said: the end of its output where it does not start.
    """

    path: Folder
    number: Annotated[int, Meta(ge=1000, le=999_999)] | None
    said: Text


class Disk(msgspec.Struct, frozen=True):
    """State of the work folder."""

    free: Count
    inodes: Count


class PowerMode(msgspec.Struct, frozen=True):
    """The power mode, and those that there are."""

    id: Whole | None
    name: Short | None
    modes: Annotated[dict[Short, Whole], Meta(max_length=256)]


class Power(msgspec.Struct, frozen=True):
    """The total at that moment.

    Attributes:
        mw: milliwatts, None where there is no total.
        what: the rails that it covers, or why there is none.
        source: where it was read.
    """

    mw: Whole | None
    what: Text
    source: Short


class Meanwhile(msgspec.Struct, frozen=True):
    """Settings that a job holds now."""

    mode: Short | None
    pinned: bool


class BoardFacts(Answer, frozen=True, kw_only=True):
    """Facts about a board; unknown ones are None.

    Attributes:
        board: name of the target, such as ``orin-nano``.
        tensorrt: version of the library that is installed; ``tensorrt_python``: whether the
            system's Python has its module.
        memory: bytes.
        root: whether sudo works without a password.
        time: of the board's clock, which may say 1970.
        meanwhile: mode and pinning that a job holds now; ``power_mode`` and ``clocks`` are what the
            board returns to.
    """

    model: Short | None
    board: Short | None
    soc: Annotated[str, Meta(pattern=r"\Ategra\d\d[\dx]\Z")] | None
    capability: Annotated[str, Meta(pattern=r"\A\d{1,2}\.\d\Z")] | None
    l4t: Short | None
    jetpack: Short | None
    kernel: Short
    machine: Short
    python: Short
    python_path: Folder
    agent: Folder
    tensorrt: Annotated[str, Meta(pattern=r"\A\d{1,4}\.\d{1,4}\.\d{1,4}\Z")] | None
    trtexec: Trtexec | None
    tensorrt_python: bool
    home: Folder
    memory: dict[Short, Count | None]
    disk: Disk
    power_mode: PowerMode
    clocks: Clocks
    power: Power
    temperatures: Numbers
    throttling: dict[Short, Whole]
    root: bool
    user: Short
    groups: list[Short]
    boot_id: Short
    time: Number
    desktop: bool
    container: bool
    tools: dict[Short, Folder | None]
    compatible: Annotated[list[Short], Meta(max_length=64)] = []
    meanwhile: Meanwhile | None = None


class BoardAnswer(BoardFacts, frozen=True, kw_only=True):
    """Answer of ``probe``; ``missing`` lists what a board lacks."""

    missing: Annotated[list[Missing], Meta(max_length=64)]


ANSWERS: Mapping[str, type[Answer]] = {
    "hello": Hello,
    "stale": Stale,
    "missing": Stale,
    "broken": Broken,
    "beat": Beat,
    "refused": Refusal,
    "installed": Installed,
    "board": BoardAnswer,
    "have": Upload,
    "put": Upload,
    "file": File,
    "engine": EngineAnswer,
    "job": JobAnswer,
    "log": Log,
    "cleaned": Cleaned,
    "listing": Listing,
    "logs": Logs,
    "written": Done,
    "removed": Done,
}


class _Head(msgspec.Struct):
    event: Short


_HEAD = msgspec.json.Decoder(_Head)
_DECODERS = {event: msgspec.json.Decoder(kind) for event, kind in ANSWERS.items()}


def decode(raw: bytes, name: str) -> Answer:
    """Return one answer, in the form of ``ANSWERS``.

    Args:
        raw: a line, behind its mark.
        name: of the device, for messages.

    Raises:
        BoardError: it is none of the agent's answers.
    """
    try:
        event = _HEAD.decode(raw).event
        if event not in _DECODERS:
            raise msgspec.ValidationError(f"no answer is called {event[:40]!r}")
        return _DECODERS[event].decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        hint = f"Is it the board you mean? Look at it: trtq device shell {shlex.quote(name)}"
        raise BoardError(f"Cannot read the answer of {name}", reason(exc), hint) from exc


def outputs_of(lines: list[str], name: str) -> list[Output]:
    """Return the outputs that a run of samples says it wrote, in the order of its file.

    Args:
        lines: what the program printed; the last line with the agent's mark counts.
        name: of the device, for messages.

    Raises:
        BoardError: it does not say that, or says it in another form.
    """
    line = next((ln for ln in reversed(lines) if ln.startswith(MARK)), None)
    if line is None:
        raise BoardError(
            f"Cannot read the answers of {name}",
            "the program that ran the images does not say what it wrote",
        )
    try:
        return decode_json(line[len(MARK) :], _Outputs).outputs
    except msgspec.MsgspecError as exc:
        raise BoardError(f"Cannot read the answers of {name}", reason(exc)) from exc


class Output(msgspec.Struct, frozen=True):
    """One output of an engine; ``shape`` is without the batch, ``dtype`` as TensorRT calls it."""

    name: Short
    dtype: Literal["FLOAT", "HALF", "INT32", "INT64", "INT8", "UINT8", "BOOL"]
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 31)]], Meta(max_length=16)]


class _Outputs(msgspec.Struct):
    outputs: Annotated[list[Output], Meta(min_length=1, max_length=1024)]


def hint_words(hint: Hint, device: str) -> str:
    """Return advice as words: the board chooses which, and what it puts in is quoted for a shell.

    Args:
        hint: of the board.
        device: name of the board here.

    Returns:
        "" for a name that is not in ``HINTS``, or arguments that do not fit it.

    >>> hint_words(Hint("install", {"package": "x; reboot"}), "nano")
    "on the board: sudo apt-get install 'x; reboot'"
    """
    words = HINTS.get(hint.name, "")
    quoted = {k: shlex.quote(" ".join(v.split())) for k, v in hint.arguments.items()}
    try:
        return words.format_map({**quoted, "device": shlex.quote(device)})
    except (KeyError, ValueError, IndexError):
        return ""
