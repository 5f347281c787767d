"""Runs that are killed with SIGKILL and resumed, against runs that never were."""

import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.writer import write_shard

DRIVER = Path(__file__).parent / "kill_driver.py"
ROOT = Path(__file__).parents[2]
EPOCHS, BATCH, SAMPLES = 2, 8, 90
STEPS = EPOCHS * -(-SAMPLES // BATCH)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """90 samples and 6 that cannot be read, in five shards of uneven sizes."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    sizes, made = (5, 40, 1, 30, 14), 0
    for number, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            picture = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (4, 4, 3), np.uint8)).save(picture, "PNG")
            captions = json.dumps({"captions": [f"thing {made}", f"object {made}"]})
            members = {"png": picture.getvalue(), "txt": f"thing {made}".encode()}
            samples.append((f"s{made:03d}", {**members, "json": captions.encode()}))
            made += 1
        write_shard(samples, folder / f"s{number}.tar")
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def run(folder: Path, shards, window=None, kills=(), layouts=((1, 0),), **settings) -> dict:
    """What `kill_driver.py` is told; layouts are ranks and workers of one attempt after another."""
    return {
        "folder": str(folder),
        "shards": shards,
        "layouts": layouts,
        "window": window,
        "kills": list(kills),
        "epochs": EPOCHS,
        "batch_size": BATCH,
        **settings,
    }


def drive(folder: Path, runs: list[dict]) -> None:
    spec = folder / "runs.json"
    spec.write_text(json.dumps({"runs": runs}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(spec)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


def log(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / f"log{rank}.jsonl").read_text().splitlines()]


def last_of(lines: list[dict]) -> dict[int, dict]:
    """Step -> its line in the last attempt that took it, without the number of the attempt."""
    return {line["step"]: {**line, "attempt": None} for line in lines}


def check(unbroken: Path, broken: Path, num_kills: int, ranks: int = 1) -> None:
    """Every step of every attempt is that of the unbroken run, and so are the last weights."""
    assert len(list(broken.glob("killed*"))) == num_kills
    keys: dict[int, Counter] = {epoch: Counter() for epoch in range(EPOCHS)}
    for rank in range(ranks):
        wanted, got = last_of(log(unbroken, rank)), log(broken, rank)
        assert all({**line, "attempt": None} == wanted[line["step"]] for line in got)
        assert last_of(got) == wanted
        weights = f"weights{rank}"
        assert (broken / weights).read_text() == (unbroken / weights).read_text()
        for line in last_of(got).values():
            keys[line["epoch"]].update(key.split()[0] for key in line["keys"])
    for epoch in keys.values():
        assert len(epoch) == SAMPLES and set(epoch.values()) == {1}


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> Path:
    """All runs of this file that are not exhaustive, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    two = ((2, 1),)
    stock = {"stock": True, "length": 0}
    sized = {"stock": True, "length": -(-SAMPLES // BATCH)}
    todo = [
        run(folder / "plain", shards),
        run(folder / "plain-7", shards, None, [7]),
        run(folder / "mixed", shards, 2, (), ((1, 2),)),
        run(folder / "mixed-16", shards, 2, [16], ((1, 2),)),
        run(folder / "mixed-2-5-9", shards, 2, [2, 5, 9], ((1, 2),)),
        run(folder / "two", shards, 2, (), two),
        run(folder / "two-8-13", shards, 2, [8, 13], two),
        run(folder / "elastic", shards, 2, [4, 8, 14], ((1, 0), (1, 4), (2, 2), (1, 1))),
        run(folder / "unseeded", shards, step_seed=False),
        run(folder / "unseeded-7", shards, None, [7], step_seed=False),
        run(folder / "stock", shards, **stock),
        run(folder / "stock-7", shards, None, [7], **stock),
        run(folder / "sized", shards, **sized),
        run(folder / "sized-7", shards, None, [7], **sized),
    ]
    drive(folder, todo)
    return folder


@pytest.mark.parametrize(
    ("unbroken", "broken", "num_kills"),
    [("plain", "plain-7", 1), ("mixed", "mixed-16", 1), ("mixed", "mixed-2-5-9", 3)],
)
def test_killed_runs_resume_exactly(runs, unbroken, broken, num_kills):
    check(runs / unbroken, runs / broken, num_kills)
    assert log(runs / "mixed") != log(runs / "plain")


def test_two_ranks_resume_exactly(runs):
    check(runs / "two", runs / "two-8-13", 2, ranks=2)


def test_a_run_resumes_with_other_workers_and_ranks(runs):
    """1 x 0 -> 1 x 4 -> 2 x 2 -> 1 x 1 ranks and workers, with one batch of all ranks."""
    wanted = {line["step"]: line["keys"] for line in log(runs / "mixed")}
    taken: dict[tuple[int, int], list[str]] = {}
    for rank in range(2):
        for line in log(runs / "elastic", rank):
            taken.setdefault((line["attempt"], line["step"]), []).extend(line["keys"])
    assert {attempt for attempt, _ in taken} == {0, 1, 2, 3}
    # A rank that was killed leaves no line of that step; the step was taken again.
    whole = {at: keys for at, keys in taken.items() if len(keys) == len(wanted[at[1]])}
    assert {step for _, step in whole} == set(wanted)
    assert all(keys == wanted[step] for (_, step), keys in whole.items())


@pytest.mark.parametrize("stock", ["unseeded", "stock", "sized"])
def test_stock_parts_do_not_resume_exactly(runs, stock):
    """Negative controls: without seeded steps; and WebDataset's pipeline in Lightning."""
    first = [key for line in log(runs / stock) if line["epoch"] == 0 for key in line["keys"]]
    assert len(first) == SAMPLES  # without a kill it covers the epoch
    with pytest.raises(AssertionError):
        check(runs / stock, runs / f"{stock}-7", 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_ten_random_kills(shards, tmp_path, workers, window):
    steps, layouts = random.Random(workers).sample(range(STEPS), 10), ((1, workers),)
    todo = [run(tmp_path / "unbroken", shards, window, (), layouts)]
    todo += [run(tmp_path / f"k{step}", shards, window, [step], layouts) for step in steps]
    drive(tmp_path, todo)
    for step in steps:
        check(tmp_path / "unbroken", tmp_path / f"k{step}", 1)
