"""Two ranks with different modalities train as one process with the samples of both."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.fusion.tasks.ranks_driver import DIRECTIONS, SIZES, STEPS

ROOT = Path(__file__).parents[3]
BAR = 1e-10


def drive(folder: Path, device: str):
    """Case to the record of each rank; and what the driver said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fusion.tasks.ranks_driver", str(folder), device],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
        capture_output=True,
        text=True,
    )
    records = defaultdict(list)
    for path in sorted(folder.glob("*.pt")):
        records[path.stem.split("-")[0]].append(torch.load(path, weights_only=True))
    said = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    return records, said | {"driver": done.stderr}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return drive(tmp_path_factory.mktemp("ranks"), "cpu")


def difference(one: dict, other: dict, step: int = -1) -> float:
    weights = one["weights"][step], other["weights"][step]
    return max(float((weights[0][n] - weights[1][n]).abs().max()) for n in weights[0])


@pytest.mark.parametrize(
    ("case", "alone"), [("two", "one"), ("ring", "one"), ("parts", "patterns")]
)
def test_two_ranks_train_as_one_process_with_all_samples(found, case, alone):
    records, said = found
    assert case not in said, said.get(case)
    (first, second), (whole,) = records[case], records[alone]
    assert first["drawn"] == second["drawn"] == whole["drawn"]
    assert {name for drawn in whole["drawn"] for name in drawn} == set(DIRECTIONS)
    for step in range(STEPS):
        assert difference(first, second, step) == 0
        assert difference(first, whole, step) < BAR
        mean = (first["losses"][step] + second["losses"][step]) / 2
        assert mean == pytest.approx(whole["losses"][step], rel=1e-10)
    assert first["logged"] == second["logged"] == pytest.approx(whole["losses"][-1], rel=1e-5)
    moved = (whole["weights"][-1]["loss.log_logit_scale"] - torch.tensor(20.0).log()).abs()
    assert moved > 1e7 * BAR


def test_the_bar_bites(found):
    """Ranks that compare their own rows only end elsewhere."""
    records, _ = found
    assert difference(records["alone"][0], records["alone"][1]) == 0
    assert difference(records["alone"][0], records["one"][0]) > 1e6 * BAR
    assert difference(records["patterns"][0], records["one"][0]) > 1e6 * BAR


def test_ranks_draw_directions_alike_and_all_else_apart(found):
    for case in ("two", "unseeded"):
        first, second = found[0][case]
        assert first["drawn"] == second["drawn"]
        assert first["own_draws"] != second["own_draws"]


def test_a_bad_sample_on_one_rank_stops_the_step_of_all(found):
    (first, second), said = found[0]["bad"], found[1]["driver"]
    for record in (first, second):
        assert record["skipped"] == 1
        assert all(w.equal(record["weights"][0][n]) for n, w in record["weights"][1].items())
    assert difference(first, second) == 0
    assert said.count("no weight was changed") == 1
    assert f"Samples: rank1-sample{sum(SIZES) - 1} (image)." in said


def test_ranks_that_align_alike_or_not_start_from_the_same_weights(found):
    first, second = found[0]["aligned"]
    assert difference(first, second, 0) == difference(first, second) == 0


def test_a_strategy_that_waits_for_every_gradient_is_refused(found):
    assert "set trainer.strategy to ddp_find_unused_parameters_true" in found[1]["waits"]
    assert "waits" not in found[0]
