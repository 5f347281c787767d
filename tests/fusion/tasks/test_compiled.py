"""Compiled towers and blocks compute what they did, and are not compiled again at every step."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from fusion.solver import FixedPointSolver
from fusion.tasks.compiled import Compiled, layers_of
from fusion.tasks.pairing import Pairing
from tests.fusion.tasks.toys import Data, Losses, make_batch, make_task, make_trainer

SHARES = {"image->text": 1.0, "image+audio->text": 1.0}
NUM_STEPS, SETTLED = 10, 6


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make(tmp_path, **options):
    torch.manual_seed(0)
    task = make_task(tmp_path, dropout=0.0, **({"directions": SHARES} | options))
    for block in task.model.blocks:
        block.solver = FixedPointSolver()
        torch.nn.init.normal_(block.out.weight, std=0.3)
    task.log = lambda *args, **options: None
    return task


def ragged_batch(step: int) -> dict:
    """Of another size, other numbers of tokens and other absent sounds at every step."""
    torch.manual_seed(step)
    batch = make_batch(6 + step % 4)
    batch["masks"]["audio"][: 1 + step % 3] = False
    batch["masks"]["image"][:, 1] = bool(step % 2)
    return batch


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.zero_grad()
    loss = task.training_step(batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
    return found | {"the loss": loss.detach()}


def worst(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
def test_compiling_changes_nothing(tmp_path):
    shares = {"image+audio->text": 1.0}
    plain, compiled = make(tmp_path, directions=shares), make(tmp_path, directions=shares)
    Compiled("eager").setup(make_trainer(tmp_path), compiled, "fit")
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    batch = ragged_batch(0)
    assert worst(gradients(compiled, batch), gradients(plain, batch)) < 1e-4
    assert counters["stats"]["unique_graphs"] > 5


@pytest.mark.exhaustive
def test_nothing_changes_and_after_some_steps_nothing_is_compiled_again(tmp_path):
    plain, compiled = make(tmp_path), make(tmp_path)
    Compiled("aot_eager").setup(make_trainer(tmp_path), compiled, "fit")
    graphs = []
    for step in range(NUM_STEPS):
        batch = ragged_batch(step)
        assert worst(gradients(compiled, batch), gradients(plain, batch)) < 1e-4, step
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[SETTLED] == graphs[-1], graphs
    assert 10 < graphs[-1] < 100  # rounds and choices are graphs, of few kinds
    assert not counters["recompile_limit"]
    compiled.eval()
    with torch.no_grad():
        rows = [task.eval().model.embed(ragged_batch(3)) for task in (plain, compiled)]
    torch.testing.assert_close(*rows)


@pytest.mark.exhaustive
def test_a_compiled_run_trains_alike_in_parts_too(tmp_path):
    found = []
    for callbacks in ([], [Compiled("aot_eager")]):
        torch.manual_seed(0)
        task = make_task(tmp_path, directions=SHARES, pairing=Pairing(part_size=16))
        task.step_seed.seed = 5
        torch.manual_seed(1)
        losses, data = Losses(), Data()
        make_trainer(tmp_path, losses, *callbacks, max_epochs=1).fit(task, datamodule=data)
        found.append(losses.values)
    assert counters["stats"]["unique_graphs"] > 5
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_containers_are_not_called_and_so_not_compiled(tmp_path):
    task = make_task(tmp_path)
    tower = task.model.encoders["image"]
    tower.linear = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
    assert [type(part).__name__ for part in layers_of(task.model.encoders)] == ["Linear"] * 4


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor(tmp_path):
    plain, compiled = make(tmp_path), make(tmp_path)
    Compiled().setup(make_trainer(tmp_path), compiled, "fit")
    batch = ragged_batch(0)
    assert worst(gradients(compiled, batch), gradients(plain, batch)) < 1e-3
