"""The function that a Ray worker calls: workers import this module, no code is sent."""

from __future__ import annotations

import msgspec

from trtq.jobs.work import Ended, Job, perform


def work(job: bytes) -> bytes:
    """Do a job given as JSON and return how it ended as JSON."""
    ended: Ended = perform(msgspec.json.decode(job, type=Job))
    return msgspec.json.encode(ended)
