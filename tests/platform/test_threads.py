from __future__ import annotations

import subprocess
import sys

READ = """
import threading
from trtq.platform.catalogue import catalogue
gate = threading.Barrier(8)
def read():
    gate.wait()
    assert catalogue.__wrapped__().devices
threads = [threading.Thread(target=read) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_many_threads_may_read_the_catalogue_first():
    for _ in range(3):  # what msgspec makes of a type it makes once in a process
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-500:]
