"""Writes samples into WebDataset shards whose bytes depend on the samples alone."""

import gzip
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_KEY = re.compile(r"[\w-]+")
_EXTENSION = re.compile(r"[\w-]+(\.[\w-]+)*")
_MAX_NAME = 100  # bytes of a member's name in a ustar header


def write_shard(samples: Iterable[tuple[str, Mapping[str, bytes]]], path: Path) -> int:
    """Writes one shard, whole or not at all; it is on the disk when this returns.

    The same samples give the same bytes: ustar headers with no time, owner or host in them,
    members sorted by extension, and a gzip header without time or file name.

    Args:
        samples: Pairs of a key and the bytes of its members by extension, such as
            `("cat", {"webp": ..., "txt": ..., "speech_fr.opus": ...})`.
        path: File to write, `*.tar` or `*.tar.gz`. It appears, or is replaced, only once complete.

    Returns:
        The number of samples written.

    Raises:
        ValueError: On another suffix, a key that is repeated or holds more than letters, digits,
            `-` and `_`, an extension of another form, a name too long for ustar, or no sample.
    """
    if not path.name.endswith((".tar", ".tar.gz")):
        raise ValueError(f"Got a shard named {path.name!r}; name it *.tar or *.tar.gz.")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    with _replacing(path) as partial, _open_tar(partial, path.suffix == ".gz") as tar:
        for key, members in samples:
            _check(key, members, keys)
            keys.add(key)
            for extension, content in sorted(members.items()):
                tar.addfile(_header(f"{key}.{extension}", len(content)), io.BytesIO(content))
        if not keys:
            raise ValueError(f"Got no sample for {path.name}; give at least one.")
    return len(keys)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(key: str, members: Mapping[str, bytes], keys: set[str]) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"Got the key {key!r}; use letters, digits, - and _ only "
            "(a dot would cut the key short when the shard is read)."
        )
    if key in keys:
        raise ValueError(f"Got the key {key!r} twice; give each sample of a shard its own key.")
    if not members:
        raise ValueError(f"Got no member for the key {key!r}; give at least one.")
    for extension in members:
        if not _EXTENSION.fullmatch(extension):
            raise ValueError(f"Got the extension {extension!r} for {key!r}; give one like 'txt'.")
        if len(f"{key}.{extension}".encode()) > _MAX_NAME:
            raise ValueError(
                f"Got the name '{key}.{extension}', longer than {_MAX_NAME} bytes; shorten the key."
            )


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, owner names empty, mode 0644
    header.size = size
    return header


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path`; renames it to `path` on success, else removes it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open_tar(path: Path, compress: bool) -> Iterator[tarfile.TarFile]:
    with path.open("wb") as raw:
        if not compress:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                yield tar
            return
        with (
            gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            yield tar
