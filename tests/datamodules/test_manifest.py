import json
import random
from dataclasses import asdict, replace

import pytest

from datamodules.manifest import (
    ManifestError,
    check_pack,
    describe_shard,
    read_manifest,
    write_manifest,
)
from datamodules.writer import write_shard


@pytest.fixture
def folder(tmp_path, png, wav):
    """A pack of two shards."""
    for number in range(2):
        samples = [
            (f"k{i}", {"png": png, "txt": f"cat {number} {i}".encode(), "wav": wav})
            for i in range(6)
        ]
        write_shard(samples, tmp_path / f"shard-{number:06d}.tar")
    remake(tmp_path)
    return tmp_path


def remake(folder):
    shards = [describe_shard(path)[0] for path in sorted(folder.glob("*.tar"))]
    write_manifest(shards, folder / "manifest.json")
    return shards


def test_a_manifest_says_what_the_shards_hold(folder):
    shards, damaged = check_pack(folder)
    assert damaged == [] and shards == read_manifest(folder)
    assert [shard.name for shard in shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert {(s.samples, s.modalities) for s in shards} == {(6, ("audio", "image", "text"))}
    value = json.loads((folder / "manifest.json").read_text())
    assert value["version"] == 1 and value["samples"] == 12
    assert value["shards"][0]["bytes"] == (folder / "shard-000000.tar").stat().st_size


def mutate(data: bytes, kind: str, draw: random.Random) -> bytes:
    """One change of a tar, of the four kinds that happen to files."""
    changed = bytearray(data)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    if kind == "truncation":
        return data[: draw.randrange(len(data))]
    if kind == "block":
        blocks = [at for at in range(0, len(data), 512) if any(data[at : at + 512])]
        at = draw.choice(blocks)
        changed[at : at + 512] = bytes(512)
    else:
        at = draw.choice(headers) + (512 if kind == "data" else 0)
        changed[at + draw.randrange(5 if kind == "data" else 512)] ^= 1 << draw.randrange(8)
    return bytes(changed)


KINDS = ("header", "block", "data", "truncation")


@pytest.mark.parametrize("kind", KINDS)
def test_50_mutations_of_each_kind_are_all_caught(folder, kind):
    path = folder / "shard-000001.tar"
    data, draw = path.read_bytes(), random.Random(kind)
    for _ in range(50):
        changed = mutate(data, kind, draw)
        assert changed != data
        path.write_bytes(changed)
        assert [name for name, _ in check_pack(folder)[1]] == [path.name]


def test_without_the_digest_some_are_missed(folder):
    """The negative control: the manifest is given the digest of the damaged shard."""
    shards = read_manifest(folder)
    path = folder / shards[1].name
    data, draw = path.read_bytes(), random.Random(0)
    missed = dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        for _ in range(50):
            path.write_bytes(mutate(data, kind, draw))
            entry = replace(shards[1], sha256=describe_shard(path)[0].sha256)
            write_manifest([shards[0], entry], folder / "manifest.json")
            missed[kind] += not check_pack(folder)[1]
    assert missed["data"] == 50 and missed["block"] > 0
    assert missed["truncation"] == 0  # the size tells


def test_every_kind_of_damage_is_named(folder, png):
    first, second = (folder / f"shard-00000{i}.tar" for i in range(2))
    whole = second.read_bytes()
    second.unlink()
    assert check_pack(folder)[1] == [(second.name, "it is missing")]
    second.symlink_to(first)
    assert check_pack(folder)[1] == [(second.name, "it is not a plain file")]
    second.unlink()
    write_shard([("k", {"png": png})], second)
    reason = check_pack(folder)[1][0].reason
    assert all(word in reason for word in ("bytes, not", "SHA-256", "1 samples, not 6", "modal"))
    second.write_bytes(whole[:3000])
    assert "the archive is damaged" in check_pack(folder)[1][0].reason
    second.write_bytes(whole)
    (folder / "stray.tar").write_bytes(whole)
    assert check_pack(folder)[1] == [("stray.tar", "it is not in the manifest")]


def altered(folder, **change):
    value = json.loads((folder / "manifest.json").read_text())
    value["shards"][0].update(change)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda _: "{", "is not JSON"),
        (lambda _: "[" * 100_000, "is not JSON"),
        (lambda _: "[]", "not of version 1"),
        (lambda _: '{"version": 2}', "not of version 1"),
        (lambda _: '{"version": 1}', "lists no shards"),
        (lambda folder: altered(folder, name="../x.tar"), "plain file name"),
        (lambda folder: altered(folder, name="/etc/passwd"), "plain file name"),
        (lambda folder: altered(folder, bytes="1"), "needs name, samples"),
        (lambda folder: altered(folder, samples=5), "do not agree"),
        (lambda folder: altered(folder, name="shard-000001.tar"), "do not agree"),
    ],
)
def test_a_damaged_manifest_is_damage(folder, text, message):
    (folder / "manifest.json").write_text(text(folder))
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder)
    [damage] = check_pack(folder)[1]
    assert damage.name == "manifest.json" and message in damage.reason


def test_without_a_manifest_there_is_nothing_to_check(tmp_path):
    with pytest.raises(ManifestError, match="has no manifest.json"):
        check_pack(tmp_path)


def test_an_entry_goes_through_json_unchanged(folder):
    shards = remake(folder)
    assert read_manifest(folder) == shards
    assert set(asdict(shards[0])) == {"name", "samples", "bytes", "sha256", "modalities"}
