"""Small files that want much memory or time: each is refused within 2 s and 256 MB.

All are read in forks of one process that has imported everything, so that what is measured is the
bomb alone.
"""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.datamodules.hostile import (
    END,
    GOOD,
    deflated,
    gnu_sparse,
    header,
    many_members,
    member,
    pax_sparse,
    pax_sparse_without_end,
    picture,
    recording,
)

SECONDS, MEGABYTES = 2.0, 256
ZEROS = bytes(2**20)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    packer, rows = zlib.compressobj(), io.BytesIO()
    for _ in range(height):
        rows.write(packer.compress(bytes(width // 8 + 1)))
    rows.write(packer.flush())
    data = chunk(b"IDAT", rows.getvalue())
    return b"\x89PNG\r\n\x1a\n" + head + extra + data + chunk(b"IEND", b"")


def silence(minutes: float, rate: int = 48_000) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for _ in range(int(minutes * 60)):
            file.write(np.zeros(rate))
    return buffer.getvalue()


def huge_jpeg() -> bytes:
    data = bytearray(picture(1))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_webp() -> bytes:
    return b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\0\xff\x3f\0" + bytes(64)


def huge_video() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        pixels = np.zeros((64, 64, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(buffer.getvalue())
    at = data.index(b"mp4v", data.index(b"stsd")) + 28
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_series() -> bytes:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 4096), }"
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + bytes(64)


def flac_claiming(num_samples: int) -> bytes:
    data = bytearray(recording(np.zeros(8000), kind="FLAC"))
    data[21] = data[21] & 0xF0 | num_samples >> 32
    data[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def nested_names(count: int) -> bytes:
    return member(b"L", b"a", b"L") * count + member(b"a.txt")


ARCHIVES = {  # name -> (the archive without its end, the code that is told)
    "GNU sparse file of 2 GiB": (gnu_sparse, "not-a-file"),
    "PAX sparse file of 2 GiB": (pax_sparse, "not-a-file"),
    "PAX sparse map without end": (pax_sparse_without_end, "not-a-file"),
    "names of 100 kB": (
        lambda: b"".join(
            member(b"L", n * 50_000 + b"b.txt", b"L") + member(b"x") for n in (b"a/", b"a.")
        ),
        "long-name",
    ),
    "PAX header of 50 MB": (lambda: member(b"x", bytes(50 * 2**20), b"x"), "damaged-shard"),
    "200,000 members of one key": (lambda: many_members(200_000), "too-many-members"),
    "300 members of one key": (lambda: many_members(300), "too-many-members"),
    "20,000 nested names": (lambda: nested_names(20_000), "damaged-shard"),
    "a size of 8 GiB": (lambda: header(b"a.txt", 2**33 - 1), "damaged-shard"),
    "a size of 2^50": (
        lambda: header(b"a.txt", number=b"\x80" + (2**50).to_bytes(11, "big")),
        "damaged-shard",
    ),
    "a negative size": (lambda: header(b"a.txt", number=b"\xff" * 12), "damaged-shard"),
    "a text packed again": (
        lambda: member(b"a.txt.gz", gzip.compress(ZEROS * 200)),
        "no-member",
    ),
}
PICTURE_OF_169_MP = "1-bit PNG of 13,000 x 13,000"
FILES = {  # name -> (extension, the file, the code that is told)
    PICTURE_OF_169_MP: ("png", lambda: png(13_000, 13_000), "too-many-pixels"),
    "PNG with a text of 200 MB": (
        "png",
        lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(ZEROS * 200))),
        "damaged",
    ),
    "JPEG of 4 gigapixels": ("jpg", huge_jpeg, "too-many-pixels"),
    "WEBP of a gigapixel": ("webp", huge_webp, "too-many-pixels"),
    "30 minutes of silence": ("flac", lambda: silence(30), "too-long"),
    "FLAC that claims 2^35 samples": ("flac", lambda: flac_claiming(2**35), "too-long"),
    "FLAC that claims 550 s": ("flac", lambda: flac_claiming(8000 * 550), "damaged"),
    "video of 4 gigapixels": ("mp4", huge_video, ""),
    "a series of 16 GB": ("npy", huge_series, "too-large"),
}
PACKED = {
    "gzip of 1 GB of zeros": (lambda: [ZEROS] * 1000, "damaged-shard"),
    "packed members of 1 GB": (
        lambda: [
            part for i in range(25) for part in (header(b"%d.jpg" % i, 40 * 2**20), *[ZEROS] * 40)
        ],
        "expands-too-far",
    ),
}
NAMES = [*ARCHIVES, *FILES, *PACKED]

READ = """
import json, os, resource, sys, time, warnings
import av, numpy, soundfile, PIL.Image, torch, torchvision.io
from datamodules import decode_samples, read_shards
import datamodules.decode
from datamodules import decode

def read(path):
    rejected = []
    keys = [s.key for s in decode_samples(read_shards([path], rejected=rejected), rejected)]
    return {"delivered": keys, "codes": [item.code for item in rejected]}

def without_limits(path):
    decode.DECODERS = {
        "image": lambda data: decode.decode_image(data, max_pixels=10**12),
        "audio": lambda data: decode.decode_audio(data, max_seconds=1e9, max_bytes=10**12),
        "text": decode.decode_text,
    }
    import datamodules.decoding
    datamodules.decoding.DECODERS = decode.DECODERS
    return read(path)

def with_tarfile(path):
    import tarfile
    with tarfile.open(path) as archive:
        return {"read": [len(archive.extractfile(info).read()) for info in archive]}

warnings.simplefilter("ignore")
torch.set_num_threads(1)
read(sys.argv[1])
for line in sys.stdin:
    path, how = json.loads(line)
    pipe, end = os.pipe()
    if not (child := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        try:
            found = {"read": read, "free": without_limits, "tarfile": with_tarfile}[how](path)
        except Exception as error:
            found = {"escaped": repr(error)}
        found["seconds"] = time.perf_counter() - start
        found["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(end, json.dumps(found).encode())
        os._exit(0)
    os.close(end)
    deadline = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if time.monotonic() >= deadline:
        os.kill(child, 9)
        os.waitpid(child, 0)
    print(os.read(pipe, 65536).decode() or json.dumps({"escaped": "died or hung"}), flush=True)
    os.close(pipe)
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Reads a shard in a fork: what is delivered and told, seconds, and megabytes above before."""
    good = tmp_path_factory.mktemp("good") / "good.tar"
    sound, video = recording(np.zeros(8000)), b"none"
    good.write_bytes(
        GOOD
        + member(b"a.jpg", picture(1))
        + member(b"b.wav", sound)
        + member(b"c.mp4", video)
        + END
    )
    command = [sys.executable, "-c", READ, str(good)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdin and process.stdout

        def read(path: Path, how: str = "read") -> dict:
            print(json.dumps([str(path), how]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield read
        process.stdin.close()


def bomb(name: str, folder: Path) -> tuple[Path, str]:
    """The shard with the bomb after a good sample, and the code that has to be told."""
    path = folder / "bomb.tar"
    if name in PACKED:
        parts, code = PACKED[name]
        return deflated(
            folder / "bomb.tar.gz", [*parts(), *([END] if code[0] == "e" else [])]
        ), code
    if name in ARCHIVES:
        make, code = ARCHIVES[name]
        path.write_bytes(GOOD + make() + END)
        return path, code
    extension, make, code = FILES[name]
    path.write_bytes(GOOD + member(f"bomb.{extension}".encode(), make()) + END)
    return path, code


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_is_refused_quickly_and_in_little_memory(name, tmp_path, reader):
    path, code = bomb(name, tmp_path)
    found = reader(path)
    print(
        f"{name}: {path.stat().st_size / 1000:.0f} kB, {found['seconds']:.2f} s, "
        f"{found['megabytes']:.0f} MB, {found.get('codes')}"
    )
    assert "escaped" not in found
    assert found["seconds"] <= SECONDS and found["megabytes"] <= MEGABYTES
    whole = code in ("damaged-shard", "expands-too-far") or name.startswith("200,000")
    assert found["delivered"][:1] == ([] if whole else ["good"])
    if code:
        assert code in found["codes"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("30 minutes of silence", "free"),
        (PICTURE_OF_169_MP, "free"),
        ("half a gigabyte of holes", "tarfile"),
    ],
)
def test_without_its_guard_a_bomb_goes_off(name, how, tmp_path, reader):
    """The negative control: limits off, or Python's tarfile."""
    if how == "tarfile":
        path = tmp_path / "bomb.tar"
        path.write_bytes(gnu_sparse(2**29) + END)
    else:
        path, _ = bomb(name, tmp_path)
    found = reader(path, how)
    print(name, found)
    assert found["megabytes"] > MEGABYTES


def test_tarfile_follows_a_map_without_end(tmp_path, reader):
    path = tmp_path / "bomb.tar"
    path.write_bytes(pax_sparse_without_end())
    assert "escaped" in reader(path, "tarfile")
