import gzip
import io
import os
import pickle
import resource
import tarfile

import pytest

from datamodules.decode import DECODERS
from datamodules.decoding import decode_samples
from datamodules.samples import MEMBERS, Rejected
from datamodules.shards import read_folder, read_shards


def keys(samples) -> list[str]:
    return [sample.key for sample in samples]


@pytest.fixture
def members(png):
    """Ten whole samples."""
    return [m for i in range(10) for m in ((f"k{i}.png", png), (f"k{i}.txt", f"cat {i}".encode()))]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "we#i rd?.tar"])
def test_reads_whole_samples_in_order(make_shard, members, png, name):
    path = make_shard(members, name)
    samples = list(read_shards([path]))
    assert keys(samples) == [f"k{i}" for i in range(10)]
    assert samples[3].inputs == {"image": png, "text": "cat 3"}
    assert samples[3].caption == "cat 3" and samples[3].shard == str(path)
    assert all(s.inputs["image"].shape == (3, 4, 6) for s in decode_samples(samples))


def test_modalities_may_be_absent_and_names_are_forgiving(make_shard, png, wav):
    path = make_shard(
        [
            ("sub/a.PNG", png),
            ("./b.wav", wav),
            ("b.json", b'{"source": "x"}'),
            ("b.nonsense", b"ignored"),
            ("README", b"no sample"),
            ("._a.png", b"no sample"),
            ("c.txt", b"only text"),
        ]
    )
    rejected: list[Rejected] = []
    samples = list(read_shards([path], rejected=rejected))
    assert keys(samples) == ["sub/a", "b", "c"]
    assert [(item.key, item.code) for item in rejected] == [
        ("README", "no-key"),
        ("._a.png", "no-key"),
    ]
    assert [set(s.inputs) for s in samples] == [{"image"}, {"audio"}, {"text"}]
    assert samples[1].meta == {"source": "x"}


def test_samples_of_two_shards_never_mix(make_shard, png):
    first = make_shard([("k.png", png)], "1.tar")
    second = make_shard([("k.txt", b"another")], "2.tar")
    samples = list(read_shards([first, second]))
    assert [(s.key, set(s.inputs)) for s in samples] == [("k", {"image"}), ("k", {"text"})]


def test_every_key_is_delivered_or_rejected_once(make_shard, members, png):
    link = tarfile.TarInfo("l.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    planted = [
        ("unsafe/../../x.png", png),
        ("/abs.png", png),
        ("back\\slash.png", png),
        ("ctrl\x07.png", png),
        ("__reserved__/x.png", png),
        ("long" * 150 + ".png", png),
        ("dup.png", png),
        ("dup.PNG", png),
        ("apart.png", png),
        ("dotted_0.5.png", png),
        ("dotted_0.7.png", png),
        ("badtext.txt", b"\xff"),
        ("badjson.json", b"{"),
        ("unknown.pkl", b"x"),
        ("apart.txt", b"late"),
    ]
    path = make_shard([*members[:10], *planted, *members[10:]])
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    rejected: list[Rejected] = []
    delivered = keys(read_shards([path], rejected=rejected))
    assert delivered == [f"k{i}" for i in range(10)]
    refused = {item.key for item in rejected}
    assert len(refused) == len(rejected) == 13
    assert {"dup", "apart", "dotted_0", "badtext", "badjson", "unknown", "l"} < refused
    assert all(item.shard == str(path) and item.reason for item in rejected)
    with pytest.raises(ValueError, match=r"a\.tar: unsafe/\.\./\.\./x: its key is not a plain"):
        list(read_shards([path]))


def test_a_large_member_is_refused_unread(make_shard, members, monkeypatch):
    monkeypatch.setattr("datamodules.archive.MAX_MEMBER_BYTES", 1000)
    path = make_shard([("big.txt", b"x" * 1001), ("fits.txt", b"x" * 1000), *members])
    rejected: list[Rejected] = []
    assert keys(read_shards([path], rejected=rejected))[:2] == ["fits", "k0"]
    assert [item[1:3] for item in rejected] == [("big", "txt")]


def test_a_sparse_member_is_refused_unread(tmp_path):
    """10 kB of archive that stand for 2 GiB."""
    info = tarfile.TarInfo("bomb.txt")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2**31),
        "GNU.sparse.map": "0,1",
    }
    info.size = 1
    path = tmp_path / "sparse.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rejected: list[Rejected] = []
    assert list(read_shards([path], rejected=rejected)) == []
    assert [item.key for item in rejected] == ["bomb"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


class Marker:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_executed(make_shard, tmp_path, png):
    extensions = ["pkl", "pickle", "pyd", "pth", "pkl.gz", "meta.pkl", "png.pyd", "PKL", "npz"]
    marker = tmp_path / "executed"
    payload = pickle.dumps(Marker(marker))
    shard = make_shard([(f"k.{extension}", payload) for extension in extensions] + [("k.png", png)])
    (sample,) = decode_samples(read_shards([shard]))
    assert set(sample.inputs) == {"image"} and not marker.exists()
    hidden = make_shard([(f"{i}.{ext}", payload) for i, ext in enumerate(("png", "txt", "json"))])
    rejected: list[Rejected] = []
    assert list(decode_samples(read_shards([hidden], rejected=rejected), rejected)) == []
    assert len(rejected) == 3 and not marker.exists()
    pickle.loads(payload)  # negative control: the payload works
    assert marker.exists()


def test_commands_and_urls_are_never_executed(make_shard, members, tmp_path, monkeypatch):
    shard, marker = make_shard(members), tmp_path / "executed"
    urls = [
        f"pipe:touch {marker}; cat {shard}",
        f"PIPE:touch {marker}",
        f"file:{shard}",
        f"http://127.0.0.1/{shard}",
        "s3://bucket/a.tar",
    ]
    for url in urls:
        with pytest.raises(ValueError, match="only local shards"):
            list(read_shards([url]))
    for url in (f"{shard}::pipe:touch {marker}", f" pipe:touch {marker}", "${X}"):
        with pytest.raises(ValueError, match="no shard matches"):
            list(read_shards([url]))
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {marker};cat {tmp_path}")
    assert len(list(read_shards([shard]))) == 10
    assert not marker.exists()


def headers_of(path) -> list[int]:
    with tarfile.open(path) as archive:
        return [member.offset for member in archive]


def test_a_damaged_shard_is_refused_whole(make_shard, members):
    good = make_shard(members, "good.tar")
    data = good.read_bytes()
    damaged = good.with_name("damaged.tar")
    offsets = headers_of(good)
    damages = [data[:cut] for cut in range(0, offsets[-1] + 1024, 256)]
    for offset in offsets:
        damages.append(data[: offset + 5] + bytes([data[offset + 5] ^ 1]) + data[offset + 6 :])
        damages.append(data[:offset] + bytes(512) + data[offset + 512 :])
    for number, damage in enumerate([*damages, b"<html>404</html>", bytes(512), data + data]):
        damaged.write_bytes(damage)
        rejected: list[Rejected] = []
        samples = list(read_shards([damaged, good], rejected=rejected))
        assert [item[:3] for item in rejected] == [(str(damaged), "", "")], number
        assert len(samples) == 10 and {s.shard for s in samples} == {str(good)}
    with pytest.raises(ValueError, match="damaged"):
        list(read_shards([damaged]))


def test_a_damaged_packed_shard_is_refused_whole(make_shard, members):
    good = make_shard(members, "good.tar.gz")
    data = good.read_bytes()
    damaged = good.with_name("damaged.tar.gz")
    flipped = [data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :] for i in range(24, len(data), 37)]
    for damage in [data[: len(data) // 2], data[:-4], data + b"more", *flipped]:
        damaged.write_bytes(damage)
        rejected: list[Rejected] = []
        assert list(read_shards([damaged], rejected=rejected)) == []
        assert len(rejected) == 1 and rejected[0].key == ""


def test_a_packed_bomb_is_refused_quickly(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    rejected: list[Rejected] = []
    assert list(read_shards([path], rejected=rejected)) == []
    assert "damaged" in rejected[0].reason


def test_an_empty_archive_holds_no_sample(make_shard, members):
    shards = [make_shard([], "empty.tar"), make_shard(members)]
    assert len(list(read_shards(shards))) == 10


def test_unknown_modalities_are_refused(make_shard, members):
    with pytest.raises(ValueError, match="no decoder for smell; known: image, text"):
        list(read_shards([make_shard(members)], {"smell": ["nose"]}))
    assert set(DECODERS) == set(MEMBERS)


def test_read_folder(tmp_path, png, wav):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    files = {
        "a.png": png,
        "a.txt": b"A cat.",
        "b.final.PNG": png,
        "sub/a.wav": wav,
        "sub/a.json": b'{"source": "me"}',
        "settings.json": b"[]",
        "notes.md": b"ignored",
        ".hidden/c.png": png,
        ".c.png": png,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    samples = list(read_folder(tmp_path))
    assert keys(samples) == ["a", "b.final", "sub/a"]
    assert samples[0].inputs == {"image": png, "text": "A cat."} and samples[0].caption == "A cat."
    assert samples[0].meta == {"files": {"image": "a.png", "text": "a.txt"}}
    assert samples[2].meta == {"source": "me", "files": {"audio": "sub/a.wav"}}
    assert len(list(decode_samples(samples))) == 3


def test_read_folder_rejects(tmp_path, png, monkeypatch):
    for name, data in {"a.png": png, "b.txt": b"\xff", "c.txt": b"x" * 2000}.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr("datamodules.shards.MAX_MEMBER_BYTES", 1999)
    rejected: list[Rejected] = []
    assert keys(read_folder(tmp_path, rejected=rejected)) == ["a"]
    assert [item[1:3] for item in rejected] == [("b", "txt"), ("c", "txt")]
    with pytest.raises(ValueError, match=r"b\.txt: this file is not UTF-8"):
        list(read_folder(tmp_path))


def test_read_folder_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        list(read_folder(tmp_path / "missing"))
    with pytest.raises(ValueError, match="holds no file that fits"):
        list(read_folder(tmp_path))
