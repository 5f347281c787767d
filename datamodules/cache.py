"""Shards as local, unpacked files: remote ones are fetched once, packed ones unpacked once.

Many processes may share a cache folder, which must lie on a local disk. One fetches a shard, the
others wait for it; the lock is the kernel's and goes with its holder, so a killed one blocks none.
A file appears under its name once it is whole, checked and on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, final
from urllib.parse import unquote

from datamodules.fetch import FULL_DISK, MissingError, against, fetch, full_disk
from datamodules.manifest import MAX_BYTES, NAME, ShardEntry, parse_manifest, read_manifest
from datamodules.unpack import UnpackError, begins_as_tar, is_packed, unpack
from datamodules.urls import FetchError, is_remote, shown
from datamodules.writer import sync

_LOCKS = ".locks"
_ATTEMPTS = 10  # to open a file that others evict at the same time


@final
class ShardCache:
    """Local files for shards.

    A file is named after its URL and, where known, its digest, so that no two shards share one
    and a changed manifest fetches anew. Without a manifest a shard that changes on its server is
    not noticed: empty the folder.

    When the files have more than `max_bytes`, those used longest ago are removed; never one that
    is held open by `open`. A path given by `local` may be removed before it is opened (ask again),
    and a file that is open stays readable. Shards in use may exceed `max_bytes`.

    Args:
        folder: where files are kept; made when needed.
        max_bytes: size that the folder is kept to.
        timeout: seconds that a server may be silent; see `datamodules.fetch.fetch`.
    """

    def __init__(
        self,
        folder: str | Path = ".cache/shards",
        max_bytes: int = 50 * 2**30,
        timeout: float = 60.0,
    ) -> None:
        if max_bytes < 0 or timeout <= 0:
            raise ValueError(
                f"got a cache of {max_bytes} bytes and a timeout of {timeout} s; give at least 0 "
                "bytes and more than 0 s"
            )
        self.folder, self.max_bytes, self.timeout = Path(folder), max_bytes, timeout

    def local(self, url: str, entry: ShardEntry | None = None) -> Path:
        """A plain tar that holds the shard; a local `.tar` is that itself, untouched.

        Args:
            url: a local path or a remote URL, as `expand_shards` gives them.
            entry: what its manifest says; what is fetched or unpacked must agree with it.

        Raises:
            FetchError: it could not be had, is not what `entry` says, or is no tar.
            OSError: a local shard cannot be read, or the folder cannot be written to.
            ModuleNotFoundError: the client of its scheme is not installed.
        """
        digest = entry.sha256 if entry else ""
        if is_remote(url):
            name = _name_of(url, digest)
            return self._cached(name, lambda target: self._fetch(url, entry, target))
        path = Path(url)
        if not is_packed(path):
            return path
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns} {digest}"
        name = _name_of(str(path.resolve()), state)
        return self._cached(name, lambda target: _unpacked(path, entry, target, url))

    def open(self, url: str, entry: ShardEntry | None = None) -> BinaryIO:
        """Opens the file of `local`; it is not evicted before it is closed.

        Raises:
            FetchError, OSError, ModuleNotFoundError: see `local`.
        """
        for _ in range(_ATTEMPTS):
            path = self.local(url, entry)
            with suppress(FileNotFoundError):  # evicted in between
                file = path.open("rb")
                if path.parent == self.folder:
                    fcntl.flock(file, fcntl.LOCK_SH)
                return file
        raise FetchError(
            f"{shown(url)} was evicted {_ATTEMPTS} times before it could be opened; give the "
            f"cache {self.folder} more bytes than {self.max_bytes}"
        )

    def _cached(self, name: str, make: Callable[[Path], None]) -> Path:
        target, partial = self.folder / name, self.folder / f".{name}.partial"
        if _use(target):
            return target
        asked = time.time_ns()
        with _locked(self._lock_of(name)) as lock:
            if _use(target):
                return target
            lock.seek(0)
            if os.fstat(lock.fileno()).st_mtime_ns > asked and (problem := lock.read()):
                raise FetchError(problem.decode())  # whoever was waited for has just tried in vain
            lock.truncate(0)
            try:
                make(partial)
                partial.replace(target)
            except FetchError as error:
                lock.write(str(error).encode())
                raise
            finally:
                partial.unlink(missing_ok=True)
            sync(self.folder)
        self._evict(target)
        return target

    def _fetch(self, url: str, entry: ShardEntry | None, target: Path) -> None:
        wanted = (entry.bytes, entry.sha256) if entry else (None, None)
        fetch(url, target, self.timeout, *wanted)
        if is_packed(target):
            packed = target.replace(target.with_suffix(".packed"))
            try:
                _unpacked(packed, None, target, shown(url))
            finally:
                packed.unlink()
        elif not begins_as_tar(target):
            raise FetchError(f"{shown(url)} is not a tar archive (a web page?); check the URL")

    def _lock_of(self, name: str) -> Path:
        return self.folder / _LOCKS / name

    def _evict(self, keep: Path) -> None:
        """Removes what was used longest ago, and what killed processes left."""
        with _locked(self._lock_of(".evict")):
            paths = [path for path in self.folder.iterdir() if path.is_file()]
            states = {path: path.stat() for path in paths if path.suffix == ".tar"}
            excess = sum(state.st_size for state in states.values()) - self.max_bytes
            for path, state in sorted(states.items(), key=lambda item: item[1].st_mtime_ns):
                if excess > 0 and path != keep and _remove_unused(path, path):
                    excess -= state.st_size
            for path in paths:
                if path.suffix in (".partial", ".packed"):
                    _remove_unused(path, self._lock_of(path.stem.removeprefix(".")))


def manifest_beside(urls: Sequence[str], cache: ShardCache) -> dict[str, ShardEntry]:
    """What the manifests beside shards say of them, read anew each time.

    Args:
        urls: as `expand_shards` gives them.
        cache: says how long a server may be silent.

    Returns:
        URL -> its entry, for each shard that a `manifest.json` in its folder lists.

    Raises:
        ManifestError: a manifest is damaged.
        FetchError: one could not be fetched; that there is none, or none is allowed, is fine.
        ModuleNotFoundError: the client of a scheme is not installed.
    """
    folders: dict[str, dict[str, str]] = {}  # folder -> name -> URL
    for url in urls:
        folder, _, name = shown(url).rpartition("/") if is_remote(url) else _split(url)
        folders.setdefault(folder, {})[unquote(name) if is_remote(url) else name] = url
    found: dict[str, ShardEntry] = {}
    for folder, names in folders.items():
        entries = _remote(folder, cache) if is_remote(folder) else _beside(Path(folder))
        found.update({names[e.name]: e for e in entries if e.name in names})
    return found


def _beside(folder: Path) -> list[ShardEntry]:
    return read_manifest(folder) if (folder / NAME).is_file() else []


def _remote(folder: str, cache: ShardCache) -> list[ShardEntry]:
    url = f"{folder}/{NAME}"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, NAME)
        try:
            fetch(url, path, cache.timeout, limit=MAX_BYTES)
        except MissingError:
            return []
        return parse_manifest(path.read_bytes(), url)


def _split(path: str) -> tuple[str, str, str]:
    folder, name = os.path.split(path)
    return folder, "", name


def _unpacked(path: Path, entry: ShardEntry | None, target: Path, name: str) -> None:
    reason = against(path, entry.bytes, entry.sha256) if entry else ""
    try:
        if not reason:
            unpack(path, target)
            return
    except UnpackError as error:
        reason = str(error)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(target.parent) from error
        raise
    raise FetchError(f"{name} could not be unpacked ({reason}); build or fetch it again")


def _name_of(identity: str, state: str) -> str:
    """A file name that no other shard has, with the shard's own in it for people."""
    digest = hashlib.sha256(f"{identity}\0{state}".encode("utf-8", "surrogatepass")).hexdigest()
    base = re.sub(r"(\.tar|\.gz|\.tgz)+$", "", shown(identity).rpartition("/")[2])
    return f"{digest[:32]}-{re.sub(r'[^A-Za-z0-9_-]+', '_', base)[:64]}.tar"


def _use(path: Path) -> bool:
    """Marks a file as used now; False if there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _remove_unused(path: Path, lock: Path) -> bool:
    """Removes a file unless somebody holds its lock."""
    with suppress(FileNotFoundError, BlockingIOError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False
