"""Small towers, batches and trainers for tests of tasks."""

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from encoders.base import Encoder, EncoderOutput
from fusion.block import FusionBlock
from fusion.model import FusionModel
from fusion.solver import FixedPointSolver
from fusion.tasks import ContrastiveTask

NAMES = ("image", "text", "audio")


class Toy(Encoder):
    def __init__(self, modality: str, frozen: bool = False) -> None:
        super().__init__(modality, 8, torch.as_tensor)
        self.linear = nn.Linear(8, 8)
        if frozen:
            self.freeze()

    def forward(self, inputs, mask):
        return EncoderOutput(self.linear(inputs), mask, mask.new_zeros(*mask.shape, 3).float())


def small_block(dim: int) -> FusionBlock:
    return FusionBlock(dim, num_heads=2, num_slots=2, solver=FixedPointSolver(max_iters=2))


def make_task(tmp_path, frozen=(), dropout: float = 0.1, **options) -> ContrastiveTask:
    encoders = {name: Toy(name, name in frozen) for name in NAMES}
    model = FusionModel(encoders, dim=8, block=small_block, hidden=16, dropout=dropout)
    return ContrastiveTask(model, cache=str(tmp_path), **options)


def make_batch(num: int = 32, shared: float = 0.0, frozen=()) -> dict:
    """Random inputs; the share `shared` of their values is common to a sample's modalities."""
    common = torch.randn(num, 2, 8)
    inputs = {n: shared * common + (1 - shared) * torch.randn(num, 2, 8) for n in NAMES}
    return {
        "keys": [f"sample{index}" for index in range(num)],
        "inputs": inputs,
        "masks": {name: torch.ones(num, 2, dtype=torch.bool) for name in NAMES},
        "positions": {name: torch.zeros(num, 2, 3) for name in frozen},
        "group_id": torch.randperm(10**6)[:num],
        "weight": torch.ones(num),
    }


class Data(LightningDataModule):
    """A few batches in memory."""

    def __init__(self, frozen=(), batches=None) -> None:
        super().__init__()
        made = (make_batch(shared=0.8, frozen=frozen) for _ in range(5))
        self.batches = list(made if batches is None else batches)

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


def make_trainer(tmp_path, *callbacks: Callback, max_epochs: int = 8, **options) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **(quiet | options),
    )
