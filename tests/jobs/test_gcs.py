"""A store behind gs://, on an emulator of Google's storage on this machine's loopback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.jobs.test_store import KEY, fetched_and_forgotten, finish, open_store
from tests.support.cluster import marks
from trtq.errors import ArtifactError

pytestmark = [
    pytest.mark.slow,
    *marks("gcp_storage_emulator", "gcsfs"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def asked() -> Iterator[list[str]]:
    """Requests to the emulator, in order; it runs while the tests do."""
    from gcp_storage_emulator.server import RequestHandler, create_server

    paths: list[str] = []
    post = RequestHandler.do_POST

    def do_post(handler: RequestHandler) -> None:
        paths.append(handler.path)
        post(handler)

    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestHandler, "do_POST", do_post)
        server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
        server.start()
        port = server._api._httpd.socket.getsockname()[1]
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield paths
        server.stop()


def test_a_store_in_a_bucket_of_google(asked, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/quantize.json").write_text("{}")
    (tmp_path / "run/model.qdq.onnx").write_bytes(b"model" * 100)
    store = open_store("gs://bucket/store")
    assert store.known() == set()
    done = finish(store, tmp_path / "run")
    assert store.known() == {KEY}
    fetched_and_forgotten(store, done, tmp_path / "run", tmp_path / "fetched")


def test_a_claim_is_made_only_where_there_is_none(asked):
    """The emulator does not look at the condition; Google's storage does."""
    store = open_store("gs://bucket/claims")
    with store.leases.held(print):
        del asked[:]
        store.claim(KEY)
    assert [p for p in asked if "ifGenerationMatch=0" in p]


def test_a_bucket_of_google_that_is_not_there_is_an_error(asked):
    with pytest.raises(ArtifactError, match="Cannot write store.json in the store gs://no-such"):
        open_store("gs://no-such-bucket/store")
