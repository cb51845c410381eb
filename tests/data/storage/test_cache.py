"""The cache of remote shards: fetched once, verified, bounded, never taken from who uses it."""

import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.data.storage import verified
from pipeline.data.storage.cache import Cache, file_name
from pipeline.data.storage.remote import Patience
from pipeline.errors import UserError
from tests.conftest import disk_of, fill
from tests.data.storage.test_remote import BODY, QUICK, store  # noqa: F401

SIZE = len(BODY)

PROCESS = """
import sys
from pathlib import Path
from pipeline.data.storage.cache import Cache
folder, max_bytes, *shards = sys.argv[1:]
cache = Cache(Path(folder), int(max_bytes))
print("ready", flush=True)
sys.stdin.readline()
for shard in shards:
    url, size, sha256 = shard.split(",")
    with cache.open(url, int(size), sha256) as file:
        assert len(file.read()) == int(size)
print("done", flush=True)
sys.stdin.readline()
"""


def start(folder: Path, max_bytes: int, *shards: tuple[str, int, str]) -> subprocess.Popen:
    """A process that opens the shards in turn when it is told to."""
    words = [",".join(map(str, shard)) for shard in shards]
    command = [sys.executable, "-c", PROCESS, str(folder), str(max_bytes), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> None:
    assert process.stdin
    process.stdin.write("\n")


def here(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock", ".verified"}


def names(*shards: tuple[str, int, str]) -> set[str]:
    return {file_name(size, sha256) for _, size, sha256 in shards}


def opened(cache: Cache, shard: tuple[str, int, str], ahead: bool = False) -> BinaryIO:
    file = cache.open(*shard, ahead=ahead)
    assert file is not None
    return file


def test_a_shard_is_fetched_once(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    cache = Cache(tmp_path / "deep" / "cache", 10 * SIZE)
    for _ in range(3):
        with opened(cache, a) as file:
            assert file.read() == store.files["a"]
    assert store.gets["a"] == 1
    assert here(cache.folder) == names(a)
    assert cache.names() == names(a)


def test_two_urls_of_the_same_bytes_share_a_file(store, tmp_path):  # noqa: F811
    url, size, sha256 = store.shard("a")
    cache = Cache(tmp_path, 10 * SIZE)
    opened(cache, (url, size, sha256)).close()
    opened(cache, (store.url("elsewhere"), size, sha256)).close()
    assert store.gets["elsewhere"] == 0


def test_threads_wait_for_the_one_that_fetches(store, tmp_path):  # noqa: F811
    shards = [store.shard(name) for name in "abc"]
    cache = Cache(tmp_path, 10 * SIZE)
    with ThreadPoolExecutor(8) as pool:
        for file in pool.map(lambda number: opened(cache, shards[number % 3]), range(24)):
            file.close()
    assert store.gets == {"a": 1, "b": 1, "c": 1}


def test_processes_wait_for_the_one_that_fetches(store, tmp_path):  # noqa: F811
    shards = [store.shard(name, 3_000_000) for name in "abcd"]
    processes = [start(tmp_path, 10**9, *shards[turn:], *shards[:turn]) for turn in (0, 0, 2, 3)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate("\n")
        assert process.returncode == 0
    assert store.gets == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert here(tmp_path) == names(*shards)


def test_a_process_killed_while_it_fetches(store, tmp_path):  # noqa: F811
    a = store.shard("a", 3_000_000)
    store.faults["a"] = ["stall"]
    first, second = start(tmp_path, 10**9, a), start(tmp_path, 10**9, a)
    go(first)
    assert store.stalling.wait(60)
    go(second)  # it waits for the first
    assert here(tmp_path) == {f"{next(iter(names(a)))}.part"}
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second.communicate("\n")
    assert second.returncode == 0
    assert store.gets["a"] == 2
    assert here(tmp_path) == names(a)


@pytest.mark.parametrize("fault", ["wrong", "short", "drop", "500"])
def test_a_bad_copy_is_fetched_again(store, tmp_path, capsys, fault):  # noqa: F811
    a = store.shard("a")
    store.faults["a"] = [fault]
    with opened(Cache(tmp_path, 10 * SIZE, QUICK), a) as file:
        assert file.read() == store.files["a"]
    assert store.gets["a"] == 2
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize(("fault", "how"), [("wrong", "SHA-256"), ("short", f"{SIZE - 100} bytes, not {SIZE}")])
def test_bytes_that_stay_wrong_end_by_name(store, tmp_path, fault, how):  # noqa: F811
    a = store.shard("a")
    store.faults["a"] = [f"{fault} forever"]
    with pytest.raises(UserError, match=rf"{a[0]}.* not those of the manifest \({how}.*launch.pack"):
        Cache(tmp_path, 10 * SIZE, QUICK).open(*a)
    assert store.gets["a"] == {"wrong": 2, "short": 3}[fault]  # the same wrong bytes twice will not get better
    assert not here(tmp_path)


def test_a_shard_that_is_not_there(store, tmp_path):  # noqa: F811
    _, size, sha256 = store.shard("a")
    with pytest.raises(UserError, match="none cannot be read: it does not exist"):
        Cache(tmp_path, 10 * SIZE).open(store.url("none"), size, sha256)
    assert not here(tmp_path)


def test_a_file_that_somebody_cut_is_fetched_again(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    cache = Cache(tmp_path, 10 * SIZE)
    opened(cache, a).close()
    os.truncate(tmp_path / file_name(*a[1:]), 10)
    with opened(cache, a) as file:
        assert file.read() == store.files["a"]


def flip(path: Path, at: int = 1000) -> None:
    """One bit, as a disk does it: size and times stay."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def new_job(monkeypatch) -> None:
    monkeypatch.setattr(verified, "STARTED_NS", time.time_ns() + 50_000_000)
    time.sleep(0.1)  # clocks of file systems are coarse


def test_a_flipped_bit_is_found_by_the_next_job(store, tmp_path, monkeypatch, capsys):  # noqa: F811
    a, b = store.shard("a"), store.shard("b")
    for shard in (a, b):
        opened(Cache(tmp_path, 10 * SIZE), shard).close()
    flip(tmp_path / file_name(*a[1:]))
    new_job(monkeypatch)
    cache = Cache(tmp_path, 10 * SIZE)
    for _ in range(2):
        for name, shard in (("a", a), ("b", b)):
            with opened(cache, shard) as file:
                assert file.read() == store.files[name]
    assert store.gets == {"a": 2, "b": 1}
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert f"{tmp_path / file_name(*a[1:])} was damaged after it had been fetched" in said
    assert f"{a[0]} is fetched again" in said


def test_a_shard_is_compared_once_in_a_job(store, tmp_path, monkeypatch):  # noqa: F811
    a = store.shard("a")
    opened(Cache(tmp_path, 10 * SIZE), a).close()
    compared: list[str] = []

    def is_right(file: BinaryIO, sha256: str) -> bool:
        compared.append(sha256)
        time.sleep(0.2)  # others come meanwhile, and wait
        return True

    monkeypatch.setattr(verified, "is_right", is_right)
    opened(Cache(tmp_path, 10 * SIZE), a).close()
    assert compared == []  # it was fetched by this job
    new_job(monkeypatch)
    with ThreadPoolExecutor(6) as pool:
        for file in pool.map(lambda _: opened(Cache(tmp_path, 10 * SIZE), a), range(6)):
            file.close()
    assert compared == [a[2]]


def test_a_process_killed_while_it_compares_has_found_nothing(store, tmp_path, monkeypatch):  # noqa: F811
    a = store.shard("a")
    opened(Cache(tmp_path, 10 * SIZE), a).close()
    whole = tmp_path / file_name(*a[1:])
    flip(whole)
    (tmp_path / ".verified" / whole.name).write_bytes(b"")
    with opened(Cache(tmp_path, 10 * SIZE), a) as file:
        assert file.read() == store.files["a"]


def test_a_damaged_shard_that_is_mapped_stays_with_who_has_it(store, tmp_path, monkeypatch):  # noqa: F811
    a = store.shard("a")
    cache = Cache(tmp_path, 10 * SIZE)
    with opened(cache, a) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    flip(tmp_path / file_name(*a[1:]))
    cache.verify(*a)
    assert here(tmp_path) == set()
    assert mapped[:] != store.files["a"]
    with opened(cache, a) as file:
        assert file.read() == store.files["a"]
    cache.verify(*a)
    assert here(tmp_path) == names(a)
    assert store.gets["a"] == 2


def test_the_least_recently_used_goes_first(store, tmp_path):  # noqa: F811
    a, b, c, d = (store.shard(name) for name in "abcd")
    cache = Cache(tmp_path, 3 * SIZE)
    for shard in (a, b, c, a, d):
        opened(cache, shard).close()
    assert here(tmp_path) == names(a, c, d)


def test_what_is_open_or_mapped_stays(store, tmp_path):  # noqa: F811
    a, b, c, d = (store.shard(name) for name in "abcd")
    cache = Cache(tmp_path, 2 * SIZE)
    with opened(cache, a) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for shard in (b, c):
        opened(cache, shard).close()
    assert here(tmp_path) == names(a, c)
    mapped.close()
    opened(cache, d).close()
    assert here(tmp_path) == names(c, d)


def test_what_another_process_holds_stays(store, tmp_path):  # noqa: F811
    a, b, c = (store.shard(name) for name in "abc")
    code = f"""if True:
        import sys, pathlib
        from pipeline.data.storage.cache import Cache
        file = Cache(pathlib.Path({str(tmp_path)!r}), 10**9).open(*{a!r})
        print("held", flush=True)
        sys.stdin.readline()
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    cache = Cache(tmp_path, 2 * SIZE)
    for shard in (b, c):
        opened(cache, shard).close()
    assert here(tmp_path) == names(a, c)
    process.kill()
    process.communicate()
    opened(cache, b).close()
    assert here(tmp_path) == names(b, c)


def test_what_is_needed_soon_goes_last(store, tmp_path):  # noqa: F811
    a, b, c, d = (store.shard(name) for name in "abcd")
    cache = Cache(tmp_path, 2 * SIZE)
    opened(cache, a).close()
    opened(cache, b).close()
    cache.soon = frozenset(names(a, c))
    opened(cache, c, ahead=True).close()
    assert here(tmp_path) == names(a, c)
    assert cache.open(*b, ahead=True) is None
    assert here(tmp_path) == names(a, c)
    opened(cache, d).close()
    assert here(tmp_path) == names(c, d)


def test_ahead_fetches_and_evicts_nothing_without_room(store, tmp_path):  # noqa: F811
    a, b, big = store.shard("a"), store.shard("b"), store.shard("big", 2 * SIZE)
    cache = Cache(tmp_path, 2 * SIZE)
    opened(cache, a).close()
    with opened(cache, b):
        assert cache.open(*big, ahead=True) is None
        assert here(tmp_path) == names(a, b)
        with opened(cache, big):  # a step needs it now
            assert here(tmp_path) == names(b, big)
    assert store.gets["big"] == 1


def test_a_shard_larger_than_the_cache(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    cache = Cache(tmp_path, SIZE - 1)
    assert cache.open(*a, ahead=True) is None
    with opened(cache, a) as file:
        assert file.read() == store.files["a"]


def test_a_stale_part_makes_room(store, tmp_path):  # noqa: F811
    a, b, c = (store.shard(name) for name in "abc")
    cache = Cache(tmp_path, 2 * SIZE)
    opened(cache, a).close()
    (tmp_path / f"{file_name(*b[1:])}.part").write_bytes(b"half")
    opened(cache, c, ahead=True).close()
    assert here(tmp_path) == names(a, c)


def test_the_bound_holds_while_many_fetch_ahead(store, tmp_path):  # noqa: F811
    shards = [store.shard(str(number)) for number in range(40)]
    cache = Cache(tmp_path, 5 * SIZE)
    most = []

    def count() -> None:
        with cache._alone():
            most.append(sum(int(name.partition("-")[2].split(".")[0]) for name in here(tmp_path)))

    store.on_get = count

    def fetch(number: int) -> None:
        while (file := cache.open(*shards[number], ahead=True)) is None:
            time.sleep(0.01)
        file.close()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(fetch, range(40)))
    assert len(most) == 40
    assert max(most) == 5 * SIZE
    assert not [name for name in here(tmp_path) if name.endswith(".part")]


def test_other_files_in_the_folder_are_left_alone(store, tmp_path):  # noqa: F811
    (tmp_path / "index").mkdir()
    (tmp_path / "notes.tar").write_bytes(BODY)
    cache = Cache(tmp_path, SIZE)
    for name in "ab":
        opened(cache, store.shard(name)).close()
    assert here(tmp_path) == {"index", "notes.tar"} | names(store.shard("b"))


def test_a_full_disk_names_the_keys(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    code = f"""if True:
        import resource
        from pathlib import Path
        from pipeline.data.storage.cache import Cache
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        Cache(Path({str(tmp_path)!r}), 10**9).open(*{a!r})
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = ended.stderr.splitlines()[-1]
    assert "UserError" in message
    assert f"{tmp_path}" in message
    assert "data.cache_gb" in message
    assert "set data.cache to" in message
    assert store.gets["a"] == 1
    assert not here(tmp_path)


def test_a_disk_that_is_really_full(store, tmp_path):  # noqa: F811
    """Smaller than data.cache_gb says: the message has the shard's bytes, and with room the same shard comes."""
    a = store.shard("a")
    with disk_of(tmp_path / "small", 4 * SIZE + (64 << 10)) as disk:
        filler = fill(disk, SIZE // 2)
        with pytest.raises(UserError) as caught:
            Cache(disk, 10**9).open(*a)
        told = str(caught.value)
        assert re.match(rf"{disk}/\w+-{SIZE}\.tar\.part cannot be written: the disk is full", told)
        assert f"(it takes {SIZE:,} bytes, " in told
        assert here(disk) == {"filler"}
        filler.unlink()
        with opened(Cache(disk, 10**9), a) as file:
            assert file.read() == store.files["a"]


def test_a_disk_without_inodes(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    with disk_of(tmp_path / "small", 4 * SIZE + (64 << 10), inodes=3) as disk:
        Cache(disk, 10**9)
        (disk / "one").touch()
        with pytest.raises(
            UserError, match=r"cannot be written: its file system has \d inodes left.*set data.cache to"
        ):
            Cache(disk, 10**9).open(*a)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be written.*data.cache"):
        Cache(tmp_path / "file" / "cache", SIZE)


def test_a_failure_of_one_is_told_to_all_who_wait(store, tmp_path):  # noqa: F811
    a = store.shard("a")
    store.faults["a"] = ["500 forever"]
    cache = Cache(tmp_path, 10 * SIZE, Patience(attempts=2, wait_s=0.01))
    told = []

    def fetch() -> None:
        with pytest.raises(UserError, match="HTTP status 500"):
            cache.open(*a)
        told.append(True)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    assert not here(tmp_path)
