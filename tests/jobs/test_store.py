"""The store: one driver a run, finished or not, and what can be wrong with it."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.sweep.conftest import fetched
from trtq.artifact import sha256_file
from trtq.errors import ArtifactError, MissingExtraError, UsageError
from trtq.jobs.leases import this_driver
from trtq.jobs.store import Done, Store
from trtq.records.sweep import Measured

KEY = "ab" * 32


def open_store(url, **settings):
    lease = settings.pop("lease", 60.0)
    return Store.open(str(url), this_driver(lease), **settings)


@pytest.fixture()
def folder(tmp_path):
    """The results of a run."""
    folder = tmp_path / "results"
    (folder / ".trtq-stages").mkdir(parents=True)
    (folder / "quantize.json").write_text("{}")
    (folder / "model.qdq.onnx").write_bytes(b"model" * 100)
    (folder / ".trtq-stages/quantize.json").write_text("{}")
    (folder / ".trtq.lock").touch()
    return folder


def finish(store, folder, key=KEY) -> Done:
    return store.commit(
        Done(
            key=key,
            upload=store.upload(key, folder),
            seconds=1.5,
            measured=Measured(sizes={"weights": 7}),
            host="here",
            time="2026-01-01T00:00:00+0000",
        )
    )


def fetched_and_forgotten(store, done, folder, place) -> None:
    """What was committed comes back as it was, damage is seen, and the run can be forgotten."""
    assert store.damage(done) == ""
    copy = fetched(store, done, place)
    assert sha256_file(copy / "model.qdq.onnx") == sha256_file(folder / "model.qdq.onnx")
    store.files.remove(f"{store.folder(done)}/model.qdq.onnx")
    assert store.damage(done) == "model.qdq.onnx is missing"
    store.forget(KEY)
    assert store.done(KEY) is None


@pytest.fixture(params=["folder", "memory"])
def url(request, tmp_path):
    return {"folder": str(tmp_path / "store"), "memory": f"memory://{tmp_path}"}[request.param]


def test_a_run_is_finished_once_it_is_committed(url, folder, tmp_path):
    store = open_store(url)
    upload = store.upload(KEY, folder)
    assert set(upload.files) == {"quantize.json", "model.qdq.onnx", ".trtq-stages/quantize.json"}
    assert store.done(KEY) is None
    assert store.known() == {KEY}
    done = finish(store, folder)
    assert store.done(KEY) == done == open_store(url).done(KEY)
    assert store.damage(done) == ""
    tokens = [n for n in store.files.names(f"runs/{KEY}") if "." not in n]
    assert tokens == [done.upload.token]  # the upload that nobody committed is gone
    copy = fetched(store, done, tmp_path / "fetched")
    assert sha256_file(copy / "model.qdq.onnx") == sha256_file(folder / "model.qdq.onnx")


def test_files_may_be_left_out_but_no_records(url, folder):
    upload = open_store(url).upload(KEY, folder, ("*.onnx", "quantize.*"))
    assert set(upload.files) == {"quantize.json", ".trtq-stages/quantize.json"}


def test_the_first_to_finish_counts(url, folder):
    one, two = open_store(url), open_store(url)
    late = two.upload(KEY, folder)
    first = finish(one, folder)
    # The later driver's upload was removed when the run was finished, and it commits all the same.
    kept = two.commit(msgspec.structs.replace(first, upload=late, seconds=9.0))
    assert kept == first
    assert two.done(KEY).seconds == 1.5


def test_one_of_many_that_claim_a_run_at_once_gets_it(tmp_path):
    stores = [open_store(tmp_path / "s") for _ in range(8)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        for store in stores:
            stack.enter_context(store.leases.held(print))
        for key in (f"{i:064x}" for i in range(100)):
            won = list(pool.map(lambda s, key=key: s.claim(key), stores))
            assert won.count(True) == 1
            assert [s.claim(key) for s in stores] == won  # the same one still has it


def test_drivers_that_make_a_store_at_once_all_get_it(tmp_path):
    """A store.json is there whole or not at all; what is written beside it is no other file."""
    with ThreadPoolExecutor(8) as pool:
        for i in range(40):
            opened = list(pool.map(lambda _, i=i: open_store(tmp_path / f"s{i}"), range(8)))
            assert {s.project for s in opened} == {""}
            assert [p.name for p in (tmp_path / f"s{i}").iterdir()] == ["store.json"]


def test_a_claim_lasts_until_it_is_released(tmp_path):
    one, two = open_store(tmp_path / "s"), open_store(tmp_path / "s")
    with one.leases.held(print), two.leases.held(print):
        assert one.claim(KEY)
        assert one.claim(KEY)  # its own
        assert not two.claim(KEY)
        two.release(KEY)  # not its own: nothing happens
        assert not two.claim(KEY)
        one.release(KEY)
        assert two.claim(KEY)
        assert not one.claim(KEY)


CLAIM = """
import sys, time
from trtq.jobs.leases import this_driver
from trtq.jobs.store import Store
store = Store.open(sys.argv[1], this_driver(60.0))
with store.leases.held(print):
    print(store.claim(sys.argv[2]), flush=True)
    time.sleep(600)
"""


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    line = [sys.executable, "-c", CLAIM, str(tmp_path / "s"), KEY]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "True\n"
            store = open_store(tmp_path / "s")
            assert not store.claim(KEY)
        finally:
            process.kill()
    assert store.claim(KEY)
    assert store.files.names(f"runs/{KEY}") == ["claim.0.json", "claim.1.json"]
    store.release(KEY)
    assert store.files.names(f"runs/{KEY}") == []


def elsewhere(store, *, lease: float, beat: int = 0) -> str:
    """Write the lease of a driver on another machine."""
    driver = msgspec.structs.replace(
        this_driver(lease), id="elsewhere", place="another machine", beat=beat
    )
    store.files.write("drivers/elsewhere.json", driver)
    return driver.id


def test_a_driver_of_another_machine_is_dead_when_its_lease_stands_still(tmp_path):
    one, two = open_store(tmp_path / "s"), open_store(tmp_path / "s")
    elsewhere(one, lease=0.5)
    one.files.create(f"runs/{KEY}/claim.0.json", {"driver": "elsewhere"})
    assert not two.claim(KEY)
    time.sleep(0.6)
    elsewhere(one, lease=0.5, beat=1)  # it renews
    assert not two.claim(KEY)
    time.sleep(0.6)
    assert two.claim(KEY)
    one.files.remove("drivers/elsewhere.json")  # it ended without giving its claims up
    one.files.create("runs/other/claim.0.json", {"driver": "elsewhere"})
    assert one.claim("other")


def test_a_claim_that_was_cut_off_is_taken_over_after_a_lease(tmp_path):
    store = open_store(tmp_path / "s", lease=0.5)
    (tmp_path / "s/runs" / KEY).mkdir(parents=True)
    (tmp_path / "s/runs" / KEY / "claim.0.json").touch()
    assert not store.claim(KEY)  # it may be being written
    time.sleep(0.6)
    assert store.claim(KEY)


def test_a_lease_is_renewed_while_it_is_held(tmp_path):
    store = open_store(tmp_path / "s", lease=0.4)
    file = tmp_path / "s/drivers" / f"{store.leases.own.id}.json"
    with store.leases.held(print):
        before = json.loads(file.read_text())["beat"]
        time.sleep(0.7)
        assert json.loads(file.read_text())["beat"] > before
    assert not file.exists()


def test_a_lease_that_cannot_be_renewed_is_said(tmp_path):
    store, said = open_store(tmp_path / "s", lease=0.2), []
    with store.leases.held(said.append):
        (tmp_path / "s/drivers").rename(tmp_path / "gone")
        (tmp_path / "s/drivers").write_text("a file")
        time.sleep(0.3)
        (tmp_path / "s/drivers").unlink()
    assert "the lease was not renewed, other drivers may take runs over" in said[0]


def test_a_file_that_is_missing_or_cut_is_damage(tmp_path, folder):
    store = open_store(tmp_path / "s")
    done = finish(store, folder)
    file = tmp_path / "s" / store.folder(done) / "model.qdq.onnx"
    file.write_bytes(b"short")
    assert store.damage(done) == "model.qdq.onnx has 5 bytes, expected 500"
    file.write_bytes(b"other" * 100)
    assert store.damage(done) == ""  # sizes are compared
    file.unlink()
    assert store.damage(done) == "model.qdq.onnx is missing"
    assert finish(store, folder).upload.token != done.upload.token  # it is replaced


def test_an_upload_that_is_not_whole_is_not_committed(tmp_path, folder):
    store = open_store(tmp_path / "s")
    upload = store.upload(KEY, folder)
    (tmp_path / "s/runs" / KEY / upload.token / "quantize.json").unlink()
    done = Done(key=KEY, upload=upload, seconds=1, measured=Measured(), host="", time="")
    with pytest.raises(ArtifactError, match="the upload is not whole: quantize.json is missing"):
        store.commit(done)
    assert store.done(KEY) is None


def test_a_done_file_that_is_cut_counts_as_none(tmp_path, folder):
    store = open_store(tmp_path / "s")
    finish(store, folder)
    file = tmp_path / "s/runs" / KEY / "done.json"
    file.write_bytes(file.read_bytes()[:40])
    assert store.done(KEY) is None
    assert finish(store, folder) == store.done(KEY)


@pytest.mark.parametrize("name", ["../../other", "/etc/passwd"])
def test_a_done_file_with_paths_outside_of_its_folder_counts_as_none(name, tmp_path, folder):
    store = open_store(tmp_path / "s")
    done = finish(store, folder)
    path = tmp_path / f"s/runs/{KEY}/done.json"
    text = path.read_text()
    assert store.done(KEY) == done
    path.write_text(text.replace("model.qdq.onnx", name))
    assert store.done(KEY) is None


def test_a_full_store_keeps_no_part_of_a_run(small_disk, folder):
    store = open_store(small_disk / "s")
    (folder / "model.qdq.onnx").write_bytes(b"x" * 100_000)
    with pytest.raises(ArtifactError) as caught:
        store.upload(KEY, folder)
    assert "Cannot write runs/" in str(caught.value)
    assert "no space left on device" in str(caught.value)
    assert store.files.names(f"runs/{KEY}") == []


def test_a_store_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    store = open_store(tmp_path / "s")

    def refuse(*_args, **_more):
        raise OSError(errno.EROFS, "Read-only file system")

    # root may write everywhere: the system's answer is given in its place
    monkeypatch.setattr("trtq.jobs.files.write_bytes", refuse)
    with pytest.raises(ArtifactError) as caught, store.leases.held(print):
        pass
    assert "in the store" in str(caught.value)
    assert "read-only file system" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"schema": 1, "kind": "trtq sweep store", "project": "other"},
            "it is of the project 'oth",
        ),
        (
            {"schema": 9, "kind": "trtq sweep store", "project": ""},
            "its schema is 9, this trtq rea",
        ),
        ({"schema": 1, "kind": "a shop", "project": ""}, "its store.json is of 'a shop'"),
        ({"schema": 1}, "its store.json is damaged"),
    ],
)
def test_a_store_of_others_is_refused(content, text, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/store.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"Cannot use the store .*s: {text}"):
        open_store(tmp_path / "s")


def test_a_folder_with_other_files_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        UsageError, match="other files are there, such as thesis.tex. Name an empty"
    ):
        open_store(tmp_path)


def test_a_project_names_its_store(tmp_path):
    open_store(tmp_path / "s", project="cars")
    open_store(tmp_path / "s", project="cars")
    with pytest.raises(UsageError, match='Set project = "cars" under'):
        open_store(tmp_path / "s")


def test_file_systems_that_may_create_a_file_twice_are_known(tmp_path):
    assert open_store(tmp_path / "s").files.creates_once
    assert not open_store(f"memory://{tmp_path}").files.creates_once


def test_a_store_that_is_only_looked_at_is_not_made(tmp_path):
    store = open_store(tmp_path / "s", create=False)
    assert store.known() == set()
    assert store.done(KEY) is None
    assert not (tmp_path / "s").exists()


def test_unknown_urls_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Cannot open the store shop://a: Protocol not known"):
        open_store("shop://a")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trtq\[s3\]'"):
        open_store("s3://bucket/folder")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match="pip install gcsfs"):
        open_store("gs://bucket/folder")
