import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from fsspec.config import conf
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from datamodules import cache as module
from datamodules import fetch as fetching
from datamodules.cache import ShardCache, manifest_beside
from datamodules.manifest import ManifestError, ShardEntry, describe_shard, write_manifest
from datamodules.urls import FetchError

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.01, 0.01))


def tar_of(number: int, num_bytes: int = 1000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(f"k{number}.txt")
        info.size = num_bytes
        tar.addfile(info, io.BytesIO(b"%04d" % number * (num_bytes // 4)))
    return buffer.getvalue()


@pytest.fixture
def shard(server) -> bytes:
    """A shard that the server has as `a.tar`."""
    server.files["a.tar"] = data = tar_of(0, 2**20)
    return data


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", timeout=0.5)


def entry_of(data: bytes, tmp_path: Path, name: str = "a.tar") -> ShardEntry:
    folder = tmp_path / "described"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return describe_shard(folder / name)[0]


def left(cache: ShardCache) -> list[Path]:
    """Files in the folder, but for the locks."""
    return [path for path in cache.folder.iterdir() if path.is_file()]


@pytest.mark.parametrize("how", ["plain", "moved", "flaky", "unmeasured", "packing"])
@pytest.mark.parametrize("known", [True, False])
def test_a_remote_shard_is_fetched_once(server, shard, cache, tmp_path, how, known):
    url, entry = f"{server.url}/{how}/a.tar", entry_of(shard, tmp_path) if known else None
    path = cache.local(url, entry)
    assert path.read_bytes() == shard and path.parent == cache.folder
    assert path.name.endswith("-a.tar") and left(cache) == [path]
    asked = server.asked.copy()
    assert cache.local(url, entry) == path and server.asked == asked
    with cache.open(url, entry) as file:
        assert file.read() == shard


def test_names_do_not_collide(server, cache, shard):
    server.files["x/a.tar"], server.files["y/a.tar"] = tar_of(1), tar_of(2)
    urls = [f"{server.url}/plain/{name}/a.tar" for name in "xy"] + [f"{server.url}/plain/a.tar"]
    urls += [f"{urls[0]}?part=1", f"{urls[0]}?part=2"]
    paths = [cache.local(url) for url in urls]
    assert len(set(paths)) == len(urls)
    assert [path.read_bytes() for path in paths[:3]] == [tar_of(1), tar_of(2), shard]


def test_a_token_comes_from_the_configuration_and_is_never_shown(server, cache, shard, monkeypatch):
    url = f"{server.url}/token/a.tar"
    with pytest.raises(FetchError, match="denied"):
        cache.local(url)
    monkeypatch.setitem(conf, "http", {"headers": {"Authorization": "Bearer secret"}})
    assert cache.local(url).read_bytes() == shard
    with pytest.raises(FetchError) as caught:
        cache.local(f"{server.url}/token/none.tar")
    assert "secret" not in str(caught.value)


def test_a_new_manifest_fetches_anew(server, cache, tmp_path):
    url = f"{server.url}/plain/a.tar"
    for number in range(2):
        server.files["a.tar"] = tar_of(number)
        entry = entry_of(tar_of(number), tmp_path)
        assert cache.local(url, entry).read_bytes() == tar_of(number)


def test_a_local_tar_is_not_touched(cache, tmp_path):
    path = tmp_path / "we#ird?.tar"
    path.write_bytes(tar_of(0))
    assert cache.local(str(path)) == path and not cache.folder.exists()
    with cache.open(str(path)) as file:
        assert file.read() == tar_of(0)
    with pytest.raises(FileNotFoundError):
        cache.open(str(tmp_path / "none.tar"))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
@pytest.mark.parametrize("remote", [True, False])
def test_a_packed_shard_is_unpacked_once(server, cache, tmp_path, name, remote):
    packed = gzip.compress(tar_of(0))
    server.files[name] = packed
    (tmp_path / name).write_bytes(packed)
    url = f"{server.url}/plain/{name}" if remote else str(tmp_path / name)
    entry = entry_of(packed, tmp_path, name)
    path = cache.local(url, entry)
    assert path.read_bytes() == tar_of(0) and path.name.endswith("-a.tar")
    assert left(cache) == [path]
    inode = path.stat().st_ino
    assert cache.local(url, entry) == path and path.stat().st_ino == inode
    if not remote:
        (tmp_path / name).write_bytes(gzip.compress(tar_of(1)))
        assert cache.local(url).read_bytes() == tar_of(1)


FAILURES = [
    ("missing", "is not there"),
    ("denied", "access .* is denied"),
    ("page", "is not a tar archive"),
    ("short", "could not be fetched in 3 attempts"),
    ("stall", "silent for 0.5 s"),
    ("loop", "TooManyRedirects"),
    ("endless", "sends more than"),
    ("drip", "less than 64 kB/s"),
]


@pytest.mark.parametrize(("how", "reason"), FAILURES)
def test_each_failure_is_one_sentence_within_a_bounded_time(
    server, shard, cache, monkeypatch, how, reason
):
    monkeypatch.setattr(fetching.fetch, "__defaults__", (None, None, 2**25))
    server.files["b.tar"] = tar_of(1)
    began = time.monotonic()
    with pytest.raises(FetchError, match=reason) as caught:
        name = {"missing": "none.tar", "drip": "b.tar"}.get(how, "a.tar")
        cache.local(f"{server.url}/{how}/{name}?token=secret")
    assert time.monotonic() - began < 3 * (2 * 0.5 + 0.5)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.__cause__ is None  # which could show it
    assert left(cache) == []
    assert cache.local(f"{server.url}/plain/a.tar").read_bytes() == shard  # the cache goes on


def test_a_dead_host(cache):
    with pytest.raises(FetchError, match="could not be fetched in 3 attempts"):
        cache.local("http://127.0.0.1:9/a.tar")
    assert left(cache) == []


@pytest.mark.parametrize("change", ["bit", "longer", "shorter"])
def test_what_is_not_what_the_manifest_says_is_refused(server, shard, cache, tmp_path, change):
    entry = entry_of(shard, tmp_path)
    wrong = {
        "bit": shard[:600] + b"?" + shard[601:],
        "longer": shard + b"x",
        "shorter": shard[:-1],
    }[change]
    server.files["a.tar"] = wrong
    url = f"{server.url}/plain/a.tar"
    with pytest.raises(FetchError, match="SHA-256" if change == "bit" else "bytes"):
        cache.local(url, entry)
    assert left(cache) == [] and server.asked["/plain/a.tar"] == 3
    assert cache.local(url).read_bytes() == wrong  # the negative control: nothing to compare with


def test_without_the_check_a_cut_transfer_would_stay(server, shard, cache, monkeypatch):
    """The negative control, with a server that does not state the length."""
    server.files["a.tar"] = shard[:5000]
    monkeypatch.setattr(fetching, "_check", lambda *_: None)
    path = cache.local(f"{server.url}/unmeasured/a.tar")
    assert path.read_bytes() == shard[:5000]


def test_without_the_meter_an_endless_body_fills_the_disk(server, cache, shard, monkeypatch):
    """The negative control: the transfer goes on far beyond the limit."""
    from fsspec.callbacks import NoOpCallback

    monkeypatch.setattr(fetching, "_meter", lambda *_: NoOpCallback())
    process = FORK.Process(target=cache.local, args=(f"{server.url}/endless/a.tar",))
    process.start()
    deadline = time.monotonic() + 20
    while sum(path.stat().st_size for path in cache.folder.glob(".*.partial")) < 2**26:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()


@pytest.mark.parametrize("remote", [True, False])
def test_a_full_disk_is_one_sentence(server, cache, tmp_path, monkeypatch, remote):
    server.files["a.tar"] = tar_of(0)
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_of(0)))
    url = f"{server.url}/plain/a.tar" if remote else str(tmp_path / "a.tar")
    path = cache.local(url)
    path.unlink()
    partial = cache.folder / f".{path.name}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(FetchError, match=r"the disk of .* is full; free some space"):
        cache.local(url)
    assert left(cache) == [] and not partial.is_symlink() and server.asked["/plain/a.tar"] <= 2
    assert cache.local(url).read_bytes() == tar_of(0)
    path.unlink()
    partial.symlink_to("/dev/full")
    monkeypatch.setattr(fetching, "FULL_DISK", ())  # the negative control
    monkeypatch.setattr(module, "FULL_DISK", ())
    with pytest.raises((FetchError, OSError)) as caught:
        cache.local(url)
    assert "free some space" not in str(caught.value)


@pytest.mark.parametrize("remote", [True, False])
def test_bombs_are_refused(server, cache, tmp_path, monkeypatch, remote):
    bomb = gzip.compress(bytes(2**26), 9)  # 65 kB that stand for 64 MB
    server.files["a.tar.gz"] = bomb
    (tmp_path / "a.tar.gz").write_bytes(bomb)
    url = f"{server.url}/plain/a.tar.gz" if remote else str(tmp_path / "a.tar.gz")
    with pytest.raises(FetchError, match="unpacks to more than 16777216 bytes"):
        cache.local(url)
    assert left(cache) == []
    monkeypatch.setattr("datamodules.unpack.SMALL", 2**30)  # the negative control
    assert cache.local(url).stat().st_size == 2**26


@pytest.mark.parametrize("damage", ["cut", "bit", "tail"])
def test_a_damaged_packed_shard_is_refused(cache, tmp_path, damage):
    whole = gzip.compress(tar_of(0))
    path = tmp_path / "a.tar.gz"
    half = len(whole) // 2
    flipped = whole[:half] + bytes([whole[half] ^ 16]) + whole[half + 1 :]
    path.write_bytes({"cut": whole[:-20], "bit": flipped, "tail": whole + b"more"}[damage])
    with pytest.raises(FetchError, match="could not be unpacked .*damaged"):
        cache.local(str(path))
    assert left(cache) == []


def ask(cache: ShardCache, url: str, results) -> None:
    try:
        results.put(cache.local(url).read_bytes())
    except Exception as error:
        results.put(str(error))


def asked_at_once(cache: ShardCache, url: str, count: int = 8) -> list[bytes | str]:
    results = FORK.Queue()
    processes = [FORK.Process(target=ask, args=(cache, url, results)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    return found


def test_eight_processes_fetch_once(server, shard, cache):
    cache.local(f"{server.url}/plain/a.tar")  # fsspec has a thread when this process forks
    assert asked_at_once(cache, f"{server.url}/slow/a.tar") == [shard] * 8
    assert server.asked["/slow/a.tar"] == 1


def test_without_the_lock_eight_processes_fetch_more_than_once(server, shard, cache, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: None)
    asked_at_once(cache, f"{server.url}/slow/a.tar")
    assert server.asked["/slow/a.tar"] > 1


def test_eight_processes_fail_together(server, shard, cache):
    began = time.monotonic()
    found = asked_at_once(cache, f"{server.url}/stall/a.tar")
    assert all("silent" in str(reason) for reason in found)
    assert server.asked["/stall/a.tar"] == 3  # the others take the answer of the first
    assert time.monotonic() - began < 8


SCRIPT = """
import sys
from datamodules.cache import ShardCache
ShardCache(sys.argv[1], timeout=30).local(sys.argv[2])
"""


@pytest.mark.parametrize("how", ["stall", "slow"])
def test_a_killed_fetch_blocks_nobody_and_leaves_nothing_torn(server, shard, cache, how):
    url = f"{server.url}/{how}/a.tar"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(cache.folder), url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 30
    while not server.asked[f"/{how}/a.tar"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in left(cache)] in ([".partial"], [])
    began = time.monotonic()
    if how == "slow":
        assert cache.local(url).read_bytes() == shard
    cache.local(f"{server.url}/plain/a.tar")
    assert time.monotonic() - began < 3
    assert {path.suffix for path in left(cache)} == {".tar"}  # what was left is swept


def test_kills_at_any_moment(server, shard, cache):
    """20 processes, each killed a little later; then every file that is there is whole."""
    for trial in range(20):
        url = f"{server.url}/plain/a.tar?trial={trial % 4}"
        process = FORK.Process(target=cache.local, args=(url,))
        process.start()
        time.sleep(0.004 * trial)
        process.kill()
        process.join()
        found = [path for path in cache.folder.glob("*.tar")]
        assert all(path.read_bytes() == shard for path in found)
        assert cache.local(url).read_bytes() == shard


def test_what_was_used_longest_ago_is_evicted(server, tmp_path):
    for number in range(5):
        server.files[f"{number}.tar"] = tar_of(number, 100_000)
    size = len(server.files["0.tar"])
    cache = ShardCache(tmp_path / "cache", max_bytes=3 * size + 10)
    urls = [f"{server.url}/plain/{number}.tar" for number in range(5)]
    paths = []
    for url in urls[:3]:
        paths.append(cache.local(url))
        time.sleep(0.01)
    cache.local(urls[0])
    time.sleep(0.01)
    paths.append(cache.local(urls[3]))
    assert set(left(cache)) == {paths[0], paths[2], paths[3]}  # 1 was used longest ago
    with cache.open(urls[2]) as held:
        paths.append(cache.local(urls[4]))
        cache.local(urls[1])
        assert paths[2].exists() and held.read() == tar_of(2, 100_000)
    assert sum(path.stat().st_size for path in left(cache)) <= cache.max_bytes
    assert cache.local(urls[0]).read_bytes() == tar_of(0, 100_000)  # fetched again


def test_without_its_lock_an_open_file_would_be_evicted(server, shard, tmp_path, monkeypatch):
    """The negative control; even so the open file stays readable."""
    server.files["b.tar"] = tar_of(1)
    cache = ShardCache(tmp_path / "cache", max_bytes=0)
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: None)
    with cache.open(f"{server.url}/plain/a.tar") as held:
        cache.local(f"{server.url}/plain/b.tar")
        assert not Path(held.name).exists() and held.read() == shard


def test_a_cache_that_is_too_small_still_gives_every_shard(server, tmp_path):
    for number in range(4):
        server.files[f"{number}.tar"] = tar_of(number)
    cache = ShardCache(tmp_path / "cache", max_bytes=0)
    readers = [FORK.Process(target=read_often, args=(cache, server.url)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def read_often(cache: ShardCache, url: str) -> None:
    for turn in range(20):
        with cache.open(f"{url}/plain/{turn % 4}.tar") as file:
            assert file.read() == tar_of(turn % 4)


def test_wrong_settings():
    for settings in ({"max_bytes": -1}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match="got a cache of"):
            ShardCache("x", **settings)


class Bucket(MemoryFileSystem):
    """An s3 of this process."""

    protocol = "s3"

    def __init__(self, config_kwargs=None):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))


def test_s3(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(_registry, "s3", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    Bucket().pipe("/bucket/p/a.tar", tar_of(0))
    assert cache.local("s3://bucket/p/a.tar").read_bytes() == tar_of(0)
    with pytest.raises(FetchError, match="s3://bucket/p/b.tar is not there"):
        cache.local("s3://bucket/p/b.tar")
    assert manifest_beside(["s3://bucket/p/a.tar"], cache) == {}
    entry = entry_of(tar_of(0), tmp_path)
    write_manifest([entry], tmp_path / "manifest.json")
    Bucket().pipe("/bucket/p/manifest.json", (tmp_path / "manifest.json").read_bytes())
    assert manifest_beside(["s3://bucket/p/a.tar"], cache) == {"s3://bucket/p/a.tar": entry}


def test_manifests_beside_shards(server, cache, tmp_path, monkeypatch):
    entry = entry_of(tar_of(0), tmp_path)
    write_manifest([entry], tmp_path / "described" / "manifest.json")
    server.files["x/manifest.json"] = (tmp_path / "described" / "manifest.json").read_bytes()
    (tmp_path / "bare.tar").write_bytes(tar_of(0))
    monkeypatch.chdir(tmp_path / "described")
    listed = ["a.tar", str(tmp_path / "described" / "a.tar"), f"{server.url}/plain/x/a.tar?t=1"]
    others = [str(tmp_path / "bare.tar"), f"{server.url}/plain/x/other.tar"]
    others += [f"{server.url}/plain/y/a.tar", f"{server.url}/denied/x/a.tar"]
    assert manifest_beside([*listed, *others], cache) == dict.fromkeys(listed, entry)


@pytest.mark.parametrize("how", ["plain", "page"])
def test_a_damaged_manifest_is_an_error(server, cache, tmp_path, how):
    server.files["manifest.json"] = b"{"
    with pytest.raises(ManifestError, match="manifest.json is not JSON"):
        manifest_beside([f"{server.url}/{how}/a.tar"], cache)
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(ManifestError, match="lists no shards"):
        manifest_beside([str(tmp_path / "a.tar")], cache)


def test_a_manifest_that_cannot_be_fetched_is_an_error(cache):
    with pytest.raises(FetchError, match="could not be fetched"):
        manifest_beside(["http://127.0.0.1:9/a.tar"], cache)
