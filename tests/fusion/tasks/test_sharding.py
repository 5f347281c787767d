"""Towers and blocks that are split over two ranks train as on one process."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from fusion.tasks.sharding import is_sharded
from tests.fusion.tasks.ranks_driver import STEPS
from tests.fusion.tasks.sharding_driver import CLIP
from tests.fusion.tasks.toys import make_task

ROOT = Path(__file__).parents[3]
BAR = 1e-10


def drive(folder: Path, device: str):
    """Case to the record of each rank, and what went wrong; and the folder."""
    subprocess.run(
        [sys.executable, "-m", "tests.fusion.tasks.sharding_driver", str(folder), device],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
        capture_output=True,
    )
    records = defaultdict(list)
    for path in sorted(folder.glob("*.pt")):
        records[path.stem.split("-")[0]].append(torch.load(path, weights_only=True))
    said = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    return records, said, folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return drive(tmp_path_factory.mktemp("split"), "cpu")


def worst(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_ranks_with_half_of_the_weights_train_as_one_process(found):
    """Ranks of 6 and 10 samples; the first has no sound, the second no picture at first."""
    records, said, _ = found
    assert {name.split("-")[0] for name in said} == {"aligned", "parts", "columns", "folder"}
    (first, second), (whole,) = records["two"], records["one"]
    more, (alone,) = records["more_two"], records["more_one"]
    assert sum(part["num_local"] for part in more) == alone["num_local"]
    assert max(part["num_local"] for part in more) < 0.6 * alone["num_local"]
    for step in range(STEPS):
        assert worst(first["weights"][step], second["weights"][step]) == 0
        assert worst(first["weights"][step], whole["weights"][step]) < BAR
        assert worst(more[0]["gradients"][step], alone["gradients"][step]) < BAR
        mean = (first["losses"][step] + second["losses"][step]) / 2
        assert mean == pytest.approx(whole["losses"][step], rel=1e-10)
    norm = torch.cat([g.flatten() for g in alone["gradients"][0].values()]).norm()
    assert norm > 10 * CLIP  # so that what was clipped is compared as well


def test_the_bar_bites(found):
    """Temperatures of each rank's own, where the losses are not averaged."""
    records = found[0]
    got, wanted = records["apart"][0]["weights"][-1], records["one"][0]["weights"][-1]
    assert abs(got["loss.log_logit_scale"] - wanted["loss.log_logit_scale"]).max() > 1e4 * BAR


def test_a_bad_sample_on_one_rank_stops_the_step_of_all(found):
    for record in found[0]["bad"]:
        assert record["skipped"] == 1
        assert worst(*record["weights"][:2]) == 0
        assert all(value.isfinite().all() for value in record["weights"][-1].values())


def test_a_checkpoint_is_an_ordinary_file_and_a_run_goes_on_from_it(found, tmp_path):
    records, _, folder = found
    content = torch.load(folder / "middle.ckpt", weights_only=True)
    task = make_task(tmp_path, loss=None).double()
    weights = {n: v for n, v in content["state_dict"].items() if n.startswith("model.")}
    task.model.load_state_dict({n.removeprefix("model."): v for n, v in weights.items()})
    after = records["two"][0]["weights"][1]
    assert all(p.equal(after[f"model.{n}"]) for n, p in task.model.named_parameters())
    resumed, unbroken = (records[case][0]["weights"][-1] for case in ("resumed", "two"))
    assert len(records["resumed"][0]["weights"]) == 1
    assert worst(resumed, unbroken) == 0


@pytest.mark.parametrize(
    ("case", "advice"),
    [
        ("aligned", "set align: null"),
        ("parts", "keep them whole (ddp)"),
        ("columns", "tensor_parallel_size: 1"),
        ("folder", "save_distributed_checkpoint: false"),
    ],
)
def test_what_does_not_work_is_refused_in_a_sentence(found, case, advice):
    for rank in (0, 1):
        said = found[1][f"{case}-{rank}"]
        assert said.startswith("ValueError: ") and advice in said


def test_a_model_of_one_process_is_whole(tmp_path):
    assert not is_sharded(make_task(tmp_path))
