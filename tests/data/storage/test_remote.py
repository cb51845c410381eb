"""Files behind URLs, from a real HTTP server that misbehaves and from an S3 server."""

import contextlib
import hashlib
import http.server
import importlib
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.data.storage import remote
from pipeline.data.storage.remote import Patience, download, is_remote, read_bytes
from pipeline.errors import UserError

QUICK = Patience(attempts=3, wait_s=0.01)
BODY = bytes(range(256)) * 400


class Store:
    """An HTTP server of `files`. Each GET of a file takes the next of its `faults`; "X forever" is not used up.

    Faults: a status code; "stall" in mid-body until `released`; "drop" the connection there; a "short" or "wrong" body;
    "to X": redirected to X.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.gets: Counter[str] = Counter()
        self.order: list[str] = []
        self.released = threading.Event()
        self.stalling = threading.Event()
        self.headers: dict[str, str] = {}
        self.on_get: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                with contextlib.suppress(ConnectionError):
                    self._answer(handler)

            def log_message(handler, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{name}"

    def shard(self, name: str, size: int = len(BODY)) -> tuple[str, int, str]:
        """Put a file of `size` bytes there; its URL, size and SHA-256."""
        seed = hashlib.sha256(name.encode()).digest()
        self.files[name] = (seed * (size // len(seed) + 1))[:size]
        return self.url(name), size, hashlib.sha256(self.files[name]).hexdigest()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = handler.path.strip("/")
        with self._lock:
            self.gets[name] += 1
            self.order.append(name)
            self.headers = dict(handler.headers)
            faults = self.faults[name]
            fault = faults[0].removesuffix(" forever") if faults else ""
            if faults and not faults[0].endswith(" forever"):
                faults.pop(0)
        self.on_get()
        body = self.files.get(name)
        if fault.startswith("to "):
            handler.send_response(302)
            handler.send_header("Location", fault.removeprefix("to "))
            handler.end_headers()
            return
        if fault.isdigit() or body is None:
            handler.send_error(int(fault) if fault.isdigit() else 404)
            return
        if fault == "short":
            body = body[:-100]
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        half = len(body) // 2
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:half])
        if fault == "drop":
            return
        if fault == "stall":
            handler.wfile.flush()
            self.stalling.set()
            self.released.wait(60)
        handler.wfile.write(body[half:])

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as started:
        yield started


@pytest.mark.parametrize("where", ["s3://bucket/set", "https://host/set", "hf://datasets/a/b", "file:///set"])
def test_urls_are_remote(where):
    assert is_remote(where)


@pytest.mark.parametrize("where", ["/data/set", "data/set", "../set", "s3:/bucket", "./a://b", "://x", ""])
def test_folders_are_not_remote(where):
    assert not is_remote(where)


def test_pauses_grow_twofold(monkeypatch, capsys):
    """1, 2, 4 s and so on, a quarter more or less, so that ranks that failed together do not come back together."""
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(UserError, match="after 6 attempts"):
        remote._tried("https://host/a.tar", fail, remote.Patience(attempts=6, wait_s=1.0))
    assert len(pauses) == 5
    for number, pause in enumerate(pauses):
        assert 0.75 * 2**number <= pause <= 1.25 * 2**number
    pauses.clear()
    with pytest.raises(UserError):
        remote._tried("https://host/a.tar", fail, remote.Patience(attempts=2, wait_s=1.0))
    assert len(pauses) == 1


def test_a_file_over_http(store, tmp_path):
    store.files["a"] = BODY
    assert read_bytes(store.url("a")) == BODY
    download(store.url("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert store.gets["a"] == 2


def test_a_file_url(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    assert read_bytes(f"file://{tmp_path}/a") == BODY
    assert read_bytes(f"file://{tmp_path}/none") is None
    download(f"file://{tmp_path}/a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == BODY


@pytest.mark.parametrize("fault", ["stall", "drop", "500", "503", "429"])
@pytest.mark.parametrize("how", ["read", "download"])
def test_what_may_pass_is_tried_again(store, tmp_path, capsys, fault, how):
    store.files["a"] = BODY
    store.faults["a"] = [fault]
    patience = Patience(attempts=5, wait_s=0.01, read_s=0.5)
    if how == "read":
        assert read_bytes(store.url("a"), patience) == BODY
    else:
        download(store.url("a"), tmp_path / "a", patience)
        assert (tmp_path / "a").read_bytes() == BODY
    assert store.gets["a"] >= 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"warning: {store.url('a')} cannot be read: ")
    assert "Trying again in 0.0 s (attempt 2 of 5)" in first


@pytest.mark.parametrize(("fault", "reason"), [("500", "HTTP status 500"), ("drop", "Payload")])
def test_what_does_not_pass_ends_by_name(store, tmp_path, fault, reason):
    store.files["a"] = BODY
    store.faults["a"] = [f"{fault} forever"]
    with pytest.raises(
        UserError, match=rf"{store.url('a')} cannot be read: .*{reason}.*after 3 attempts. Check the net"
    ):
        download(store.url("a"), tmp_path / "a", QUICK)
    assert store.gets["a"] == 3


def test_a_server_that_stalls_to_the_end(store, tmp_path):
    store.files["a"] = BODY
    store.faults["a"] = ["stall forever"]
    with pytest.raises(UserError, match="no answer in time, after 2 attempts"):
        download(store.url("a"), tmp_path / "a", Patience(attempts=2, wait_s=0.01, read_s=0.3))


def test_nobody_listens(store):
    store.server.server_close()
    with pytest.raises(UserError, match="Check the network and the server"):
        read_bytes(store.url("a"), QUICK)


def test_what_is_not_there_is_told_at_once(store, tmp_path, capsys):
    assert read_bytes(store.url("none")) is None
    with pytest.raises(UserError, match=r"none cannot be read: it does not exist. Check the URL"):
        download(store.url("none"), tmp_path / "a")
    assert store.gets["none"] == 2
    assert not capsys.readouterr().err


@pytest.mark.parametrize("fault", ["401", "403"])
def test_what_is_forbidden_is_told_at_once(store, tmp_path, fault):
    store.files["a"] = BODY
    store.faults["a"] = [f"{fault} forever"]
    for fetch in (lambda: download(store.url("a"), tmp_path / "a"), lambda: read_bytes(store.url("a"))):
        with pytest.raises(UserError, match=rf"no permission \(HTTP status {fault}\).*FSSPEC_HTTP_CLIENT_KWARGS"):
            fetch()
    assert store.gets["a"] == 2


def test_a_request_that_the_server_refuses_is_told_at_once(store):
    store.faults["a"] = ["400 forever"]
    with pytest.raises(UserError, match=r"HTTP status 400. Check the URL"):
        read_bytes(store.url("a"))
    assert store.gets["a"] == 1


def test_a_download_ends_soon_behind_the_size_that_is_known(store, tmp_path):
    store.files["a"] = bytes(8 << 20)
    with pytest.raises(
        UserError, match=r"it has more than the 20,000 bytes of the manifest. Copy the file there again"
    ):
        download(store.url("a"), tmp_path / "a", QUICK, size=20_000)


def test_a_server_may_redirect_to_another_file_of_http(store):
    store.files |= {"a": b"", "b": BODY}
    store.faults["a"] = [f"to {store.url('b')}"]
    assert read_bytes(store.url("a")) == BODY


@pytest.mark.parametrize("where", ["file://{}", "ftp://127.0.0.1/{}", "/a"])
def test_a_redirect_to_nothing_that_can_be_read_is_told_after_two_attempts(store, tmp_path, where):
    """To a file of this machine, to another scheme, in a circle."""
    (tmp_path / "own").write_text("of this machine")
    store.files["a"] = BODY
    store.faults["a"] = [f"to {where.format(tmp_path / 'own')} forever"]
    with pytest.raises(UserError, match=r"the server redirects it \(\w+Redirect.*\)\. Check the URL") as told:
        read_bytes(store.url("a"), QUICK)
    assert "of this machine" not in str(told.value)


def test_the_users_own_headers_are_sent(store, monkeypatch):
    import fsspec

    headers = {"headers": {"Authorization": "Bearer 123"}}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": headers})
    store.files["a"] = BODY
    assert read_bytes(store.url("a")) == BODY
    assert store.headers["Authorization"] == "Bearer 123"


def test_an_unknown_protocol():
    with pytest.raises(UserError, match=r"nothing here can read ftpx:// URLs. Use s3://"):
        read_bytes("ftpx://host/a")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://b/a", "s3fs", "s3"),
        ("gs://b/a", "gcsfs", "gcs"),
        ("https://h/a", "aiohttp", "http"),
        ("hf://datasets/a/b/c", "huggingface_hub", "hf"),
    ],
)
def test_a_missing_package_is_told_with_its_command(tmp_path, monkeypatch, url, package, extra):
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "registry", {})
    for fetch in (lambda: read_bytes(url), lambda: download(url, tmp_path / "a")):
        with pytest.raises(UserError, match=rf"{package}.*Install it: .venv/bin/pip install .*'\.\[{extra}\]'"):
            fetch()


def test_a_local_file_that_cannot_be_written(store, tmp_path):
    store.files["a"] = BODY
    with pytest.raises(UserError, match=r"none/a cannot be written.*data.cache"):
        download(store.url("a"), tmp_path / "none" / "a")
    assert store.gets["a"] == 1


def test_importing_costs_nothing():
    code = "import sys, pipeline.data.storage.prefetch; assert not {'fsspec', 'aiohttp', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


S3 = """
import sys
from pathlib import Path
from pipeline.data.storage.remote import Patience, download, read_bytes
from pipeline.errors import UserError
quick = Patience(attempts=2, wait_s=0.01)
assert read_bytes("s3://shards/set/a", quick) == b"one" * 1000
assert read_bytes("s3://shards/set/none", quick) is None
download("s3://shards/set/a", Path(sys.argv[1]), quick)
assert Path(sys.argv[1]).read_bytes() == b"one" * 1000
try:
    download("s3://shards/none", Path(sys.argv[1]), quick)
except UserError as error:
    assert "s3://shards/none cannot be read: it does not exist" in str(error), error
else:
    raise AssertionError
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server with one file: s3://shards/set/a."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket="shards")
    client.put_object(Bucket="shards", Key="set/a", Body=b"one" * 1000)
    yield endpoint
    server.stop()


@pytest.mark.parametrize("variable", ["FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"])
def test_an_s3_server_named_in_the_environment(s3, tmp_path, variable):
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "NO_PROXY": "127.0.0.1"}
    environment = os.environ | keys | {variable: s3}
    subprocess.run([sys.executable, "-c", S3, str(tmp_path / "a")], env=environment, check=True)


def test_s3_without_credentials_is_told_at_once(s3):
    code = "from pipeline.data.storage.remote import read_bytes; read_bytes('s3://shards/set/a')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": s3, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(Path("/nonexistent"))}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "no permission (NoCredentialsError" in ended.stderr
    assert "AWS_PROFILE" in ended.stderr
    assert "warning: " not in ended.stderr
