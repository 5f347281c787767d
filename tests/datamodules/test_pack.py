import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from datamodules.archive import MAX_MEMBER_BYTES
from datamodules.manifest import check_pack
from datamodules.pack import (
    ByCount,
    BySize,
    DatasetSource,
    FolderSource,
    PackError,
    ShardSource,
    Source,
    TableSource,
    members_of_picture,
    pack,
)
from datamodules.pack.judge import judge
from datamodules.pack.names import Keys, against_name
from datamodules.pack.source import Draft
from datamodules.pack.stage import Stage
from datamodules.shards import read_shards
from fusion.cli.main import main

SMALL = BySize(12_000)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def sound(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).normal(size=400) * 0.1
    soundfile.write(buffer, noise, 8000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """30 samples in two folders: pictures with captions, a third with sound."""
    root = tmp_path / "in"
    for number in range(30):
        stem = root / f"part {number % 2}" / f"thing.{number:02d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{stem}.PNG").write_bytes(picture(number))
        Path(f"{stem}.txt").write_text(f"a thing, number {number}")
        if number % 3 == 0:
            Path(f"{stem}.wav").write_bytes(sound(number))
    return root


def samples_of(out: Path):
    return list(read_shards([out / "*.tar"]))


def rejected_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_folder_is_packed_and_read_back_every_sample_once(folder, tmp_path):
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert (packed.num_read, packed.num_samples, packed.num_rejected) == (30, 30, 0)
    assert len(packed.shards) > 3
    samples = samples_of(tmp_path / "out")
    assert Counter(s.caption for s in samples) == {f"a thing, number {i}": 1 for i in range(30)}
    for sample in samples:
        number = int(sample.caption.split()[-1])
        assert sample.key == f"part_{number % 2}_thing_{number:02d}"
        assert sample.inputs["image"] == picture(number)
        assert sample.inputs.get("audio") == (sound(number) if number % 3 == 0 else None)
    assert check_pack(tmp_path / "out") == (list(packed.shards), [])
    names = {f"shard-{i:06d}.tar" for i in range(len(packed.shards))}
    assert set(contents(tmp_path / "out")) == {*names, "manifest.json", "rejected.jsonl"}


def test_shards_keep_to_their_size(folder, tmp_path):
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
    # the end of a tar is padded to whole records of 10 kB
    assert all(shard.bytes <= 12_000 + 2 * tarfile.RECORDSIZE for shard in packed.shards)
    single = pack(FolderSource(folder), tmp_path / "single", BySize(1))
    assert {shard.samples for shard in single.shards} == {1} and single.num_samples == 30


def test_the_bytes_do_not_depend_on_the_workers(folder, tmp_path):
    spoil(folder)
    pack(FolderSource(folder), tmp_path / "one", SMALL)
    pack(FolderSource(folder), tmp_path / "two", SMALL, num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def spoil(folder: Path) -> dict[str, str]:
    """One bad sample of each kind; source -> reason."""
    (folder / "cut.png").write_bytes(picture(900)[:50])
    (folder / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "empty.txt").write_bytes(b" ")
    (folder / "latin.txt").write_bytes("été".encode("latin-1"))
    (folder / "mute.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    (folder / "list.json").write_text("[]")
    (folder / "list.txt").write_text("a list")
    (folder / "only.json").write_text("{}")
    (folder / "read.me").write_text("about")
    (folder / "twice.png").write_bytes(picture(901))
    (folder / "twice.PNG").write_bytes(picture(902))
    (folder / "zz copy.png").write_bytes((folder / "part 0" / "thing.00.PNG").read_bytes())
    (folder / "zz copy.txt").write_text("a thing, number 0")
    (folder / "zz copy.wav").write_bytes(sound(0))
    (folder / "line\nfeed.txt").write_text("a name with control characters")
    (folder / "back\\slash.txt").write_text("a name with a backslash")
    (folder / "dangling.png").symlink_to("nowhere")
    outside = folder.parent / "secret.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)
    with (folder / "huge.wav").open("wb") as file:
        file.truncate(MAX_MEMBER_BYTES + 2)
    os.mkfifo(folder / "pipe.txt")
    (folder / ".hidden.txt").write_text("ignored")
    return {
        "cut": "damaged",
        "eps": "PostScript",
        "empty": "empty",
        "latin": "UTF-8",
        "mute": "recording",
        "list": "JSON object",
        "only": "metadata only",
        "read.me": "extension",
        "twice": "twice",
        "zz copy": "same bytes as the sample part_0_thing_00",
        "line\nfeed": "control characters",
        "back\\slash": "backslash",
        "dangling": "cannot be read",
        "link": "leaves the source",
        "huge": "limit",
        "pipe": "plain file",
    }


def test_each_kind_of_bad_file_is_rejected_once_and_the_rest_is_packed(folder, tmp_path):
    reasons = spoil(folder)
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert (packed.num_samples, packed.num_rejected) == (30, len(reasons))
    assert packed.num_read == 30 + len(reasons)
    rejected = rejected_of(tmp_path / "out")
    assert Counter(r["source"] for r in rejected) == Counter(dict.fromkeys(reasons, 1))
    for item in rejected:
        assert set(item) == {"source", "member", "reason"}
        assert reasons[item["source"]] in item["reason"], item
    assert b"secret" not in b"".join(contents(tmp_path / "out").values())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_rejected(folder, tmp_path):
    (folder / "mine.txt").write_text("mine")
    (folder / "mine.txt").chmod(0)
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL)
    assert (packed.num_samples, packed.num_rejected) == (30, 1)


def test_a_file_that_changes_while_it_is_packed_is_rejected(folder):
    drafts = [item for item in FolderSource(folder).plan().items if isinstance(item, Draft)]
    (folder / "part 0" / "thing.00.txt").write_text("longer than it was when it was planned")
    verdicts = [judge(draft) for draft in drafts]
    assert [v.reason for v in verdicts if hasattr(v, "reason")] == [  # type: ignore[union-attr]
        "the file changed while it was packed"
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b c.png", ""),
        ("a..b.png", ""),
        ("été/été.png", ""),
        ("../a.png", "'..'"),
        ("a/../b.png", "'..'"),
        ("/etc/passwd.txt", "absolute"),
        ("C:/a.png", "absolute"),
        ("a\x00b.png", "control"),
        ("a\x1b[31m.png", "control"),
        ("a\udcff.png", "UTF-8"),
        ("a\\b.png", "backslash"),
        ("a" * 600 + ".png", "limit of 512"),
    ],
)
def test_unsafe_names(name, reason):
    assert (reason in against_name(name)) if reason else against_name(name) == ""


def test_keys_are_safe_and_each_is_given_once():
    keys = Keys()
    names = ["a/b", "a b", "a.b", "a_b_2", "__x__", "...", "été", "x" * 300, "x" * 301, "é" * 300]
    taken = [keys.take(name) for name in names]
    assert taken[:7] == ["a_b", "a_b_2", "a_b_3", "a_b_2_2", "x", "sample", "été"]
    assert len(set(taken)) == len(taken)
    assert max(len(key.encode()) for key in taken) <= 72


@pytest.fixture
def tables(folder) -> dict[str, Path]:
    """The same rows as CSV and as JSON Lines, four of them bad."""
    rows = [
        {"image": "part 0/thing.00.PNG", "caption": 'red, "quoted"\nof two lines'},
        {"image": "part 0/thing.00.PNG", "caption": "another caption of it"},
        {"audio": "part 0/thing.00.wav", "caption": "été"},
        {"caption": "words alone"},
        {"image": "../secret.png", "caption": "out"},
        {"image": "/etc/passwd", "caption": "out"},
        {"image": "part 0/thing.00.wav", "caption": "a sound"},
        {"image": "none.png", "caption": "missing"},
        {"image": "part 0/thing.00.PNG", "caption": "another caption of it"},
        {},
    ]
    lines = ["\ufeffImage,audio,caption,more"]
    for row in rows:
        quoted = '"' + row.get("caption", "").replace('"', '""') + '"'
        lines.append(f"{row.get('image', '')},{row.get('audio', '')},{quoted},x")
    (folder / "t.csv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return {"csv": folder / "t.csv", "jsonl": folder / "t.jsonl"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_is_packed(tables, tmp_path, kind):
    packed = pack(TableSource(tables[kind]), tmp_path / "out", SMALL)
    assert (packed.num_read, packed.num_samples, packed.num_rejected) == (9, 3, 6)
    both = ('red, "quoted"\nof two lines', "another caption of it")
    samples = samples_of(tmp_path / "out")
    assert [s.captions for s in samples] == [both, ("été",), ("words alone",)]
    assert [set(s.inputs) - {"text"} for s in samples] == [{"image"}, {"audio"}, set()]
    more = {"more": "x"} if kind == "csv" else {}
    assert [s.meta for s in samples] == [{"captions": list(both), **more}, more, more]
    reasons = [item["reason"] for item in rejected_of(tmp_path / "out")]
    words = ["'..'", "absolute", "extension", "cannot be read", "none of image", "adds no caption"]
    assert len(reasons) == 6
    assert all(any(word in reason for reason in reasons) for word in words), reasons


def test_bad_rows_are_rejected_one_by_one(folder, tmp_path):
    table = folder / "t.csv"
    table.write_bytes(b"text\ngood\nlatin \xe9\ntoo,many\n\n" + b"x" * 200_000 + b"\nfine\n")
    packed = pack(TableSource(table), tmp_path / "csv", SMALL)
    assert (packed.num_samples, packed.num_rejected) == (2, 3)
    lines = folder / "t.jsonl"
    lines.write_text('{"text": "good"}\n{\n[]\n{"text": 3}\n{"text": "a", "caption": "b"}\n')
    packed = pack(TableSource(lines), tmp_path / "jsonl", SMALL)
    assert (packed.num_samples, packed.num_rejected) == (1, 4)
    assert [r["source"] for r in rejected_of(tmp_path / "jsonl")] == [
        f"t.jsonl:{line}" for line in range(2, 6)
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_resharding_keeps_every_sample_once(folder, tmp_path, make_shard, suffix):
    pack(FolderSource(folder), tmp_path / "out", SMALL)
    before = samples_of(tmp_path / "out")
    extra = make_shard([("sub/k.png", picture(5000)), ("sub/k.cls", b"3"), ("../e.txt", b"e")])
    (tmp_path / "old").mkdir()
    extra.rename(tmp_path / "old" / "extra.tar")
    for path in sorted((tmp_path / "out").glob("*.tar")):
        members = [(i.name, content) for i, content in read_members(path)]
        make_shard(members, f"{path.stem}.{suffix}").rename(
            tmp_path / "old" / f"{path.stem}.{suffix}"
        )
    (tmp_path / "old" / "wreck.tar").write_bytes(b"\1" * 5000)
    packed = pack(ShardSource(str(tmp_path / "old")), tmp_path / "new", ByCount(4))
    after = samples_of(tmp_path / "new")
    assert len(packed.shards) == 4 and {s.samples for s in packed.shards} <= {7, 8}
    assert Counter(s.caption for s in after) == Counter([*(s.caption for s in before), ""])
    assert {s.key: dict(s.inputs) for s in before}.items() <= {
        s.key: dict(s.inputs) for s in after
    }.items()
    assert [item["source"] for item in rejected_of(tmp_path / "new")] == [
        "extra.tar:sub/k",
        "extra.tar:../e",
        "wreck.tar",
    ]
    assert packed.num_read == 31 + 3


def read_members(path: Path):
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            yield info, file.read()


def test_members_with_a_qualified_extension_are_kept(tmp_path, make_shard):
    shard = make_shard(
        [("k.png", picture(1)), ("k.near.wav", sound(1)), ("k.far.wav", sound(2)[:60])]
        + [("l.near.wav", sound(3)), ("m_0.5.png", picture(2)), ("m_0.7.png", picture(3))]
    )
    packed = pack(ShardSource(str(shard)), tmp_path / "out", ByCount(1))
    (path,) = (tmp_path / "out").glob("*.tar")
    assert [(info.name, content == sound(3)) for info, content in read_members(path)] == [
        ("l.near.wav", True)
    ]
    assert packed.shards[0].modalities == ("audio",)
    reasons = {r["source"]: r["reason"] for r in rejected_of(tmp_path / "out")}
    assert set(reasons) == {"a.tar:k", "a.tar:m_0"}  # m_0: two samples that a shard makes one
    assert "extension" in reasons["a.tar:m_0"]


def test_keys_that_restart_in_each_shard_stay_apart(tmp_path, make_shard):
    for number in range(3):
        shard = make_shard([("k.png", picture(number)), ("k.txt", b"%d" % number)], f"{number}.tar")
        assert shard.is_file()
    pack(ShardSource(str(tmp_path / "{0..2}.tar")), tmp_path / "out", ByCount(1))
    samples = samples_of(tmp_path / "out")
    assert [s.key for s in samples] == ["k", "k_2", "k_3"]
    assert all(s.inputs["image"] == picture(int(s.caption)) for s in samples)


def killed(folder: Path, out: Path, stop: int, moment: str) -> None:
    """Packs in another process that kills itself at a moment of the shard numbered `stop`."""
    process = multiprocessing.get_context("fork").Process(
        target=pack_until, args=(folder, out, stop, moment)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def pack_until(folder: Path, out: Path, stop: int, moment: str, num_workers: int = 1) -> None:
    """Sets the trap, then packs; all of it is of the process that is killed."""
    last = f"shard-{stop:06d}.tar"
    finish, replace = Stage.finish_shard, Path.replace

    def finish_until(self, entry, mark):
        if moment == "before" and entry.name == last:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self, entry, mark)
        if moment == "torn" and entry.name == last:
            with (self.folder / "journal.jsonl").open("a") as file:
                file.write('{"shard": {"na')
            with self.rejected.open("a") as file:
                file.write('{"source": "rejected after the shard was whole"}\n')
            (self.folder / ".shard-000099.tar.partial").write_bytes(b"half")
        if moment in ("after", "torn") and entry.name == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_until(self, target):
        result = replace(self, target)
        if moment == "publish" and Path(target) == out / last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Stage.finish_shard, Path.replace = finish_until, replace_until  # type: ignore[method-assign]
    pack(FolderSource(folder), out, SMALL, num_workers)


@pytest.mark.parametrize(
    ("stop", "moment", "kept"),
    [(2, "before", 2), (2, "after", 3), (1, "torn", 2), (1, "publish", None)],
)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(folder, tmp_path, stop, moment, kept):
    spoil(folder)
    (folder / "part_0_thing.00.txt").write_text("its key is taken since before the kill")
    whole = pack(FolderSource(folder), tmp_path / "whole", SMALL)
    out = tmp_path / "out"
    killed(folder, out, stop, moment)
    assert not (out / "manifest.json").exists()
    packed = pack(FolderSource(folder), out, SMALL)
    assert packed.num_resumed == (len(whole.shards) if kept is None else kept)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_shard_that_was_damaged_meanwhile_is_written_again(folder, tmp_path):
    pack(FolderSource(folder), tmp_path / "whole", SMALL)
    out = tmp_path / "out"
    killed(folder, out, 3, "after")
    with (out / ".packing" / "shard-000001.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"?")
    assert pack(FolderSource(folder), out, SMALL).num_resumed == 1
    assert contents(out) == contents(tmp_path / "whole")


WITH_WORKERS = """
import sys
from pathlib import Path
from datamodules.pack import BySize, FolderSource, pack
if __name__ == "__main__":
    pack(FolderSource(Path(sys.argv[1])), Path(sys.argv[2]), BySize(12_000), 2)
"""


def test_a_killed_run_leaves_no_worker_behind(folder, tmp_path):
    """Killed from outside, wherever it is then; the workers end by themselves."""
    (tmp_path / "script.py").write_text(WITH_WORKERS)
    pack(FolderSource(folder), tmp_path / "whole", SMALL)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    journal = out / ".packing" / "journal.jsonl"
    workers = wait_for(lambda: len(found := children(process.pid)) >= 2 and found)
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 1, or_end_of=process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(worker) for worker in workers))
    packed = pack(FolderSource(folder), out, SMALL, overwrite=(out / "manifest.json").exists())
    assert packed.num_resumed > 0 or process.returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


def wait_for(condition, or_end_of=None):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        if or_end_of is not None and or_end_of.poll() is not None:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def children(pid: int) -> set[int]:
    """Processes that work for `pid`: spawned ones, without multiprocessing's own tracker."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_an_unfinished_pack_of_something_else_is_not_gone_on_with(folder, tmp_path):
    out = tmp_path / "out"
    killed(folder, out, 1, "after")
    with pytest.raises(PackError, match="shards of another size"):
        pack(FolderSource(folder), out, BySize(20_000))
    (folder / "part 0" / "thing.00.txt").write_text("changed since")
    with pytest.raises(PackError, match="the source has changed"):
        pack(FolderSource(folder), out, SMALL)
    packed = pack(FolderSource(folder), out, BySize(20_000), overwrite=True)
    assert packed.num_resumed == 0 and "changed since" in {s.caption for s in samples_of(out)}


def test_a_finished_pack_is_replaced_only_when_told(folder, tmp_path):
    out = tmp_path / "out"
    pack(FolderSource(folder), out, BySize(1))
    before = contents(out)
    with pytest.raises(PackError, match="--overwrite"):
        pack(FolderSource(folder), out, SMALL)
    assert contents(out) == before
    packed = pack(FolderSource(folder), out, SMALL, overwrite=True)
    assert check_pack(out) == (list(packed.shards), [])  # the further shards of before are gone


def test_shards_of_another_are_not_replaced(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000007.tar").write_bytes(b"mine")
    with pytest.raises(PackError, match="shard-000007.tar and no manifest"):
        pack(FolderSource(folder), tmp_path / "out", SMALL)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(folder, tmp_path, capsys):
    stage = tmp_path / "out" / ".packing"
    stage.mkdir(parents=True)
    partial = stage / ".shard-000000.tar.partial"
    partial.symlink_to("/dev/full")
    assert main(["pack", str(folder), "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "is full; free some space" in line
    assert not list(stage.glob("*.tar*")) and not partial.is_symlink()
    assert main(["pack", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert len(samples_of(tmp_path / "out")) == 30


def test_when_all_is_rejected_the_list_is_left(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(PackError, match="all 1 samples were rejected"):
        pack(FolderSource(tmp_path / "in"), tmp_path / "out", SMALL)
    assert [r["source"] for r in rejected_of(tmp_path / "out")] == ["a"]


def test_the_command_packs_checks_and_reshards(folder, tmp_path, capsys):
    out, new = str(tmp_path / "out"), str(tmp_path / "new")
    (folder / "bad.png").write_bytes(b"no picture")
    assert main(["pack", str(folder), "--out", out]) == 0
    assert "Read 31 = packed 30 + rejected 1; 1 shards" in capsys.readouterr().out
    assert main(["pack", out, "--out", new, "--reshard", "5"]) == 0
    assert main(["pack", "--check", new]) == 0
    assert "All 5 shards" in capsys.readouterr().out
    with (tmp_path / "new" / "shard-000003.tar").open("r+b") as file:
        file.seek(600)
        byte = file.read(1)[0]
        file.seek(600)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SystemExit) as stop:
        main(["pack", "--check", new])
    assert stop.value.code == 1
    assert "shard-000003.tar: another SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none", "--out", "{}/out"], "There is no"),
        (["{}/empty", "--out", "{}/out"], "holds no file that could be packed"),
        (["{}/bad.csv", "--out", "{}/out"], "has the columns a, b; wanted at least one of image"),
        (["{}/both.csv", "--out", "{}/out"], "not both text and caption"),
        (["{}/head.csv", "--out", "{}/out"], "holds no row"),
        (["{}/x.pdf", "--out", "{}/out"], "neither a folder"),
        (["{}/x.tar", "--out", "{}/out"], "give --reshard N"),
        (["{}/empty", "--out", "{}/out", "--reshard", "2"], "holds no shard"),
        (["{}/none.tar", "--out", "{}/out", "--reshard", "2"], "no shard matches"),
        (["{}/in", "--out", "{}/out", "--reshard", "0"], "at least 1"),
        (["{}/in"], "give --out"),
        (["{}/in", "--out", "{}/in"], "another folder"),
        (["{}/in", "--out", "{}/out", "--workers", "0"], "at least 1"),
        (["{}/in", "--out", "{}/out", "--shard_size", "0"], "at least 1 MB"),
        (["{}/in", "--check", "--overwrite"], "--check only reads"),
        (["{}/in", "--out", "{}/out", "--root", "{}"], "are for torchvision:NAME"),
        (["{}/captions.csv", "--out", "{}/out"], "a row for each caption"),
        (["{}/twice.csv", "--out", "{}/out"], "give each once"),
        (["{}/in", "--check"], "has no manifest.json"),
    ],
)
def test_wrong_use_is_one_sentence(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "both.csv").write_text("text,caption\n1,2\n")
    (tmp_path / "head.csv").write_text("text\n")
    (tmp_path / "captions.csv").write_text("image,captions\na.png,b\n")
    (tmp_path / "twice.csv").write_text("text,a,A\nb,1,2\n")
    for name in ("x.pdf", "x.tar"):
        (tmp_path / name).write_bytes(b"")
    assert main(["pack", *(text.format(tmp_path) for text in arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "out" / "manifest.json").exists()


def test_more_shards_than_samples_are_refused(tmp_path, make_shard):
    shard = make_shard([("k.png", picture(1))])
    with pytest.raises(PackError, match="cannot make 2 shards of 1 samples"):
        pack(ShardSource(str(shard)), tmp_path / "out", ByCount(2))
    assert pack(ShardSource(str(shard)), tmp_path / "out", ByCount(1)).num_samples == 1


def test_every_source_plans_the_same_twice(folder, tables, tmp_path):
    pack(FolderSource(folder), tmp_path / "out", SMALL)
    sources: list[Source] = [
        FolderSource(folder),
        TableSource(tables["csv"]),
        TableSource(tables["jsonl"]),
        ShardSource(str(tmp_path / "out")),
        DatasetSource([(Image.new("RGB", (2, 2)), 3)], members_of_picture),
    ]
    ours = {kind for kind in Source.__subclasses__() if "datamodules.pack." in kind.__module__}
    assert {type(source) for source in sources} == ours
    for source in sources:
        plan = source.plan()
        items = list(plan.items)
        assert sum(isinstance(item, Draft) for item in items) == plan.num_drafts
        assert list(source.plan().items) == items
        draft = random.choice([item for item in items if isinstance(item, Draft)])
        other = Draft(draft.source, draft.name, {**draft.members, "txt": b"another"})
        assert draft.stamp() != other.stamp()
