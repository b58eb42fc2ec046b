"""Files have the rights of any new file, and no thread sees another umask meanwhile."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from trtq.artifact import write_json


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_written_file_has_the_rights_of_a_new_file(umask: int, rights: int, tmp_path: Path):
    before = os.umask(umask)
    try:
        path = write_json(tmp_path / "record.json", {"schema": 1})
        write_json(path, {"schema": 1, "again": True})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == rights
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_leave_the_umask_alone(tmp_path: Path, monkeypatch):
    changed = list[int]()
    monkeypatch.setattr(os, "umask", changed.append)
    threads = [
        threading.Thread(target=write_json, args=(tmp_path / f"{i}.json", {"n": i}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert changed == []
    assert len(list(tmp_path.iterdir())) == 4
