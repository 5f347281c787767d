import gzip
import tarfile

import pytest
from webdataset.tariterators import tarfile_to_samples

from datamodules.writer import write_shard

SAMPLES = [
    ("cat", {"txt": b"a cat", "webp": b"\x00" * 700, "speech_fr.opus": b"meow"}),
    ("dog", {"json": b"{}", "txt": b"a dog"}),
]


def read_back(path):
    with gzip.open(path) as stream:
        samples = list(tarfile_to_samples()([{"url": str(path), "stream": stream}]))
    added = {"__url__", "__local_path__"}
    return [{name: sample[name] for name in sample if name not in added} for sample in samples]


def test_webdataset_reads_what_was_written(tmp_path):
    assert write_shard(SAMPLES, tmp_path / "a.tar.gz") == 2
    assert read_back(tmp_path / "a.tar.gz") == [{"__key__": key} | m for key, m in SAMPLES]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_same_samples_give_same_bytes_whatever_the_order_of_members(tmp_path, name):
    write_shard(SAMPLES, tmp_path / name)
    turned = [(key, dict(reversed(members.items()))) for key, members in SAMPLES]
    write_shard(turned, tmp_path / "other" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_other_samples_give_other_bytes(tmp_path):
    write_shard(SAMPLES, tmp_path / "a.tar.gz")
    write_shard(SAMPLES[::-1], tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() != (tmp_path / "b.tar.gz").read_bytes()


def test_headers_tell_nothing_of_the_writer(tmp_path):
    write_shard(SAMPLES, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.pax_headers == {}


def failing():
    yield SAMPLES[0]
    raise RuntimeError("power cut")


def test_a_failure_leaves_the_old_shard_and_nothing_else(tmp_path):
    path = tmp_path / "a.tar.gz"
    write_shard(SAMPLES, path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(failing(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([SAMPLES[0], SAMPLES[0]], "'cat' twice"),
        ([("cat.1", {"txt": b""})], "a dot would cut the key"),
        ([("a/cat", {"txt": b""})], "letters, digits"),
        ([("", {"txt": b""})], "letters, digits"),
        ([("cat", {})], "no member"),
        ([("cat", {".txt": b""})], "the extension '.txt'"),
        ([("c" * 97, {"txt": b""})], "longer than 100 bytes"),
        ([], "no sample"),
    ],
)
def test_unfit_samples_are_refused_and_nothing_is_left(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        write_shard(samples, tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_that_fits_is_written(tmp_path):
    assert write_shard([("c" * 96, {"txt": b""})], tmp_path / "a.tar") == 1


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name it \*.tar"):
        write_shard(SAMPLES, tmp_path / "a.zip")
