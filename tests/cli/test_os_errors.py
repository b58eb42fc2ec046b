"""An error of the operating system becomes one line, in any step."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import run_process
from trtq.artifact import ensure_writable_file, locked, read_json, write_json
from trtq.bench import history
from trtq.bench.meters.nvml import Gpu
from trtq.cli import run_command
from trtq.errors import (
    ArtifactError,
    EncodingsError,
    SystemRefusalError,
    UsageError,
    explain_system,
)
from trtq.export.calibration_cache import read_cache
from trtq.paths import expand_home, user_folder
from trtq.recipe import load_recipe
from trtq.scratch import scratch, scratch_file
from trtq.workers import Workers


def unpack(exc):
    raise exc


SHORT = ("--duration", "0.05", "--min-samples", "10", "--max-duration", "0.5", "--no-verdict")
CASES = [
    (
        OSError(errno.ENOSPC, "No space left on device", "/x/y"),
        "Cannot use /x/y: no space is left on the device",
        1,
    ),
    (
        OSError(errno.EMFILE, "Too many open files"),
        "too many files are open in this process. Raise the limit: ulimit -n 4096.",
        1,
    ),
    (
        OSError(errno.EROFS, "Read-only file system", "/ro"),
        "Cannot use /ro: the file system is read-only",
        1,
    ),
    (
        OSError(errno.EAGAIN, "Resource temporarily unavailable"),
        "no further process or thread may be started",
        1,
    ),
    (
        PermissionError(errno.EACCES, "Permission denied", "/root/x"),
        "Cannot use /root/x: permission denied.",
        1,
    ),
    (
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        "The operating system refuses a request: broken pipe.",
        1,
    ),
    (
        FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
        "Set TMPDIR to a folder that can be written to.",
        1,
    ),
    (MemoryError(), "The machine has not enough memory.", 1),
    (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        "has not enough memory: [enforce",
        1,
    ),
    (
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        "The GPU has not enough memory: CUDA out of memory",
        1,
    ),
    (
        RuntimeError("can't start new thread"),
        "Cannot start a thread: no further process or thread may be started",
        1,
    ),
    (RuntimeError("Could not determine home directory."), "There is no home folder", 1),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply", 1),
    (
        ImportError("libx.so: failed to map segment from shared object"),
        "Cannot load a package that trtq needs: libx.so",
        1,
    ),
    (
        UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"),
        "is not valid UTF-8. Rename",
        1,
    ),
]


@pytest.mark.parametrize(
    ("exc", "text", "code"), CASES, ids=[type(c[0]).__name__ + str(i) for i, c in enumerate(CASES)]
)
def test_one_line_and_never_called_a_bug(exc, text, code, monkeypatch, capsys):
    monkeypatch.setattr("trtq.commands.inspect.inspect", lambda path: unpack(exc))
    assert run_command(["inspect", "x"]) == code
    err = capsys.readouterr().err
    assert text in err
    assert err.startswith("trtq: ")
    assert err.count("\n") == 1
    assert "bug" not in err


@pytest.mark.parametrize(
    "exc",
    [
        KeyError("x"),
        RuntimeError("odd"),
        ValueError(),
        AssertionError(),
        ZeroDivisionError("division by zero"),
    ],
)
def test_the_last_resort_names_the_place_and_prints_no_traceback(exc, monkeypatch, capsys):
    from trtq.cli import inspect_cmd

    monkeypatch.setattr(inspect_cmd, "_show", lambda *_: unpack(exc))
    monkeypatch.setattr("trtq.commands.inspect.inspect", lambda path: {})
    assert run_command(["inspect", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("trtq: This is a bug in trtq ")
    assert "trtq/cli/inspect_cmd.py:" in err
    assert "in command: " in err
    assert type(exc).__name__ in err
    assert "TRTQ_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("TRTQ_DEBUG", "1")
    assert run_command(["inspect", "x"]) == 1
    assert "Traceback (most recent call last):\n" in capsys.readouterr().err


def test_other_exceptions_have_another_cause():
    assert explain_system(KeyError("x")) is None
    assert explain_system(ModuleNotFoundError("No module named 'trtq.x'", name="trtq.x")) is None


def test_interrupted_and_told_to_stop(monkeypatch, capsys):
    from trtq.cli import Terminated

    for exc, code in ((KeyboardInterrupt(), 130), (Terminated(15), 143)):
        monkeypatch.setattr("trtq.commands.inspect.inspect", lambda path, exc=exc: unpack(exc))
        assert run_command(["inspect", "x"]) == code
        assert "interrupted" in capsys.readouterr().err


# ---- homes -------------------------------------------------------------------------------------


def test_no_home_and_no_entry_in_passwd(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("TRTQ_HISTORY", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(
        SystemRefusalError,
        match=r"There is no home folder: HOME is not set, .* Set HOME, or XDG_DATA_HOME",
    ):
        history.history_path()
    with pytest.raises(
        UsageError, match=r"Cannot use --out ~/x: HOME is not set.*\./~/x for a file of that name"
    ):
        expand_home("~/x", "--out")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_folder("XDG_DATA_HOME", ".local/share") == Path("/data")
    monkeypatch.setenv("XDG_DATA_HOME", "data")  # relative: none, says the standard
    assert user_folder("XDG_DATA_HOME", ".local/share") is None
    monkeypatch.setenv("HOME", "/home/me")
    assert user_folder("XDG_DATA_HOME", ".local/share") == Path("/home/me/.local/share")


def test_figures_survive_a_history_that_cannot_be_kept(cnn_out, monkeypatch, tmp_path):
    """As in a container whose user has no passwd entry."""
    from trtq import BenchSpec, bench
    from trtq.progress import Silent

    told = []

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("TRTQ_HISTORY", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    spec = BenchSpec(
        file=(str(cnn_out / "model.fp32.onnx"),),
        duration=0.05,
        min_samples=10,
        max_duration=0.5,
        verdict=False,
    )
    assert bench(spec, Told()).rows
    assert any(t.startswith("not in the history: There is no home folder") for t in told)


def test_a_user_without_passwd_entry_gets_its_figures(cnn_out):
    line = ["unshare", "-U", "--map-user=4711", "env", "-u", "HOME", sys.executable, "-m", "trtq"]
    if subprocess.run([*line[:3], "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    env = {k: v for k, v in os.environ.items() if k not in ("XDG_DATA_HOME", "TRTQ_HISTORY")}
    words = ["bench", str(cnn_out / "model.fp32.onnx"), *SHORT]
    done = subprocess.run([*line, *words], capture_output=True, text=True, env=env, check=False)
    assert done.returncode in (0, 3)
    assert "latency, batch 1" in done.stdout
    assert "not in the history: There is no home folder" in done.stderr
    assert "Traceback" not in done.stderr


# ---- locks, temporary folders, outputs ---------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_no_wait_for_ever(number, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: unpack(OSError(number, os.strerror(number))))
    told = []
    with locked(tmp_path / ".lock", waiting=told.append):
        pass
    assert len(told) == 1
    assert "is on a file system without locks" in told[0]


def test_a_lock_is_waited_for_and_its_folder_must_be_there(tmp_path):
    told, order = [], []

    def second():
        with locked(tmp_path / ".lock", waiting=told.append):
            order.append("second")

    with locked(tmp_path / ".lock"):
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert told == ["Another trtq is at work here (.lock); waiting for it to end"]
    with pytest.raises(ArtifactError, match="Cannot write"), locked(tmp_path / "none/.lock"):
        pass


def test_no_folder_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(
        ArtifactError,
        match="Cannot make a temporary folder: no folder for temporary files can be written to. "
        "Set TMPDIR",
    ):
        scratch("build").__enter__()
    with pytest.raises(ArtifactError, match="Cannot make a temporary file"):
        scratch_file()


def test_a_full_temporary_folder_is_named(small_disk, cnn_out, tmp_path):
    (small_disk / "x").write_bytes(b"x" * 20_000)
    out = tmp_path / "bench"
    words = ["bench", str(cnn_out / "model.fp32.onnx"), *SHORT, "--profile", "--out", str(out)]
    done = run_process(*words, env={"TMPDIR": str(small_disk)})
    assert done.returncode in (0, 1, 3)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("folder", "it is a folder. Name a file in it: --out"),
        ("pipe", "it is a device or a pipe"),
        ("input", "it is the input"),
        ("input/x", "is a file, not a folder"),
        ("x" * 300, "File name too long"),
        ("x" * 250, "File name too long"),
    ],
)
def test_places_that_no_file_can_have(name, why, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "input").write_text("x")
    with pytest.raises(ArtifactError) as caught:
        ensure_writable_file(tmp_path / name, inputs=[tmp_path / "input"])
    assert why in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "input", "pipe"]


# ---- processes, sensors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "WORLD_SIZE is 2, and MASTER_ADDR and MASTER_PORT are not set",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        ({"RANK": "3"}, "RANK is 3 and WORLD_SIZE is 1"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"RANK": "one"}, "RANK is 'one', not a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
    ],
)
def test_variables_of_torchrun_that_are_not_whole(given, why, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="Cannot run as one of several processes") as caught:
        Workers.from_environment()
    assert why in str(caught.value)
    assert "torchrun" in str(caught.value)


def test_a_wait_for_other_processes_says_that_it_waits(monkeypatch):
    from torch import distributed

    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(
        distributed, "init_process_group", lambda *_, **__: unpack(RuntimeError("timed out"))
    )
    told = []
    with pytest.raises(
        UsageError, match=r"Cannot reach the other processes at 10\.0\.0\.1:29500: timed out"
    ):
        Workers(rank=1, world=2).joined(waiting=told.append).__enter__()
    assert told == ["process 1 of 2 waits for the other 1 at 10.0.0.1:29500"]


def test_text_of_a_driver_that_is_not_utf8(monkeypatch):
    class Nvml:
        NVMLError = RuntimeError
        nvmlDeviceGetHandleByUUID = staticmethod(lambda uuid: 1)

    gpu = Gpu(nvml=Nvml(), uuid="GPU-1")
    assert gpu.ask("name", lambda: b"Qu\xe4dro") == "Qu\ufffddro"
    assert gpu.ask("name", b"\xff".decode) is None
    assert gpu.missing["name"] == "the driver's text is not UTF-8"


# ---- byte order marks, deep nesting, newer files -----------------------------------------------


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "r.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "r.json") == {"a": 1}
    (tmp_path / "r.toml").write_bytes(
        '\ufeffout = "o"\n[quantize]\nmodel = "m"\ndata = "d"\n'.encode()
    )
    assert load_recipe(tmp_path / "r.toml").out == "o"
    assert read_cache("TRT-8502-EntropyCalibration2\nx: 3c010204\n", "c").scales


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"schema": 2}', "a newer trtq wrote it"),
        (b'{"schema": true}', "its schema is True"),
        (b"\xff\xfe{", "not whole JSON"),
        (b'"x"', "no JSON object"),
        (b"", "not whole JSON"),
    ],
)
def test_records_that_cannot_be_read(content, why, tmp_path):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_json(tmp_path / "r.json")
    assert why in str(caught.value)


def test_a_recipe_that_is_nested_too_deeply_or_no_text(tmp_path):
    deep = b"a=" + b"[" * 50_000
    for content, why in (
        (deep, "nested too deeply"),
        (b"\xff", "it is not text"),
        (b"out = 5\n[quantize]", "must be a text"),
    ):
        (tmp_path / "r.toml").write_bytes(content)
        with pytest.raises(UsageError) as caught:
            load_recipe(tmp_path / "r.toml")
        assert why in str(caught.value)


def test_a_folder_where_a_file_is_expected(tmp_path):
    for words in (
        ["inspect", f"{tmp_path}/x.json"],
        ["lint", str(tmp_path), "--target", "rtx4090"],
        ["run", str(tmp_path)],
    ):
        with suppress(FileExistsError):
            (tmp_path / "x.json").mkdir()
        assert run_command(words) in (1, 2)


def test_names_that_are_not_utf8_are_refused_before_work(tmp_path, capsys):
    bad = os.fsdecode(b"\xff.onnx")
    assert run_command(["bench", str(tmp_path / bad)]) == 2
    assert "its bytes are not UTF-8. Rename" in capsys.readouterr().err
    with pytest.raises(UnicodeEncodeError):
        write_json(tmp_path / "x.json", {"a": "\udcff"})


def test_lines_of_a_cache_that_no_number_holds():
    for text in (
        "",
        "TRT-8502-X\n",
        "TRT-8502-EntropyCalibration2\nx: zz\n",
        "TRT-8502-EntropyCalibration2\nx: ffffffff\n",
    ):
        with pytest.raises(EncodingsError):
            read_cache(text, "c")


def test_json_of_a_command_has_no_raw_control_characters(cnn_out, capsys):
    assert run_command(["inspect", str(cnn_out / "quantize.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "quantize record"
