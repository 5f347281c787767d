"""Makers of hostile archives, for the tests."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np


def header(name: bytes, size: int = 0, kind: bytes = b"0", number: bytes | None = None) -> bytes:
    """One header of a tar; `number` is written for the size as it is."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:124] = b"0000644\0", b"0000000\0" * 2
    block[124:136] = number or b"%011o\0" % size
    block[136:148], block[156:157] = b"00000000000\0", kind
    block[257:265] = b"ustar\x0000"
    return with_checksum(block)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    """A header, and its data in whole blocks."""
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


END = bytes(1024)
GOOD = member(b"good.txt", b"a good text")


def records(**values: str) -> bytes:
    """The content of a PAX header; `__` in a name stands for a dot."""
    lines = []
    for key, value in values.items():
        text = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(text) + 1
        while length != len(text) + len(str(length)):
            length = len(text) + len(str(length))
        lines.append(str(length).encode() + text)
    return b"".join(lines)


def gnu_sparse(size: int = 2**31 - 1) -> bytes:
    """2 kB of archive that stand for so many bytes of holes."""
    block = bytearray(header(b"bomb.txt", 512, b"S"))
    block[386:410] = b"%011o\0%011o\0" % (0, 1)
    block[482] = 1
    block[483:495] = b"%011o\0" % size
    return with_checksum(block) + bytes(512) + bytes(512)


def pax_sparse() -> bytes:
    values = {"GNU__sparse__major": "0", "GNU__sparse__minor": "1"}
    body = records(**values, GNU__sparse__size=str(2**31), GNU__sparse__map="0,1")
    return member(b"x", body, b"x") + member(b"bomb.txt", b"x")


def pax_sparse_without_end() -> bytes:
    """tarfile looks for the end of its map for ever."""
    body = records(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name="bomb.txt")
    return member(b"x", body, b"x") + member(b"y", b"99999999\n" + b"1" * 500)


def deflated(path: Path, parts) -> Path:
    """A gzip file of the parts; equal parts are packed once."""
    packed: dict[bytes, bytes] = {}
    with path.open("wb") as file:
        for part in parts:
            if part not in packed:
                packed[part] = gzip.compress(part)
            file.write(packed[part])
    return path


def many_members(count: int) -> bytes:
    """Empty members a.000000, a.000001, ... of one key."""
    first = header(b"a.000000")
    least = int(first[148:154], 8)
    blocks = []
    for number in range(count):
        digits = b"%06d" % number
        check = b"%06o" % (least + sum(digits) - 6 * ord("0"))
        blocks.append(first[:2] + digits + first[8:148] + check + first[154:])
    return b"".join(blocks)


def picture(seed: int, kind: str = "JPEG", size: int = 16) -> bytes:
    """A small picture; each seed gives another."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def recording(samples: np.ndarray, rate: int = 8000, kind: str = "WAV", subtype=None) -> bytes:
    """A recording of samples (n,) or (n, channels)."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def write_tar(path: Path, members) -> Path:
    """A real shard of (member name, bytes), in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
