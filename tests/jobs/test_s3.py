"""A store behind s3://, on a server of moto's on this machine's loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import run_cli
from tests.jobs.test_store import KEY, fetched_and_forgotten, finish, open_store
from tests.support.cluster import marks
from tests.support.processes import start
from tests.sweep.conftest import fetched
from tests.sweep.test_sweep import BITS, record_of, states
from trtq.errors import ArtifactError, UsageError
from trtq.jobs.store import Store

pytestmark = [
    pytest.mark.slow,
    *marks("moto", "s3fs", "flask"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Calls:
    """Requests to the server, by method.

    Attributes:
        refused: status of the answer to every PUT but the first ``passed``; "" refuses none.
    """

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.refused, self.passed = "", 0

    @contextlib.contextmanager
    def refusing(self, status: str, *, after: int) -> Iterator[None]:
        """Refuse what is written, but for the first requests."""
        self.refused, self.passed = status, after
        yield
        self.refused = ""

    def refuses(self, method: str) -> bool:
        """Whether a request is refused."""
        if method != "PUT" or not self.refused:
            return False
        self.passed -= 1
        return self.passed < 0

    def __enter__(self) -> list[str]:
        self.methods.clear()
        return self.methods

    def __exit__(self, *_: object) -> None:
        """The list stays."""


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.fixture(scope="module", autouse=True)
def server(calls) -> Iterator[str]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    inner = DomainDispatcherApplication(create_backend_app)

    def app(environ, respond):
        calls.methods.append(environ["REQUEST_METHOD"])
        if calls.refuses(environ["REQUEST_METHOD"]):
            respond(calls.refused, [("Content-Length", "0")])
            return [b""]
        return inner(environ, respond)

    made = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()


@pytest.fixture()
def url(tmp_path) -> str:
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket := tmp_path.name.replace("_", "-"))
    return f"s3://{bucket}/store"


@pytest.fixture()
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/quantize.json").write_text("{}")
    (tmp_path / "run/model.qdq.onnx").write_bytes(b"model" * 100)
    return tmp_path / "run"


def test_a_store_in_a_bucket(url, folder, tmp_path, calls):
    store = open_store(url)
    assert store.known() == set()
    with calls as methods:
        done = finish(store, folder)
    assert (methods.count("PUT"), len(methods) < 16) == (3, True)  # two files and done.json
    assert store.known() == {KEY}
    assert store.done(KEY) == done
    fetched_and_forgotten(store, done, folder, tmp_path / "fetched")


def test_one_of_many_claims_is_made(url):
    stores = [open_store(url) for _ in range(4)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        for store in stores:
            stack.enter_context(store.leases.held(print))
        won = list(pool.map(lambda s: s.claim(KEY), stores))
        assert won.count(True) == 1
        winner = stores[won.index(True)]
        assert [s.claim(KEY) for s in stores] == won  # the same one still has it
        winner.release(KEY)
        assert stores[won.index(False)].claim(KEY)


def test_a_bucket_that_is_not_there_is_an_error(url):
    with pytest.raises(ArtifactError, match="Cannot write store.json in the store s3://no-such"):
        open_store("s3://no-such-bucket/store")
    open_store(url, project="cars")
    with pytest.raises(UsageError, match="it is of the project 'cars'"):
        open_store(url)


@pytest.mark.parametrize("status", ["507 Insufficient Storage", "403 Forbidden"])
def test_an_upload_that_is_cut_off_leaves_no_run(url, folder, calls, status):
    store = open_store(url)
    with calls.refusing(status, after=1), pytest.raises(ArtifactError, match="Cannot write runs/"):
        finish(store, folder)  # the second file and all after it
    assert store.done(KEY) is None
    assert store.known() == set()
    assert finish(open_store(url), folder) == store.done(KEY)


def test_a_bucket_that_may_only_be_read_is_refused(url, calls):
    with calls.refusing("403 Forbidden", after=0), pytest.raises(ArtifactError) as caught:
        open_store(url)
    assert f"Cannot write store.json in the store {url}" in str(caught.value)


def test_two_drivers_on_one_bucket_do_each_run_once(url, write_sweep, tmp_path):
    paths = [write_sweep(BITS, folder=tmp_path / n) for n in ("one", "two")]
    other = start("sweep", str(paths[0]), "--store", url, "--workers", "1")
    done = run_cli("sweep", str(paths[1]), "--store", url, "--workers", "1")
    assert done.returncode == 0, done.stderr
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    both = [record_of(p.parent / "out") for p in paths]
    by_run = [{a.state, b.state} for a, b in zip(both[0].rows, both[1].rows, strict=True)]
    assert by_run == [{"done", "reused"}] * 2


def test_a_sweep_keeps_its_runs_in_a_bucket(url, write_sweep, tmp_path):
    path = write_sweep(BITS)
    done = run_cli("sweep", str(path), "--store", url, "--workers", "2")
    assert done.returncode == 0, done.stderr
    first = record_of(tmp_path / "out")
    assert [r.state for r in first.rows] == ["done", "done"]
    assert first.store == url
    again = run_cli("sweep", str(path), "--store", url, "--out", str(tmp_path / "other"))
    assert again.returncode == 0, again.stderr
    assert states(tmp_path / "other") == ["reused", "reused"]
    store: Store = open_store(url)
    key = first.rows[1].key
    copy = fetched(store, store.done(key), tmp_path / "fetched")
    # the run as trtq run left it: nothing of it runs again
    recipe = tmp_path / "fetched/recipe.toml"
    text = recipe.read_text().replace(f"{tmp_path}/out/runs/{key[:16]}", str(copy))
    recipe.write_text(text)
    dry = run_cli("run", str(recipe), "--dry-run")
    assert "quantize: skipped (nothing it depends on has changed)" in dry.stdout
