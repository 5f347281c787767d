"""Each guard of packing, and what happens without it."""

import errno
import fcntl
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from datamodules import manifest
from datamodules.manifest import ManifestError, check_pack, read_manifest
from datamodules.pack import ByCount, BySize, FolderSource, PackError, ShardSource, pack
from datamodules.pack import folder as folders
from datamodules.pack import run as running
from datamodules.pack.judge import Judged, judge
from datamodules.pack.source import Draft, File, Refusal
from datamodules.pack.stage import Stage
from datamodules.shards import read_shards
from datamodules.writer import write_shard

SMALL = BySize(12_000)


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 pictures with captions, in two folders."""
    for number in range(20):
        stem = tmp_path / "in" / f"part{number % 2}" / f"{number:02d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 0)).save(f"{stem}.png")
        Path(f"{stem}.txt").write_text(f"number {number}")
    return tmp_path / "in"


def captions_of(out: Path) -> list[str]:
    return sorted(sample.caption for sample in read_shards([out / "*.tar"]))


def rejected_of(out: Path) -> dict[str, str]:
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {item["source"]: item["reason"] for item in map(json.loads, lines)}


def begun(folder: Path, out: Path) -> None:
    """A run that ended after its second shard."""
    finish = Stage.finish_shard

    def finish_until(self, entry, mark):
        finish(self, entry, mark)
        if entry.name.endswith("1.tar"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "finish_shard", finish_until)
        with pytest.raises(KeyboardInterrupt):
            pack(FolderSource(folder), out, SMALL)


# A full disk is told as such.


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "write_shard", full)
    with pytest.raises(PackError, match="is full; free some space"):
        pack(FolderSource(folder), tmp_path / "out", SMALL)
    monkeypatch.setattr(running, "_FULL", ())  # off: the bare error, without advice
    with pytest.raises(OSError, match="No space left") as caught:
        pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert not isinstance(caught.value, PackError)


# A source that changed since the run was begun is not mixed with what it was.


@pytest.mark.parametrize("guarded", [True, False])
def test_a_source_that_changed(folder, tmp_path, monkeypatch, guarded):
    out = tmp_path / "out"
    begun(folder, out)
    (folder / "part0" / "00.txt").write_text("another caption")
    if guarded:
        with pytest.raises(PackError, match="the source has changed"):
            pack(FolderSource(folder), out, SMALL)
    else:  # the old caption stays in a pack that claims to be of the new source
        monkeypatch.setattr(running.Mark, "__eq__", lambda *_: True)
        monkeypatch.setattr(running.Mark, "__ne__", lambda *_: False, raising=False)
        pack(FolderSource(folder), out, SMALL)
        assert "another caption" not in captions_of(out)


@pytest.mark.parametrize("guarded", [True, False])
def test_shards_of_another_size_are_not_mixed(folder, tmp_path, monkeypatch, guarded):
    out = tmp_path / "out"
    begun(folder, out)
    if guarded:
        with pytest.raises(PackError, match="shards of another size"):
            pack(FolderSource(folder), out, BySize(30_000))
    else:
        monkeypatch.setattr(Stage, "_head", lambda self: {"version": 1, "cut": repr(SMALL)})
        packed = pack(FolderSource(folder), out, BySize(30_000))
        assert packed.shards[0].samples != packed.shards[2].samples


# A manifest names plain files beside it, each once, and its counts agree.


def test_a_manifest_that_points_elsewhere(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    packed = pack(FolderSource(folder), out, SMALL)
    value = json.loads((out / "manifest.json").read_text())
    outside = (out / packed.shards[0].name).replace(tmp_path / "outside.tar")
    value["shards"][0]["name"] = "../outside.tar"
    (out / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ManifestError, match="plain file name"):
        read_manifest(out)

    def unguarded(cls, value):
        return cls(**{**value, "modalities": tuple(value["modalities"])})

    monkeypatch.setattr(manifest.ShardEntry, "parse", classmethod(unguarded))
    opened = []
    describe = manifest.describe_shard
    monkeypatch.setattr(
        manifest, "describe_shard", lambda path: (opened.append(path.resolve()), describe(path))[1]
    )
    check_pack(out)
    assert outside in opened  # off: a file outside the pack is opened


@pytest.mark.parametrize("change", [{"samples": -1}, {"bytes": -5}, {"sha256": "x" * 64}])
def test_a_manifest_with_counts_that_cannot_be(folder, tmp_path, monkeypatch, change):
    out = tmp_path / "out"
    pack(FolderSource(folder), out, SMALL)
    value = json.loads((out / "manifest.json").read_text())
    value["shards"][0].update(change)
    value["samples"] = sum(shard["samples"] for shard in value["shards"])
    (out / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ManifestError, match="counts or digest"):
        read_manifest(out)
    monkeypatch.setattr(manifest, "min", lambda *_: 0, raising=False)
    monkeypatch.setattr(manifest, "_DIGEST", manifest.re.compile(".*"))
    assert read_manifest(out)  # off: taken as it is


def test_a_manifest_of_no_end(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pack(FolderSource(folder), out, SMALL)
    assert read_manifest(out)  # off: with the limit where it is, this one is read
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(ManifestError, match="more than 100 bytes"):
        read_manifest(out)


def test_a_manifest_whose_total_differs(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pack(FolderSource(folder), out, SMALL)
    value = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**value, "samples": 19}))
    with pytest.raises(ManifestError, match="do not agree"):
        read_manifest(out)
    monkeypatch.setattr(manifest, "sum", lambda _: 19, raising=False)
    assert sum(shard.samples for shard in read_manifest(out)) == 20  # off: nobody notices


def test_a_shard_that_is_a_link(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    packed = pack(FolderSource(folder), out, SMALL)
    path = out / packed.shards[0].name
    path.rename(tmp_path / "elsewhere.tar")
    path.symlink_to(tmp_path / "elsewhere.tar")
    assert check_pack(out)[1] == [(path.name, "it is not a plain file")]
    monkeypatch.setattr(Path, "is_symlink", lambda self: False)
    assert check_pack(out)[1] == []  # off: what it points to is taken for the pack's own


# What is there is replaced only when told.


@pytest.mark.parametrize("guarded", [True, False])
def test_a_finished_pack(folder, tmp_path, monkeypatch, guarded):
    out = tmp_path / "out"
    before = pack(FolderSource(folder), out, BySize(1)).shards
    if guarded:
        with pytest.raises(PackError, match="holds a finished pack"):
            pack(FolderSource(folder), out, SMALL)
        assert tuple(read_manifest(out)) == before
    else:
        monkeypatch.setattr(Stage, "refuse_finished", lambda self: None)
        pack(FolderSource(folder), out, SMALL)
        assert tuple(read_manifest(out)) != before


@pytest.mark.parametrize("guarded", [True, False])
def test_shards_that_lie_where_they_are_written_to(folder, tmp_path, guarded):
    out = tmp_path / "out"
    pack(FolderSource(folder), out, SMALL)
    first = (out / "shard-000000.tar").read_bytes()
    source = ShardSource(str(out), target=out if guarded else None)
    if guarded:
        with pytest.raises(PackError, match="write to another folder"):
            pack(source, out, ByCount(1), overwrite=True)
        assert (out / "shard-000000.tar").read_bytes() == first
    else:
        pack(source, out, ByCount(1), overwrite=True)
        assert (out / "shard-000000.tar").read_bytes() != first


# What was read is what was packed and rejected.


@pytest.mark.parametrize("guarded", [True, False])
def test_a_list_of_rejections_that_was_changed_meanwhile(folder, tmp_path, monkeypatch, guarded):
    finish = Stage.finish_shard
    if not guarded:
        monkeypatch.setattr(running, "_finish", unchecked_finish)

    def add(self, entry, mark):
        finish(self, entry, mark)
        with self.rejected.open("a") as file:
            file.write("{}\n")

    monkeypatch.setattr(Stage, "finish_shard", add)
    if guarded:
        with pytest.raises(PackError, match="was changed meanwhile"):
            pack(FolderSource(folder), tmp_path / "out", SMALL)
        assert not (tmp_path / "out" / "manifest.json").exists()
    else:
        packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
        assert packed.num_read != packed.num_samples + packed.num_rejected


def unchecked_finish(stage, shards, num_read, num_resumed):
    num_rejected = stage.rejected.read_text().count("\n")
    stage.publish(shards)
    return running.Packed(tuple(shards), num_read, num_rejected, num_resumed)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_shard_that_was_not_written_whole(folder, tmp_path, monkeypatch, guarded):
    counts, describe = {}, running.describe_shard

    def cut(samples, path):
        counts[path] = write_shard(samples, path)
        os.truncate(path, 3000)
        return counts[path]

    monkeypatch.setattr(running, "write_shard", cut)
    out = tmp_path / "out"
    if guarded:
        with pytest.raises(PackError, match="does not hold what was written"):
            pack(FolderSource(folder), out, SMALL)
        assert not (out / "manifest.json").exists()
    else:  # a pack of damaged shards is published
        monkeypatch.setattr(
            running, "describe_shard", lambda p: (replace(describe(p)[0], samples=counts[p]), [])
        )
        packed = pack(FolderSource(folder), out, SMALL)
        assert len(check_pack(out)[1]) == len(packed.shards)


# A file is read as it was planned, and within its source.


@pytest.mark.parametrize("guarded", [True, False])
def test_a_file_that_grew(folder, monkeypatch, guarded):
    path = folder / "part0" / "00.txt"
    draft = Draft("00", "00", {"txt": File.of(path)})
    if not guarded:
        monkeypatch.setattr("datamodules.pack.judge._read", lambda file: file.path.read_bytes())
    path.write_text("another, longer caption")
    verdict = judge(draft)
    if guarded:
        assert isinstance(verdict, Refusal) and "changed while it was packed" in verdict.reason
    else:
        assert isinstance(verdict, Judged)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_link_out_of_the_source(folder, tmp_path, monkeypatch, guarded):
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    if not guarded:
        monkeypatch.setattr(folders, "within", lambda *_: True)
    pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert ("secret" in captions_of(tmp_path / "out")) is not guarded


@pytest.mark.parametrize("guarded", [True, False])
def test_a_folder_that_cannot_be_read(folder, tmp_path, monkeypatch, guarded):
    scan = os.scandir

    def scandir(path="."):
        if str(path).endswith(("part1", ".hidden")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    (folder / ".hidden").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    if not guarded:
        walk = os.walk
        monkeypatch.setattr(folders.os, "walk", lambda root, onerror: walk(root))
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert packed.num_samples == 10
    wanted = {"part1": "it cannot be read (Permission denied)"} if guarded else {}
    assert rejected_of(tmp_path / "out") == wanted  # off: ten samples are gone without a word


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read(folder, tmp_path):
    (folder / "part1").chmod(0)
    pack(FolderSource(folder), tmp_path / "out", SMALL)
    (folder / "part1").chmod(0o700)
    assert set(rejected_of(tmp_path / "out")) == {"part1"}


# Two runs do not write into one folder.


def test_a_second_run_into_the_folder(folder, tmp_path):
    out = tmp_path / "out"
    message = "another run is packing into .*; wait until it ends"
    with Stage(out, repr(SMALL)).held(), pytest.raises(PackError, match=message):
        pack(FolderSource(folder), out, SMALL)
    assert pack(FolderSource(folder), out, SMALL).num_samples == 20


def test_a_killed_run_holds_no_lock(folder, tmp_path):
    out, context = tmp_path / "out", multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(out, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(PackError, match="another run"):
        pack(FolderSource(folder), out, SMALL)
    process.kill()
    process.join()
    assert pack(FolderSource(folder), out, SMALL).num_samples == 20


def hold(out: Path, ready) -> None:
    with Stage(out, "").held():
        ready.set()
        multiprocessing.Event().wait()


def test_without_the_lock_two_runs_meet(folder, tmp_path, monkeypatch):
    """The negative control: the second publishes what the first is writing, which then fails."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    out, finish, met = tmp_path / "out", Stage.finish_shard, []

    def finish_and_run_another(self, entry, mark):
        finish(self, entry, mark)
        if not met:
            met.append(pack(FolderSource(folder), out, SMALL))

    monkeypatch.setattr(Stage, "finish_shard", finish_and_run_another)
    with pytest.raises((PackError, OSError)):
        pack(FolderSource(folder), out, SMALL)
    assert met


def test_a_file_system_without_such_locks_is_packed_to(folder, tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert pack(FolderSource(folder), tmp_path / "out", SMALL).num_samples == 20


# A shard is on the disk when it is said to be.


def test_a_shard_and_its_folder_are_forced_to_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_shard([("k", {"txt": b"a"})], tmp_path / "a.tar")
    assert synced == [str(tmp_path / ".a.tar.partial"), str(tmp_path)]
    monkeypatch.setattr("datamodules.writer.sync", lambda path: None)
    synced.clear()
    write_shard([("k", {"txt": b"a"})], tmp_path / "b.tar")
    assert synced == []  # off: nothing else does it
