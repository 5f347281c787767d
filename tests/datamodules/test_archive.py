import io
import tarfile
import time
import tracemalloc

import pytest

from datamodules.archive import find_samples, inspect_shard, max_bytes, read_members
from datamodules.headers import DamagedShard, open_archive, walk_headers
from datamodules.reasons import Reason
from datamodules.samples import MEMBERS, Rejected
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
    records,
)

WANTED = {ext for extensions in MEMBERS.values() for ext in extensions} | {"json"}


@pytest.fixture
def inspect(tmp_path):
    """What `inspect_shard` says of an archive of these bytes."""

    def inspect(data: bytes) -> tuple[set[str], list[Rejected]]:
        path = tmp_path / "a.tar"
        path.write_bytes(data)
        return inspect_shard(path, WANTED)

    return inspect


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_finds_what_tarfile_finds(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    names = ["a.txt", "folder/b.tar.txt", "f" * 60 + "/" + "g" * 80 + ".txt", "c.txt"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["é" * 150 + ".txt", "l" * 400 + ".txt", "ü.txt"]
    with tarfile.open(path, "w:gz" if suffix == "tar.gz" else "w", format=kind) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 300 * number, 1.5 + number
            info.uname = "ö" if kind == tarfile.PAX_FORMAT else "o"
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
            for other in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(f"other{number}_{other.decode()}.txt")
                info.type, info.linkname, info.size = other, "x" * 90, 0
                archive.addfile(info)
    with tarfile.open(path) as archive:
        expected = [(i.name, i.isreg(), i.isdir(), i.offset_data, i.size) for i in archive]
    with open_archive(path) as stream:
        walked = [(h.name.rstrip("/"), *h[1:]) for h in walk_headers(stream)]
        assert walked == expected
        found = find_samples(stream, WANTED, "s")
        accepted = [sample for sample in found if sample.refused is None]
        assert [sample.members["txt"].name for sample in accepted if "txt" in sample.members] == [
            name for name in names if not name.startswith("folder")
        ]
        assert read_members(stream, accepted[-1]) == {
            "txt": bytes([len(names) - 1]) * 300 * (len(names) - 1)
        }


def test_a_size_in_base_256_is_read(inspect):
    number = b"\x80" + (3).to_bytes(11, "big")
    data = header(b"a.txt", number=number) + b"abc" + bytes(509) + END
    assert inspect(data) == ({"a.txt"}, [])


@pytest.mark.parametrize(
    ("archive", "key", "code"),
    [
        (gnu_sparse(), "bomb", Reason.NOT_A_FILE),
        (pax_sparse(), "bomb", Reason.NOT_A_FILE),
        (pax_sparse_without_end(), "bomb", Reason.NOT_A_FILE),
        (member(b"a.txt", b"", b"1"), "a", Reason.NOT_A_FILE),
        (member(b"a.txt", b"", b"2"), "a", Reason.NOT_A_FILE),
        (member(b"a.txt", b"", b"3"), "a", Reason.NOT_A_FILE),
        (member(b"a.txt", b"", b"6"), "a", Reason.NOT_A_FILE),
        (member(b"a.txt", b"x", b"V"), "a", Reason.NOT_A_FILE),
        (member(b"a.txt") + member(b"a.tmp", b"", b"2"), "a", Reason.NOT_A_FILE),
        (member(b"README", b"x"), "README", Reason.NO_KEY),
        (member(b"._a.jpg", b"x"), "._a.jpg", Reason.NO_KEY),
        (member(b"sub/.hidden", b"x"), "sub/.hidden", Reason.NO_KEY),
        (member(b"a.txt") + member(b"a.__bad__"), "a", Reason.RESERVED_NAME),
        (member(b"__key__.txt"), "__key__", Reason.RESERVED_NAME),
        (member(b"a.pkl", b"x"), "a", Reason.NO_MEMBER),
        (member(b"a_0.5.jpg") + member(b"a_0.7.jpg"), "a_0", Reason.DOTTED_KEY),
        (member(b"a.txt") + member(b"a.5.jpg"), "a", Reason.DOTTED_KEY),
        (member(b"my.photo.jpg"), "my", Reason.DOTTED_KEY),
        (member(b"../../tmp/x.txt"), "../../tmp/x", Reason.UNSAFE_KEY),
        (member(b"/etc/passwd.txt"), "/etc/passwd", Reason.UNSAFE_KEY),
        (member(b"a\x1b[2J.txt"), "a\x1b[2J", Reason.UNSAFE_KEY),
        (member(b"a\xff.txt"), "a\udcff", Reason.UNSAFE_KEY),
        (member(b"a.txt") * 2, "a", Reason.DUPLICATE_MEMBER),
        (member(b"a.jpg") + member(b"a.JPG"), "a", Reason.DUPLICATE_MEMBER),
        (member(b"a.txt") + member(b"b.txt") + member(b"a.jpg"), "a", Reason.DUPLICATE_KEY),
        (member(b"a.txt", bytes(2**16 + 1)), "a", Reason.TOO_LARGE),
        (member(b"a.json", bytes(2**20 + 1)), "a", Reason.TOO_LARGE),
        (member(b"L", b"n" * 508 + b".txt\0", b"L") + member(b"x"), "n" * 508, None),
        (member(b"L", b"n" * 509 + b".txt\0", b"L") + member(b"x"), "n" * 509, Reason.LONG_NAME),
        (
            member(b"x", records(path="p" * 509 + ".txt"), b"x") + member(b"x"),
            "p" * 509,
            Reason.LONG_NAME,
        ),
        (many_members(257), "a", Reason.TOO_MANY_MEMBERS),
    ],
)
def test_hostile_samples_are_refused_one_by_one(inspect, archive, key, code):
    names, rejected = inspect(GOOD + archive + member(b"last.txt") + END)
    assert {"good.txt", "last.txt"} <= names
    found = [(item.key, item.code) for item in rejected if item.key != "b"]
    assert found == ([(key, code)] if code else [])
    assert all("\n" not in str(item) for item in rejected)


@pytest.mark.parametrize(
    ("archive", "code", "reason"),
    [
        (member(b"x", bytes(2**20 + 1), b"x"), Reason.DAMAGED_SHARD, "extended header of 1048577"),
        (member(b"L", b"a/" * 2**20, b"L"), Reason.DAMAGED_SHARD, "extended header"),
        (member(b"L", b"a", b"L") * 9, Reason.DAMAGED_SHARD, "follows another"),
        (member(b"x", b"99 path=a\n", b"x"), Reason.DAMAGED_SHARD, ""),
        (member(b"x", b"0 path=a\n", b"x"), Reason.DAMAGED_SHARD, "garbled"),
        (member(b"x", b"x path=a\n", b"x"), Reason.DAMAGED_SHARD, "garbled"),
        (
            member(b"x", records(size="-512"), b"x") + member(b"a.txt"),
            Reason.DAMAGED_SHARD,
            "negative",
        ),
        (member(b"x", records(size="many"), b"x") + member(b"a.txt"), Reason.DAMAGED_SHARD, ""),
        (header(b"a.txt", number=b"\xff" * 12), Reason.DAMAGED_SHARD, "negative"),
        (header(b"a.txt", number=b"\x80" + b"\xff" * 11), Reason.DAMAGED_SHARD, ""),
        (header(b"a.txt", number=b"9" * 11 + b"\0"), Reason.DAMAGED_SHARD, "not a number"),
        (header(b"a.txt", 2**33 - 1), Reason.DAMAGED_SHARD, "cut off"),
        (member(b"a.txt", b"", b"S")[:482] + b"\1" + bytes(29), Reason.DAMAGED_SHARD, "checksum"),
    ],
)
def test_absurd_headers_refuse_the_shard_at_once(inspect, archive, code, reason):
    tracemalloc.start()
    start = time.perf_counter()
    names, (rejected,) = inspect(GOOD + archive + END)
    assert time.perf_counter() - start < 1 and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert names == set() and (rejected.key, rejected.code) == ("", code)
    assert reason in rejected.reason and "\n" not in rejected.reason


def test_a_packed_shard_may_not_expand_too_far(tmp_path, monkeypatch):
    parts = [GOOD, *[member(b"%d.jpg" % i, bytes(2**22)) for i in range(24)], END]
    path = deflated(tmp_path / "a.tar.gz", parts)
    names, (rejected,) = inspect_shard(path, WANTED)
    assert names == set() and rejected.code is Reason.EXPANDS_TOO_FAR
    monkeypatch.setattr("datamodules.headers.MAX_RATIO", 10_000)  # the negative control
    assert len(inspect_shard(path, WANTED)[0]) == 25


def test_a_shard_that_is_cut_off_meanwhile_is_told(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + END)
    with open_archive(path) as stream:
        (sample,) = find_samples(stream, WANTED, "s")
        path.write_bytes(GOOD[:515])
        with pytest.raises(DamagedShard, match="changed while it was read") as caught:
            read_members(stream, sample)
    assert caught.value.reason is Reason.CHANGED_SHARD


def test_limits_by_extension():
    assert max_bytes("txt") == max_bytes("en.txt") == 2**16 and max_bytes("json") == 2**20
    assert max_bytes("jpg") == max_bytes("mp4") == 2**26


def test_many_samples_are_walked_quickly(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(member(b"%d.txt" % i) for i in range(50_000)) + END)
    start = time.perf_counter()
    assert len(inspect_shard(path, WANTED)[0]) == 50_000
    print(f"{50_000 / (time.perf_counter() - start):.0f} headers/s")
