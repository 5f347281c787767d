"""Bad samples among good ones, damaged shards, and shards whose keys restart."""

import contextlib
import io
import itertools
import json
import pickle
import struct
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from datamodules.decoding import decode_samples
from datamodules.manifest import check_pack, describe_shard, write_manifest
from datamodules.reasons import Reason
from datamodules.samples import Rejected
from datamodules.shards import read_shards
from tests.datamodules.hostile import picture, recording, write_tar

Members = list[tuple[str, bytes]]


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = zlib.compress(bytes((width // 8 + 1) * min(height, 13_000)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def nan_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def with_bad_idat(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 20
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def with_rate(data: bytes, rate: int) -> bytes:
    return data[:24] + struct.pack("<I", rate) + data[28:]


class Kind(NamedTuple):
    """A way in which a sample is bad: its members, what is told of it, and members far from it."""

    extension: str
    content: bytes
    member: str
    code: Reason


NOISE = np.random.default_rng(1).normal(size=800) * 0.1
SOUND = recording(NOISE)
EMPTY = np.zeros(0)
KINDS = {
    "truncated picture": Kind("jpg", picture(1)[:-120], "image", Reason.DAMAGED),
    "empty picture": Kind("jpg", b"", "image", Reason.EMPTY),
    "garbage": Kind("jpg", bytes(range(128, 256)) * 9, "image", Reason.WRONG_FORMAT),
    "bad IDAT": Kind("png", with_bad_idat(picture(1, "PNG")), "image", Reason.DAMAGED),
    "PNG bomb": Kind("png", png_claiming(13_000, 13_000), "image", Reason.TOO_MANY_PIXELS),
    "one pixel": Kind("png", picture(1, "PNG", 1), "image", Reason.TOO_FEW_PIXELS),
    "too large": Kind("png", png_claiming(60_000, 60_000), "image", Reason.TOO_MANY_PIXELS),
    "PostScript": Kind("jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image", Reason.WRONG_FORMAT),
    "NaN picture": Kind("jpg", nan_tiff(), "image", Reason.WRONG_FORMAT),
    "Latin-1": Kind("txt", "café".encode("latin-1"), "txt", Reason.NOT_UTF8),
    "empty text": Kind("txt", b" \n", "txt", Reason.EMPTY),
    "long text": Kind("txt", b"a " * 2**19, "txt", Reason.TOO_LARGE),
    "NUL": Kind("txt", b"a\0b", "txt", Reason.NOT_UTF8),
    "bad JSON": Kind("json", b'{"a": 1', "json", Reason.NOT_JSON),
    "deep JSON": Kind("json", b"[" * 100_000 + b"]" * 100_000, "json", Reason.NOT_JSON),
    "NaN JSON": Kind("json", b'{"a": NaN}', "json", Reason.NOT_JSON),
    "no sound": Kind("wav", recording(EMPTY), "audio", Reason.EMPTY),
    "one sound": Kind("wav", recording(NOISE[:1]), "audio", Reason.TOO_SHORT),
    "NaN sound": Kind(
        "wav", recording(NOISE * np.nan, subtype="FLOAT"), "audio", Reason.NOT_FINITE
    ),
    "infinite": Kind("wav", recording(NOISE + np.inf, subtype="FLOAT"), "audio", Reason.NOT_FINITE),
    "truncated sound": Kind("wav", SOUND[:-700], "audio", Reason.DAMAGED),
    "0 Hz": Kind("wav", with_rate(SOUND, 0), "audio", Reason.DAMAGED),
    "2^31 Hz": Kind("wav", with_rate(SOUND, 2**31 - 1), "audio", Reason.ABSURD_RATE),
    "member twice": Kind("jpg", picture(1), "jpg", Reason.DUPLICATE_MEMBER),
    "key twice": Kind("jpg", picture(1), "", Reason.DUPLICATE_KEY),
    "dotted key": Kind("5.jpg", picture(1), "5.jpg", Reason.DOTTED_KEY),
    "no extension": Kind("", b"read me", "", Reason.NO_KEY),
    "pickle": Kind("pkl", pickle.dumps([1]), "", Reason.NO_MEMBER),
}


def good(key: str, number: int) -> Members:
    """A sample of a picture and a text, every third with metadata, every fifth with a sound."""
    members = [(f"{key}.jpg", picture(number % 50)), (f"{key}.txt", f"text of {key}".encode())]
    if number % 3 == 0:
        members.append((f"{key}.json", json.dumps({"captions": [f"other of {key}"]}).encode()))
    if number % 5 == 0:
        members.append((f"{key}.wav", SOUND))
    return members


def bad(key: str, kind: Kind) -> tuple[Members, Members]:
    """Its members, and those that lie at the end of the shard."""
    member = f"{key}.{kind.extension}".rstrip("."), kind.content
    if kind.code is Reason.DUPLICATE_MEMBER:
        return [member, member, (f"{key}.txt", b"text")], []
    if kind.code is Reason.DUPLICATE_KEY:
        return [member], [(f"{key}.txt", b"text")]
    alone = kind.code in (Reason.NO_KEY, Reason.NO_MEMBER, Reason.DOTTED_KEY)
    others = {"jpg": picture(1), "txt": b"text"}
    others.pop(kind.extension, None)
    if kind.extension == "png":
        others.pop("jpg")
    return [member, *([] if alone else [(f"{key}.{e}", c) for e, c in others.items()])], []


class Planted(NamedTuple):
    """Shards, the keys of their good samples, and what has to be told of the bad ones."""

    shards: list[Path]
    good: Counter[tuple[str, str]]
    bad: Counter[tuple[str, str, str, Reason]]


def plant(folder: Path, num_shards: int, num_good: int, num_bad: int) -> Planted:
    """Spreads `num_good` good samples and `num_bad` of each kind over the shards."""
    random = np.random.default_rng(0)
    names = [*(["good"] * num_good), *(list(KINDS) * num_bad)]
    random.shuffle(names)
    planted = Planted([], Counter(), Counter())
    for number, part in enumerate(np.array_split(np.array(names), num_shards)):
        path, members, late = folder / f"{number}.tar", [], []
        for index, name in enumerate(part):
            if name == "good":
                members += good(f"k{index}", index)
                planted.good[str(path), f"k{index}"] += 1
                continue
            kind = KINDS[str(name)]
            here, there = bad(f"k{index}", kind)
            members, late = members + here, late + there
            planted.bad[str(path), f"k{index}", kind.member, kind.code] += 1
        planted.shards.append(write_tar(path, [*members, ("last.txt", b"last"), *late]))
        planted.good[str(path), "last"] += 1
    return planted


def check(planted: Planted) -> None:
    rejected: list[Rejected] = []
    delivered = Counter()
    for sample in decode_samples(read_shards(planted.shards, rejected=rejected), rejected):
        delivered[sample.shard, sample.key] += 1
        assert sample.key == "last" or sample.caption == f"text of {sample.key}"
        assert sample.key == "last" or sample.inputs["image"].shape == (3, 16, 16)
    assert delivered == planted.good
    assert Counter(item[:4] for item in rejected) == planted.bad
    assert all(item.reason and "\n" not in item.reason for item in rejected)


def test_there_are_28_kinds():
    assert len(KINDS) == 28


def test_each_bad_sample_is_told_once(tmp_path):
    planted = plant(tmp_path, num_shards=3, num_good=97, num_bad=2)
    assert (planted.good.total(), planted.bad.total()) == (100, 56)
    check(planted)


@pytest.mark.slow
def test_560_bad_samples_among_5000_good(tmp_path):
    planted = plant(tmp_path, num_shards=10, num_good=4990, num_bad=20)
    assert (planted.good.total(), planted.bad.total()) == (5000, 560)
    check(planted)


def test_stock_webdataset_tells_of_few(tmp_path):
    """The negative control: what is bad by its place in the shard is lost or delivered."""
    webdataset = pytest.importorskip("webdataset")
    planted = plant(tmp_path, num_shards=3, num_good=97, num_bad=2)
    told = []
    urls = [str(path) for path in planted.shards]
    dataset = webdataset.WebDataset(
        urls, shardshuffle=False, handler=lambda error: told.append(error) or True
    )
    delivered = Counter((s["__url__"], s["__key__"]) for s in dataset)
    assert len(told) < planted.bad.total() and delivered != planted.good


def pairs(path: Path, name: str, num_samples: int = 12) -> Path:
    members = [
        (f"k{i}.{ext}", f"{name}{i} {'x' * (37 * i % 900)}".encode())
        for i in range(num_samples)
        for ext in ("jpg", "txt")
    ]
    return write_tar(path, members)


def crossed(samples) -> int:
    """Samples whose picture and text are of different samples."""
    return sum(
        image.split()[0].decode() != text.split()[0]
        for image, text in samples
        if image is not None and text is not None
    )


def test_no_picture_gets_the_text_of_another_shard(tmp_path):
    first, second = pairs(tmp_path / "a.tar", "A"), pairs(tmp_path / "b.tar", "B")
    data = first.read_bytes()
    cut = tmp_path / "cut.tar"
    num_whole = 0
    end = len(data.rstrip(b"\0")) + 512
    for number in np.random.default_rng(0).integers(0, end, 1000):
        cut.write_bytes(data[:number])
        rejected: list[Rejected] = []
        samples = list(read_shards([cut, second], rejected=rejected))
        assert crossed((s.inputs["image"], s.inputs["text"]) for s in samples) == 0
        assert [s.key for s in samples if s.shard == str(second)] == [f"k{i}" for i in range(12)]
        assert [(r.shard, r.code) for r in rejected] == [(str(cut), Reason.DAMAGED_SHARD)]
        num_whole += len(samples) == 12
    assert num_whole == 1000


def test_stock_webdataset_crosses_shards(tmp_path):
    """The negative control of the test above."""
    webdataset = pytest.importorskip("webdataset")
    first, second = pairs(tmp_path / "a.tar", "A"), pairs(tmp_path / "b.tar", "B")
    data, cut, num_crossed = first.read_bytes(), tmp_path / "cut.tar", 0
    # Cut just after the picture of the first sample: the next member read is of the other shard.
    cut.write_bytes(data[:1024])
    dataset = webdataset.WebDataset(
        [str(cut), str(second)], shardshuffle=False, handler=webdataset.ignore_and_continue
    )
    samples = [(s.get("jpg"), s["txt"].decode() if "txt" in s else None) for s in dataset]
    num_crossed += crossed(samples) + sum(None in pair for pair in samples)
    assert num_crossed > 0


def headers_of(data: bytes) -> list[int]:
    starts, at = [], 0
    while any(data[at : at + 512]):
        starts.append(at)
        at += 512 + -(-int(data[at + 124 : at + 135], 8) // 512) * 512
    return starts


MUTATIONS = ("header", "block", "data", "cut")


def mutated(data: bytes, how: str, random: np.random.Generator) -> bytes:
    starts = headers_of(data)
    end = starts[-1] + 512
    changed = bytearray(data)
    if how == "header":
        at = int(random.choice(starts)) + int(random.integers(512))
        changed[at] ^= 1 << int(random.integers(8))
    elif how == "block":
        at = 512 * int(random.integers(end // 512))
        changed[at : at + 512] = bytes(512)
    elif how == "data":
        start = int(random.choice([s for s in starts if data[s + 512]]))
        size = int(data[start + 124 : start + 135], 8)
        at = start + 512 + int(random.integers(size))
        changed[at] ^= 1 << int(random.integers(8))
    else:
        return data[: int(random.integers(len(data)))]
    return bytes(changed)


def caught(folder: Path, num_each: int) -> dict[str, Counter[str]]:
    """Of each mutation, how many are caught by the walk of headers and by the check mode."""
    source = pairs(folder / "a.tar", "A", 30)
    data = source.read_bytes()
    entry, _ = describe_shard(source)
    write_manifest([entry], folder / "manifest.json")
    whole = [s.inputs for s in read_shards([source])]
    counts = {"walk": Counter(), "check": Counter(), "same": Counter()}
    random = np.random.default_rng(0)
    for how, _ in itertools.product(MUTATIONS, range(num_each)):
        source.write_bytes(mutated(data, how, random))
        rejected: list[Rejected] = []
        samples = list(read_shards([source], rejected=rejected))
        counts["walk"][how] += bool(rejected)
        counts["same"][how] += not rejected and [s.inputs for s in samples] == whole
        counts["check"][how] += bool(check_pack(folder)[1])
        if rejected and rejected[0].key == "":
            assert not samples
    return counts


@pytest.mark.parametrize("num_each", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_shards_are_caught(tmp_path, num_each):
    counts = caught(tmp_path, num_each)
    print({name: dict(count) for name, count in counts.items()})
    assert counts["check"] == dict.fromkeys(MUTATIONS, num_each)
    # A bit of the padding of a checksum, or zeros after the end mark, change nothing that is read.
    for how in ("header", "cut"):
        assert counts["walk"][how] + counts["same"][how] == num_each
        assert counts["walk"][how] >= 0.98 * num_each or how == "cut"


def test_stock_tarfile_misses_damaged_headers(tmp_path):
    """The negative control: half of the samples vanish without an error."""
    webdataset = pytest.importorskip("webdataset")
    source = pairs(tmp_path / "a.tar", "A", 30)
    data, random, num_silent = source.read_bytes(), np.random.default_rng(0), 0
    for _ in range(50):
        source.write_bytes(mutated(data, "header", random))
        with contextlib.suppress(ValueError, tarfile.ReadError):
            num_silent += len(list(webdataset.WebDataset(str(source), shardshuffle=False))) < 30
    assert num_silent > 25


def test_the_check_needs_the_digest(tmp_path, monkeypatch):
    """The negative control of the check mode: without SHA-256 a bit of the data passes."""
    source = pairs(tmp_path / "a.tar", "A")
    entry, _ = describe_shard(source)
    write_manifest([entry], tmp_path / "manifest.json")
    source.write_bytes(mutated(source.read_bytes(), "data", np.random.default_rng(0)))
    assert check_pack(tmp_path)[1]
    fooled = replace(describe_shard(source)[0], sha256=entry.sha256)
    monkeypatch.setattr("datamodules.manifest.describe_shard", lambda path: (fooled, []))
    assert not check_pack(tmp_path)[1]
