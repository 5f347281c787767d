"""Runs that SIGTERM stops, against runs that nothing stopped."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from PIL import Image

from datamodules.writer import write_shard
from fusion.checkpoint import read_plain
from fusion.tasks.atomic_io import AtomicCheckpointIO
from fusion.tasks.preemption import STOPPED
from tests.datamodules.test_resume import last_of, log
from tests.fusion.tasks.toys import Data, make_task, make_trainer

ROOT = Path(__file__).parents[3]
TERM, SECONDS = int(signal.SIGTERM), 30
SETTINGS = {"batch_size": 24, "epochs": 2, "workers": 0, "ranks": 1}  # 4 steps in an epoch
SHORT = {"batch_size": 200, "epochs": 3}  # one
PARTS = {"batch_size": 24, "epochs": 2, "accumulate": 3}  # 3 and a rest of 1
TWO = {"ranks": 2, "workers": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """90 samples in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        samples = []
        for index in range(30 * number, 30 * number + 30):
            picture = io.BytesIO()
            Image.new("RGB", (4, 4), (index, 2 * index, 200 - index)).save(picture, "PNG")
            members = {"png": picture.getvalue(), "txt": f"thing {index}".encode()}
            samples.append((f"s{index:03d}", members))
        write_shard(samples, folder / f"s{number}.tar")
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def drive(folder: Path, shards: list[str], runs: dict[str, dict]) -> Path:
    """Runs `stop_driver.py`; the folder of each run has its name."""
    todo = [
        {"signals": [], **SETTINGS, **run, "folder": str(folder / name), "shards": shards}
        for name, run in runs.items()
    ]
    (folder / "runs.json").write_text(json.dumps({"runs": todo}))
    command = [sys.executable, "-m", "tests.fusion.tasks.stop_driver", str(folder / "runs.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def check(unbroken: Path, stopped: Path) -> None:
    """It was stopped once, all ranks alike and soon; and ended as the unbroken run did."""
    codes = json.loads((stopped / "codes.json").read_text())
    ranks = len(codes[0])
    assert codes == [[STOPPED] * ranks, [0] * ranks]
    assert max(json.loads((stopped / "seconds.json").read_text())) < SECONDS
    assert read_plain(stopped / "last.ckpt")["global_step"] > 0
    for rank in range(ranks):
        assert last_of(log(stopped, rank)) == last_of(log(unbroken, rank))
        steps = [line["step"] for line in log(stopped, rank)]
        assert steps == [line["step"] for line in log(unbroken, rank)]  # none twice
        for name in ("weights", "validated"):
            assert (stopped / f"{name}{rank}").read_text() == (
                unbroken / f"{name}{rank}"
            ).read_text()
    state, wanted = (read_plain(run / "model.ckpt")["state_dict"] for run in (stopped, unbroken))
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


RUNS = {
    "plain": {},
    "plain-1": {"signals": [[1, 0, TERM]]},
    "plain-3": {"signals": [[3, 0, TERM]], "again": True},
    "plain-7": {"signals": [[7, 0, TERM]]},
    "short": SHORT,
    "short-0": {**SHORT, "signals": [[0, 0, TERM]]},
    "parts": PARTS,
    "parts-0": {**PARTS, "signals": [[0, 0, TERM]]},
    "stock-1": {"signals": [[1, 0, TERM]], "preemption": False},
    "two": TWO,
    "two-first": {**TWO, "signals": [[2, 0, TERM]], "again": True},
    "two-second": {**TWO, "signals": [[5, 1, TERM]]},
    "two-both": {**TWO, "signals": [[3, 0, TERM], [3, 1, TERM]]},
}


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> Path:
    """All runs that are not exhaustive, one after the other."""
    return drive(tmp_path_factory.mktemp("runs"), shards, RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["plain-1", "plain-3", "short-0", "parts-0"])
def test_a_run_that_is_told_to_stop_goes_on_exactly(runs, run):
    """Within an epoch, at its end, and while gradients are accumulated; told twice too."""
    check(runs / run.split("-")[0], runs / run)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["two-first", "two-second", "two-both"])
def test_two_ranks_stop_together(runs, run):
    check(runs / "two", runs / run)


@pytest.mark.slow
def test_a_run_at_its_end_ends(runs):
    assert json.loads((runs / "plain-7" / "codes.json").read_text()) == [[0]]
    assert (runs / "plain-7" / "weights0").read_text() == (runs / "plain" / "weights0").read_text()
    assert not (runs / "plain-7" / "last.ckpt").exists()


@pytest.mark.slow
def test_lightning_alone_saves_nothing_and_says_that_all_is_well(runs):
    """Negative control: exit code 0, in the middle of a run, without a checkpoint."""
    stopped = runs / "stock-1"
    assert json.loads((stopped / "codes.json").read_text()) == [[0]]
    assert len(log(stopped)) == 2 and not list(stopped.glob("*.ckpt"))


@pytest.mark.exhaustive
def test_at_every_step(shards, tmp_path):
    cases = {"plain": ({}, 7), "short": (SHORT, 2), "parts": (PARTS, 3)}
    todo = {name: run for name, (run, _) in cases.items()}
    for name, (run, num) in cases.items():
        todo |= {f"{name}-{step}": {**run, "signals": [[step, 0, TERM]]} for step in range(num)}
    drive(tmp_path, shards, todo)
    for name in set(todo) - set(cases):
        check(tmp_path / name.split("-")[0], tmp_path / name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_two_ranks_ten_times(shards, tmp_path, ranks):
    """Each at another step."""
    todo: dict[str, dict] = {"two": {**TWO, "batch_size": 16}}
    for step in range(10):
        signals = [[step, rank, TERM] for rank in ranks]
        todo[f"two-{step}"] = {**todo["two"], "signals": signals}
    drive(tmp_path, shards, todo)
    for step in range(10):
        check(tmp_path / "two", tmp_path / f"two-{step}")


@pytest.mark.exhaustive
def test_lightning_alone_hangs(shards, tmp_path):
    """Negative control: the second of two ranks is told, and neither ends."""
    drive(tmp_path, shards, {"two": {**TWO, "signals": [[2, 1, TERM]], "preemption": False}})
    assert json.loads((tmp_path / "two" / "codes.json").read_text())[0] == [-9, -9]


@pytest.mark.filterwarnings("ignore")
def test_files_are_written_by_ours_unless_another_is_given(tmp_path):
    class Own(TorchCheckpointIO):
        pass

    for plugins, wanted in (([], AtomicCheckpointIO), ([Own()], Own)):
        trainer = make_trainer(tmp_path, max_epochs=1, plugins=plugins)
        trainer.fit(make_task(tmp_path), datamodule=Data())
        assert type(trainer.strategy.checkpoint_io) is wanted


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_checkpoints_ends_without_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    task = make_task(tmp_path / "cache")
    trainer: Trainer = make_trainer(tmp_path, max_epochs=1)
    step = type(task).training_step

    def told(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(type(task), "training_step", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        trainer.fit(task, datamodule=Data())
    assert stop.value.code == STOPPED and trainer.global_step == 1
    assert "SIGTERM after step 1; nothing was saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.rglob("*.ckpt"))
