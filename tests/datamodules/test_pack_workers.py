"""A process that dies takes its sample with it, and nothing else."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from datamodules.pack import BySize, FolderSource, PackError, pack
from datamodules.pack.source import Draft, Plan
from datamodules.pack.verdicts import judge_all
from datamodules.pack.workers import Workers
from datamodules.shards import read_shards

SMALL = BySize(12_000)


@pytest.fixture
def folder(tmp_path) -> Path:
    """20 texts."""
    (tmp_path / "in").mkdir()
    for number in range(20):
        (tmp_path / "in" / f"{number:02d}.txt").write_text(f"number {number}")
    return tmp_path / "in"


def rejected_of(out: Path) -> dict[str, str]:
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return {item["source"]: item["reason"] for item in map(json.loads, lines)}


class Crash(bytes):
    """Ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (3,)


def drafts(count: int, crashing: set[int]) -> list[Draft]:
    return [
        Draft(f"{i}", f"{i}", {"txt": Crash(b"x") if i in crashing else b"fine %d" % i})
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "crashing"), [(8, {5}), pytest.param(30, {0, 5, 6, 29}, marks=pytest.mark.slow)]
)
def test_a_process_that_dies_costs_one_sample(folder, tmp_path, monkeypatch, count, crashing):
    items = drafts(count, crashing)
    monkeypatch.setattr(FolderSource, "plan", lambda self: Plan(count, iter(items)))
    monkeypatch.setattr(Draft, "stamp", lambda self: self.source.encode())
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL, num_workers=2)
    assert (packed.num_samples, packed.num_rejected) == (count - len(crashing), len(crashing))
    reason = "the process that decoded it died, of a crash or for want of memory"
    assert rejected_of(tmp_path / "out") == dict.fromkeys(map(str, sorted(crashing)), reason)
    assert [s.key for s in read_shards([tmp_path / "out" / "*.tar"])] == [
        str(i) for i in range(count) if i not in crashing
    ]


def test_a_process_killed_from_outside_costs_nothing(folder, tmp_path, monkeypatch):
    pack(FolderSource(folder), tmp_path / "whole", SMALL)
    submit, submitted = Workers.submit, []

    def submit_and_kill(self, draft):
        submitted.append(draft)
        if len(submitted) == 12:
            os.kill(next(iter(self._pool._processes)), signal.SIGKILL)
        return submit(self, draft)

    monkeypatch.setattr(Workers, "submit", submit_and_kill)
    packed = pack(FolderSource(folder), tmp_path / "out", SMALL, num_workers=2)
    assert packed.num_rejected == 0 and len(submitted) == 20
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_without_the_second_try_a_dead_process_ends_the_run(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(Workers, "verdict", lambda self, draft, submitted: submitted.result())
    with pytest.raises(Exception, match="terminated abruptly"):
        list(judge_all(drafts(6, {2}), 2))


def test_when_no_process_starts_the_run_ends(monkeypatch):
    monkeypatch.setattr("datamodules.pack.workers._begin", partial(os._exit, 3))
    with pytest.raises(PackError, match="no process can be started"):
        list(judge_all(drafts(3, set()), 2))
