"""Turns a `.tar.gz` into a plain tar, within a stated size."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from pathlib import Path

MAX_UNPACKED = 64 * 2**30
"""Largest size, in bytes, that a file is unpacked to."""
MAX_RATIO = 100
"""A file may unpack to so many times its size, and to `SMALL` bytes in any case."""
SMALL = 16 * 2**20
_MAGIC = b"\x1f\x8b"
_BLOCK = 2**20


class UnpackError(ValueError):
    """The file is damaged or too large once unpacked; the message is a clause."""


def is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever its name.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def begins_as_tar(path: Path) -> bool:
    """Whether a file begins with a tar's header or, as an empty tar does, with zeros."""
    with path.open("rb") as file:
        block = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True
    except tarfile.HeaderError:
        return False
    return True


def unpack(path: Path, target: Path) -> None:
    """Unpacks a gzip file and forces it to the disk; the rest of `target` is the caller's to clear.

    Raises:
        UnpackError: it is damaged, or longer than `MAX_UNPACKED` or `MAX_RATIO` allow.
        OSError: a file cannot be read or written.
    """
    limit = min(MAX_UNPACKED, max(SMALL, MAX_RATIO * path.stat().st_size))
    num_bytes = 0
    with gzip.open(path) as source, target.open("wb") as file:
        while block := _next_block(source):
            num_bytes += len(block)
            if num_bytes > limit:
                raise UnpackError(f"it unpacks to more than {limit} bytes")
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _next_block(source: gzip.GzipFile) -> bytes:
    try:
        return source.read(_BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnpackError(f"it is damaged ({error})") from error
