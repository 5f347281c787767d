import math

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from encoders.base import Encoder, EncoderOutput
from fusion.alignment import Alignment
from fusion.block import FusionBlock
from fusion.model import FusionModel
from fusion.solver import FixedPointSolver
from fusion.subsets import Direction
from fusion.tasks import ContrastiveTask

NAMES = ("image", "text", "audio")
ALIGN = Alignment("text", num_steps=20, batch_size=32)


class Toy(Encoder):
    def __init__(self, modality: str, frozen: bool = False) -> None:
        super().__init__(modality, 8, torch.as_tensor)
        self.linear = nn.Linear(8, 8)
        if frozen:
            self.freeze()

    def forward(self, inputs, mask):
        return EncoderOutput(self.linear(inputs), mask, torch.zeros(*mask.shape, 3))


def small_block(dim: int) -> FusionBlock:
    return FusionBlock(dim, num_heads=2, num_slots=2, solver=FixedPointSolver(max_iters=2))


def make_task(tmp_path, frozen=(), **options) -> ContrastiveTask:
    encoders = {name: Toy(name, name in frozen) for name in NAMES}
    model = FusionModel(encoders, dim=8, block=small_block, hidden=16)
    return ContrastiveTask(model, cache=str(tmp_path), **options)


def make_batch(num: int = 32, shared: float = 0.0, frozen=()) -> dict:
    """Random inputs; the share `shared` of their values is common to a sample's modalities."""
    common = torch.randn(num, 2, 8)
    inputs = {n: shared * common + (1 - shared) * torch.randn(num, 2, 8) for n in NAMES}
    return {
        "inputs": inputs,
        "masks": {name: torch.ones(num, 2, dtype=torch.bool) for name in NAMES},
        "positions": {name: torch.zeros(num, 2, 3) for name in frozen},
        "group_id": torch.randperm(10**6)[:num],
        "weight": torch.ones(num),
    }


class Data(LightningDataModule):
    """A few batches in memory."""

    def __init__(self, frozen=()) -> None:
        super().__init__()
        self.batches = [make_batch(shared=0.8, frozen=frozen) for _ in range(5)]

    def train_batches(self):
        return iter(self.batches)

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches[:1], batch_size=None)


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def make_trainer(tmp_path, losses: Losses, max_epochs: int = 8) -> Trainer:
    return Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def mean_loss(task: ContrastiveTask, direction: Direction, num_steps: int = 100) -> float:
    """Of the second half of a training in which no sample comes twice."""
    task.shares = {direction: 1.0}
    task.log = lambda *args, **options: None  # there is no trainer
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    losses = []
    for _ in range(num_steps):
        loss = task.training_step(make_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[num_steps // 2 :]) / (num_steps - num_steps // 2)


@pytest.mark.parametrize(
    "direction", [Direction(("image",), ("text",)), Direction(("image", "audio"), ("text",))]
)
def test_nothing_can_be_learned_from_independent_modalities(direction, tmp_path):
    task = make_task(tmp_path, logit_scale=5.0)
    assert mean_loss(task, direction) > math.log(32) - 0.02


def test_a_query_that_holds_its_target_is_learned(tmp_path):
    leaky = Direction(("image", "text"), ("text",))  # which parse_direction refuses
    assert mean_loss(make_task(tmp_path, logit_scale=5.0), leaky) < math.log(32) - 0.5


def test_training_lowers_the_loss(tmp_path):
    losses, frozen = Losses(), ("image", "text")
    task = make_task(tmp_path, frozen, align=ALIGN, lr=1e-2, num_warmup=2)
    tower = {name: value.clone() for name, value in task.model.encoders["image"].named_parameters()}
    trainer = make_trainer(tmp_path, losses)
    trainer.fit(task, datamodule=Data(frozen))
    assert len(losses.values) == 40 and all(map(math.isfinite, losses.values))
    assert sum(losses.values[-5:]) < 0.9 * sum(losses.values[:5])
    assert trainer.callback_metrics["val/image->text/R@1"] > 5 / 32
    assert trainer.callback_metrics["val/image+audio->text/R@10"] > 15 / 32
    for name, value in task.model.encoders["image"].named_parameters():
        assert value.equal(tower[name])
    assert task.model.projection("text").linear.weight.equal(torch.eye(8))


def test_aligned_projections_hold_still_while_the_rest_learns(tmp_path):
    task = make_task(tmp_path, ("image", "text"), align=ALIGN, lr=1e-2, num_warmup=2)
    data, seen = Data(("image", "text")), []
    task.on_train_start = lambda: seen.append({n: v.clone() for n, v in task.state_dict().items()})
    make_trainer(tmp_path, Losses()).fit(task, datamodule=data)
    (before,) = seen
    assert all(before[f"model.projections.{n}.mlp.1.shrink.weight"].any() for n in task.held)
    moved = {name for name, value in task.state_dict().items() if not value.equal(before[name])}
    parts = ("model.projections.image.", "model.projections.text.", "model.encoders.")
    assert {n for n in moved if n.startswith(parts)} <= {
        n for n in moved if n.startswith("model.encoders.audio.")
    }
    assert any(n.startswith("model.blocks.") for n in moved)
    assert any(n.startswith("model.projections.audio.") for n in moved)


def test_a_checkpoint_of_the_command_line_is_plain_data(runs):
    for run in runs:
        assert "state_dict" in torch.load(run / "model.ckpt", weights_only=True)


def test_a_checkpoint_is_plain_data(tmp_path):
    task, path = make_task(tmp_path), tmp_path / "model.ckpt"
    trainer = make_trainer(tmp_path, Losses(), max_epochs=1)
    trainer.fit(task, datamodule=Data())
    trainer.save_checkpoint(path, weights_only=True)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == task.state_dict().keys()
    assert all(state[name].equal(value) for name, value in task.state_dict().items())


def test_an_aligned_run_goes_on_from_its_checkpoint(tmp_path):
    frozen, path = ("image", "text"), tmp_path / "last.ckpt"
    data = Data(frozen)
    trainer = make_trainer(tmp_path, Losses(), max_epochs=1)
    trainer.fit(make_task(tmp_path, frozen, align=ALIGN), datamodule=data)
    trainer.save_checkpoint(path)
    losses, task = Losses(), make_task(tmp_path, frozen, align=ALIGN)
    make_trainer(tmp_path, losses, max_epochs=2).fit(
        task, datamodule=data, ckpt_path=path, weights_only=False
    )
    assert len(losses.values) == 5
    assert task.model.projection("text").linear.weight.equal(torch.eye(8))


def gradients(task: ContrastiveTask, direction: str, frozen) -> dict[str, bool]:
    """Modality to whether its tower or projection got a gradient."""
    query, target = direction.split("->")
    task.shares = {Direction((query,), (target,)): 1.0}
    task.log = lambda *args, **options: None
    task.training_step(make_batch(frozen=frozen)).backward()
    towers = {n: (task.model.encoders[n], task.model.projection(n)) for n in NAMES}
    return {
        name: any(p.grad is not None and p.grad.any() for part in parts for p in part.parameters())
        for name, parts in towers.items()
    }


@pytest.mark.parametrize("direction", ["audio->image", "image->audio"])
def test_newcomers_come_to_meet_those_that_are_aligned(direction, tmp_path):
    frozen = ("image", "text")
    got = gradients(make_task(tmp_path, frozen), direction, frozen)
    assert got == {"image": False, "text": False, "audio": True}


def test_those_that_are_aligned_train_among_themselves(tmp_path):
    frozen = ("image", "text")
    got = gradients(make_task(tmp_path, frozen), "image->text", frozen)
    assert got == {"image": True, "text": True, "audio": False}
    assert all(gradients(make_task(tmp_path), "audio->image", ())[n] for n in ("audio", "image"))


def test_samples_that_lack_a_side_take_no_part(tmp_path):
    task = make_task(tmp_path, directions={"audio->image": 1.0}).eval()
    task.log = lambda *args, **options: None
    batch = make_batch(8)
    batch["masks"]["audio"][4:] = False
    few = {k: {n: v[:4] for n, v in batch[k].items()} for k in ("inputs", "masks", "positions")}
    expected = task.training_step({**batch, **few, "group_id": batch["group_id"][:4]})
    torch.testing.assert_close(task.training_step(batch), expected)
    batch["masks"]["audio"][1:] = False
    assert task.training_step(batch) == 0  # one sample has nothing to be told from
