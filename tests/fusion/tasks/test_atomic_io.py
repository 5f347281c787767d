"""Checkpoint files: kills, full disks and damage, and going on from what is left."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fusion.tasks import atomic_io
from fusion.tasks.atomic_io import AtomicCheckpointIO
from fusion.tasks.resuming import newest_checkpoint
from tests.fusion.tasks.checkpoints import NET, checkpoint, step_of
from tests.fusion.tasks.save_driver import OTHER, is_whole, temporary

ROOT = Path(__file__).parents[3]


def in_child(act: Callable[[], None]) -> int:
    """What a process of its own ends with: its exit code, or minus its signal."""
    child = os.fork()
    if child == 0:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def io() -> AtomicCheckpointIO:
    return AtomicCheckpointIO()


def test_the_last_two_are_kept(io, tmp_path):
    path = tmp_path / "runs" / "last.ckpt"
    for step in range(3):
        io.save_checkpoint(checkpoint(step), path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["last-before.ckpt", "last.ckpt"]
    assert (step_of(path), step_of(path.parent / "last-before.ckpt")) == (2, 1)
    assert io.load_checkpoint(path)["global_step"] == 2
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    for step in range(2):  # any other name has one file
        io.save_checkpoint(checkpoint(step), tmp_path / "model.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt", "runs"]
    io.remove_checkpoint(path)
    assert not path.exists()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_without_hard_links_the_last_two_are_kept_too(io, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "last.ckpt"
    for step in range(3):
        io.save_checkpoint(checkpoint(step), path)
    assert (step_of(path), step_of(tmp_path / "last-before.ckpt")) == (2, 1)


def test_a_damaged_file_does_not_take_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in range(2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), path)
    path.write_bytes(path.read_bytes()[:-100])
    AtomicCheckpointIO().save_checkpoint(checkpoint(2), path)
    assert (step_of(path), step_of(tmp_path / "last-before.ckpt")) == (2, 0)


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_leaves_whole_files(io, tmp_path, call, number, after):
    """SIGKILL right before or after the calls that a save is made of."""
    path = tmp_path / "last.ckpt"
    for step in range(2):
        io.save_checkpoint(checkpoint(step), path)
    real, calls = getattr(os, call), []

    def killed(*args):
        calls.append(args)
        if len(calls) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def act():
        setattr(os, call, killed)
        io.save_checkpoint(checkpoint(2), path)

    ended = in_child(act)
    assert ended == (0 if (call, number) == ("link", 2) else -signal.SIGKILL)
    assert step_of(path) in (1, 2) and step_of(tmp_path / "last-before.ckpt") in (0, 1)
    found = newest_checkpoint([tmp_path], NET)
    assert found is not None and step_of(found) >= 1
    assert not temporary(tmp_path)  # swept


def test_a_file_that_is_being_written_is_not_swept(io, tmp_path, monkeypatch):
    """Another process looks into the folder in the middle of a save."""
    real = torch.save

    def save(content, file):
        real(content, file)
        assert in_child(lambda: atomic_io.sweep(tmp_path)) == 0
        assert len(temporary(tmp_path)) == 1

    monkeypatch.setattr(torch, "save", save)
    io.save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    assert step_of(tmp_path / "last.ckpt") == 1 and not temporary(tmp_path)


@pytest.mark.skipif(not os.path.isdir(OTHER), reason="there is no second file system")
@pytest.mark.parametrize("make", [TorchCheckpointIO, AtomicCheckpointIO])
def test_only_lightning_copies_onto_the_final_name(make, tmp_path):
    """Negative control: with $TMPDIR elsewhere its move is a copy, which a kill cuts."""
    if os.stat(OTHER).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("the tests run on that file system")
    path = tmp_path / "last.ckpt"
    make().save_checkpoint(checkpoint(1), path)
    real = os.sendfile

    def half(out, source, offset, count):
        real(out, source, offset, os.fstat(source).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    with tempfile.TemporaryDirectory(dir=OTHER) as folder:

        def act():
            tempfile.tempdir, os.sendfile = folder, half
            make().save_checkpoint(checkpoint(2), path)

        ended = in_child(act)
    assert (ended, is_whole(path)) == (
        (-signal.SIGKILL, False) if make is TorchCheckpointIO else (0, True)
    )


def kill(folder: Path, num: int) -> dict:
    command = [sys.executable, "-m", "tests.fusion.tasks.save_driver", str(folder), str(num)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_runs_killed_while_they_save_go_on(tmp_path):
    found = kill(tmp_path, 5)
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, 0)


@pytest.mark.exhaustive
def test_a_hundred_kills(tmp_path):
    found = kill(tmp_path, 100)
    print(found)
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, 0)
    assert found["kills_in_a_save"] > 20


@pytest.fixture
def limit_files():
    """Sets the largest size of a file that this process may write: a disk that gets full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_file(io, tmp_path, limit_files):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    old, draw = path.read_bytes(), random.Random(0)
    for limit in (0, 1, len(old) - 1, *(draw.randrange(len(old)) for _ in range(10))):
        limit_files(limit)
        with pytest.raises(OSError, match="File too large") as error:
            io.save_checkpoint(checkpoint(2), path)
        limit_files(resource.RLIM_INFINITY)
        assert error.value.filename == str(path)
        assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    io.save_checkpoint(checkpoint(2), path)
    assert step_of(path) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_call_that_fails_leaves_the_old_file(io, tmp_path, call, monkeypatch):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    old = path.read_bytes()

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output"):
            io.save_checkpoint(checkpoint(2), path)
    assert path.read_bytes() == old and not temporary(tmp_path)


def peak(act: Callable[[], None]) -> int:
    """Bytes by which a process of its own grows."""
    reading, writing = os.pipe()

    def measure():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        act()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writing, str(1024 * grown).encode())

    assert in_child(measure) == 0
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return int(pipe.read())


def test_a_save_is_streamed(tmp_path):
    """Lightning, as a control, makes the whole file in memory first, and a copy of it."""
    size = 128 * 2**20
    # The peak is that of the process's life: what earlier tests used has to be exceeded.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    content = checkpoint(1, (size + used - now) // 4)
    assert peak(lambda: AtomicCheckpointIO().save_checkpoint(content, tmp_path / "a")) < size / 4
    assert peak(lambda: TorchCheckpointIO().save_checkpoint(content, tmp_path / "b")) > size


def test_remote_paths_are_left_to_lightning(io):
    io.save_checkpoint(checkpoint(4), "memory://run/last.ckpt")
    assert io.load_checkpoint("memory://run/last.ckpt")["global_step"] == 4
    io.remove_checkpoint("memory://run/last.ckpt")
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint("memory://run/last.ckpt")
