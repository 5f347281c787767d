"""Walks through the headers of a tar and believes none of them.

Python's tarfile, and so WebDataset, ends an archive without an error at a damaged header: about
half of the samples vanish silently. It also reads headers of any length whole, follows them
without end, and makes gigabytes of holes from a sparse file. This walk reads 512 bytes at a time.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from datamodules.reasons import Reason
from datamodules.unpack import MAX_RATIO, MAX_UNPACKED, SMALL

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION = 2**20  # bytes of an extended header
_MAX_EXTENSIONS = 8  # extended headers before one member
_MAX_TAIL = 2**20  # zeros allowed after the end mark: writers pad to whole records
# Kinds of headers: tarfile documents them; POSIX pax, and GNU's own.
_EXTENDED = (b"L", b"K", b"x", b"X", b"g")
_FILES = (b"0", b"\0", b"7")
_BODILESS = (b"1", b"2", b"3", b"4", b"6")
_SPARSE = (b"GNU.sparse", b"SCHILY.realsize")


class DamagedShard(ValueError):
    """The archive is not whole, or absurd; the message says where and what to do.

    Attributes:
        reason: the code.
    """

    def __init__(self, message: str, reason: Reason = Reason.DAMAGED_SHARD) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class Header(NamedTuple):
    """A member as its header says.

    Attributes:
        name: its name.
        is_file: it holds bytes: it is no link, device or sparse file.
        is_folder: it is a folder.
        offset: where its bytes begin in the (unpacked) archive.
        size: how many there are.
    """

    name: str
    is_file: bool
    is_folder: bool
    offset: int
    size: int


@contextmanager
def open_archive(path: Path) -> Iterator[BinaryIO]:
    """Opens a `.tar`, or a `.tar.gz` as if it were unpacked, whatever its name.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file


def walk_headers(stream: BinaryIO) -> Iterator[Header]:
    """Yields the header of every member of an archive (see `open_archive`), in order.

    Raises:
        DamagedShard: a header is damaged or absurd, the archive does not end with its end mark,
            or a packed one is larger than `datamodules.unpack` allows.
    """
    packed = cast(object, stream)
    limit = _limit(packed) if isinstance(packed, gzip.GzipFile) else None
    offset = 0
    try:
        while True:
            header, end = _next(stream, offset)
            if header is None:
                break
            if limit is not None and end > limit:  # before the bytes are unpacked
                raise DamagedShard(
                    f"the archive unpacks to more than {limit} bytes", Reason.EXPANDS_TOO_FAR
                )
            yield header
            offset = end
        stream.seek(end)
        tail = stream.read(_MAX_TAIL + 1)
    except DamagedShard:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DamagedShard(
            f"the archive is damaged after byte {offset} ({error}); build or fetch it again"
        ) from error
    if len(tail) < 2 * _BLOCK or len(tail) > _MAX_TAIL or tail.strip(b"\0"):
        raise _damaged("cut off, or more follows its end mark", end)


def _limit(packed: gzip.GzipFile) -> int:
    return min(MAX_UNPACKED, max(SMALL, MAX_RATIO * os.fstat(packed.fileno()).st_size))


def _damaged(how: str, offset: int) -> DamagedShard:
    return DamagedShard(f"the archive is damaged at byte {offset} ({how}); build or fetch it again")


@dataclass(slots=True)
class _Extension:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    is_sparse: bool = False

    def add(self, kind: bytes, data: bytes, offset: int) -> None:
        if kind == b"L":
            self.name = data.rstrip(b"\0")
        for key, value in _records(data, offset) if kind in (b"x", b"X") else ():
            self.is_sparse |= key.startswith(_SPARSE)
            if key == b"GNU.sparse.name" or (key == b"path" and not self.is_sparse):
                self.name = value
            elif key == b"size":
                self.size = int(value)


def _next(stream: BinaryIO, offset: int) -> tuple[Header | None, int]:
    """The next member and where the one after it begins; None, and where the end mark is."""
    extension = _Extension()
    for _ in range(_MAX_EXTENSIONS + 1):
        block = _read(stream, offset, _BLOCK)
        if not any(block):
            return None, offset
        if not _is_sound(block):
            raise _damaged("its header has another checksum", offset)
        kind, size = block[156:157], _number(block[124:136], offset)
        body = offset + _BLOCK
        if kind not in _EXTENDED:
            return _member(stream, block, body, extension, size)
        if size > _MAX_EXTENSION:
            raise DamagedShard(
                f"the archive has an extended header of {size} bytes at byte {offset}, more than "
                f"the limit of {_MAX_EXTENSION}"
            )
        extension.add(kind, _read(stream, body, size), offset)
        offset = body + _whole(size)
    raise _damaged("one extended header follows another", offset)


def _member(
    stream: BinaryIO, block: bytes, body: int, extension: _Extension, claimed: int
) -> tuple[Header, int]:
    kind, is_sparse = block[156:157], extension.is_sparse
    if kind == b"S":
        is_sparse, body = True, _after_map(stream, block, body)
    size = claimed if extension.size is None else extension.size
    if size < 0:
        raise _damaged("a size is negative", body)
    name = _name(block) if extension.name is None else extension.name
    is_folder = kind == b"5" or (kind == b"\0" and name.endswith(b"/"))
    # Links, devices and folders have no body, whatever size they claim.
    end = body if is_folder or kind in _BODILESS else body + _whole(size)
    is_file = kind in _FILES and not is_folder and not is_sparse
    return Header(name.decode("utf-8", "surrogateescape"), is_file, is_folder, body, size), end


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    data = stream.read(size)
    if len(data) < size:
        raise _damaged("cut off", offset)
    return data


def _whole(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _is_sound(block: bytes) -> bool:
    """Whether the checksum fits: of all bytes, with spaces in its own place."""
    try:
        wanted = int(block[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    return sum(block) - sum(block[148:156]) + 8 * 32 == wanted


def _number(digits: bytes, offset: int) -> int:
    """Octal digits; or, for what has no room in them, base 256 after a first byte of 80 or FF."""
    if digits[0] in (0x80, 0xFF):
        return int.from_bytes(digits[1:], "big") - (digits[0] == 0xFF) * 256 ** (len(digits) - 1)
    try:
        return int(digits.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _damaged("a size is not a number", offset) from None


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    is_posix = block[257:263] == b"ustar\0"
    return prefix + b"/" + name if prefix and is_posix else name


def _records(data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a POSIX extended header: lines of "length key=value"."""
    start = 0
    while start < len(data) and data[start]:
        digits = data[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if length <= len(digits) or data[start + length - 1 : start + length] != b"\n":
            raise _damaged("an extended header is garbled", offset)
        key, _, value = data[start + len(digits) + 1 : start + length - 1].partition(b"=")
        yield key, value
        start += length


def _after_map(stream: BinaryIO, block: bytes, offset: int) -> int:
    """Where the bytes of an old GNU sparse file begin: after blocks that list its holes."""
    more = block[482]
    while more:
        more = _read(stream, offset, _BLOCK)[504]
        offset += _BLOCK
    return offset
