"""Files behind URLs: s3://, gs://, https://, hf:// and whatever else fsspec knows.

In: a URL. Out: its bytes, or a local copy. What may pass by itself (a dropped connection, a busy server) is tried
again, for about three minutes; what will not (no such file, no permission, no package) is told at once.
"""

import contextlib
import errno
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.files import cannot_write

T = TypeVar("T")

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http", "hf": "hf"}
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true",
    "gcs": "run gcloud auth application-default login; for a public bucket set FSSPEC_GCS_TOKEN=anon",
    "http": """set FSSPEC_HTTP_CLIENT_KWARGS='{"headers": {"Authorization": "Bearer ..."}}', or use ~/.netrc""",
    "hf": "set HF_TOKEN, and accept the data set's terms on its page",
}
MISSING = FileNotFoundError, NotADirectoryError, IsADirectoryError
KEEP = (
    "Free space on its disk, lower data.cache_gb, or set data.cache to a folder on a local disk that you may write to"
)
SLACK = 1 << 20  # bytes behind the expected size until a download is cut off; fewer are told by their checksum
DISK = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG
BUGS = TypeError, AttributeError, NameError  # ours or the backend's: they keep their traceback
WORTH_ANOTHER = 408, 425, 429  # of the HTTP status codes that blame the client


@dataclass(frozen=True)
class Patience:
    """`attempts` in all, the second `wait_s` after the first, then twice as long each time; over http, `read_s` without
    a byte ends an attempt."""

    attempts: int = 8
    wait_s: float = 1.5
    read_s: float = 60.0


PATIENT = Patience()
AT_START = Patience(attempts=3)  # a mistyped host should be told while the person is still there


class Failure(Exception):
    """Why a fetch failed, what the user can do, whether it may go better when it is tried `again`, and whether the same
    reason twice is enough to be sure that it will not (`sure_twice`)."""

    def __init__(self, reason: str, action: str, again: bool = False, sure_twice: bool = False):
        super().__init__(reason)
        self.reason, self.action, self.again, self.sure_twice = reason, action, again, sure_twice


class _Missing(UserError):
    """There is no such file."""


class Forbidden(UserError):
    """One may not read it; some servers say that of what does not exist, too."""


def is_remote(where: str) -> bool:
    """Whether `where` is a URL: "scheme://..."."""
    scheme, separator, _ = where.partition("://")
    return bool(scheme and separator) and "/" not in scheme


def read_bytes(url: str, patience: Patience = PATIENT) -> bytes | None:
    """The whole file at `url`, None if there is none. Raises UserError, naming the URL, if it cannot be read."""

    def read() -> bytes:
        files, path = _files(url, patience)
        return files.cat_file(path)

    try:
        return _tried(url, read, patience)
    except _Missing:
        return None


def download(
    url: str,
    path: Path,
    patience: Patience = PATIENT,
    check: Callable[[], None] | None = None,
    size: int = 0,
    action: str = KEEP,
) -> None:
    """Copy the file at `url` into the local file `path`, in place. `check` looks at the copy and may raise a Failure.

    Raises UserError, naming the URL or the path: nothing there, no permission, failure to the end, or a full disk, with
    `size` in bytes, if it is known, and the next `action`; then no half of the file stays.
    """

    def copy() -> None:
        files, source = _files(url, patience)
        try:
            files.get_file(source, str(path), callback=_bound(size))
        except OSError as error:
            if error.errno in DISK or error.filename == str(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                raise cannot_write(path, error, size, action) from error
            raise
        if check:
            check()

    _tried(url, copy, patience)


def _bound(size: int) -> Any:
    """Ends a download that brings more than `size` bytes, if that is known: it would fill the disk."""
    from fsspec.callbacks import Callback

    class Bound(Callback):
        def call(self, *args: Any, **kwargs: Any) -> None:
            if size and self.value > size + SLACK:
                raise Failure(
                    f"it has more than the {size:,} bytes of the manifest",
                    "Copy the file there again, or index the set again with launch.pack",
                    again=True,
                    sure_twice=True,
                )

    return Bound()


def list_files(pattern: str, patience: Patience = AT_START) -> list[tuple[str, int]]:
    """URL and size in bytes of each file that a URL with wildcards means, or of the one without; -1: not told.

    Raises UserError, naming the URL: nothing there, no permission, or failure to the end.
    """

    def look() -> list[tuple[str, int]]:
        files, path = _files(pattern, patience)
        listed = files.glob(path, detail=True) if has_magic(path) else {path: files.info(path)}
        size_of = {files.unstrip_protocol(name): info.get("size") for name, info in listed.items()}
        return [(url, -1 if size is None else int(size)) for url, size in size_of.items()]

    return _tried(pattern, look, patience)


def _files(url: str, patience: Patience) -> tuple[Any, str]:
    """fsspec's file system for `url`, and the path in it."""
    import fsspec  # here, since it costs --help 0.1 s

    scheme = _scheme(url)
    if scheme not in fsspec.available_protocols():
        raise Failure(f"nothing here can read {scheme}:// URLs", "Use s3://, gs://, https:// or hf://")
    if scheme not in ("http", "https"):
        return fsspec.url_to_fs(url)
    import aiohttp

    # fsspec's own limit of five minutes in all would cut off big shards
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=patience.read_s)
    users = fsspec.config.conf.get("http", {}) | fsspec.config.conf.get("https", {})
    options = {"timeout": timeout, "trust_env": True} | users.get("client_kwargs", {})
    return fsspec.url_to_fs(url, client_kwargs=options)


def _scheme(url: str) -> str:
    return url.partition("://")[0].partition("::")[0].lower()


def _tried(url: str, fetch: Callable[[], T], patience: Patience) -> T:
    """What `fetch` returns, in the end. Raises UserError if it does not."""
    wait_s = patience.wait_s
    reason = ""
    for attempt in range(1, patience.attempts + 1):
        try:
            fetched = fetch()
            if attempt > 1:
                print(f"{url} came at attempt {attempt}", file=sys.stderr, flush=True)
            return fetched
        except UserError:
            raise
        except Exception as error:
            failure = error if isinstance(error, Failure) else _explain(error, url)
            text = f"{url} cannot be read: {failure.reason}"
            if not failure.again or (failure.reason == reason and failure.sure_twice):
                kind = Forbidden if _is_forbidden(error) else UserError
                kind = _Missing if _status(error) in (404, 410) or isinstance(error, MISSING) else kind
                raise kind(f"{text}. {failure.action}") from error
            reason = failure.reason
            if attempt == patience.attempts:
                if isinstance(error, BUGS):
                    raise
                raise UserError(f"{text}, after {attempt} attempts. {failure.action}") from error
        pause_s = wait_s * random.uniform(0.75, 1.25)  # the ranks that failed together do not come back together
        wait_s *= 2
        again = f"Trying again in {pause_s:.1f} s (attempt {attempt + 1} of {patience.attempts})"
        print(f"warning: {text}. {again}", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    raise ValueError(f"{patience.attempts} attempts")


def _explain(error: Exception, url: str) -> Failure:
    """Backends have no common exceptions: go by Python's own, then by the HTTP status, then take it for transient."""
    reason = (
        "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}".splitlines()[0]
    )
    extra = EXTRAS.get(_scheme(url), "")
    status = _status(error)
    if status:
        reason = f"HTTP status {status}"
    if isinstance(error, ImportError):
        install = f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'" if extra else "Install it into .venv"
        return Failure(f"a package is missing ({error})", f"Install it: {install}" if extra else install)
    if isinstance(error, MISSING) or status in (404, 410):
        return Failure("it does not exist", "Check the URL, and that the set was copied there as a whole")
    if _is_forbidden(error):
        return Failure(
            f"no permission ({reason})",
            f"Check the URL and the credentials: {CREDENTIALS.get(extra, 'those of its storage')}",
        )
    if "Redirect" in type(error).__name__:  # aiohttp's: to another scheme, to nothing, in a circle
        return Failure(f"the server redirects it ({reason})", "Check the URL", again=True, sure_twice=True)
    blamed = status is not None and 400 <= status < 500 and status not in WORTH_ANOTHER
    if blamed or isinstance(error, ValueError) or getattr(error, "errno", None) == errno.EINVAL:
        return Failure(reason, "Check the URL")
    return Failure(reason, "Check the network and the server, then start the same command again", again=True)


def _is_forbidden(error: Exception) -> bool:
    by_name = isinstance(error, PermissionError) or "Credential" in type(error).__name__
    return by_name or _status(error) in (401, 403, 407)


def _status(error: Exception) -> int | None:
    """The HTTP status that an exception of aiohttp, gcsfs or huggingface_hub carries."""
    for holder, name in (error, "status"), (error, "code"), (getattr(error, "response", None), "status_code"):
        value = getattr(holder, name, None)
        if isinstance(value, int):
            return value
    return None
