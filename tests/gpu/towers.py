"""Small towers trained from scratch, and what trains them on a GPU."""

from pathlib import Path

import torch
from lightning import Callback, Trainer

from encoders import LogMelEncoder, TextTransformer, ViT
from encoders.base import Encoder
from fusion.block import FusionBlock
from fusion.model import FusionModel
from fusion.tasks import ContrastiveTask
from tests.fusion.tasks import toys

DEVICE, ACCELERATOR = "cuda", "gpu"
DIM = 64


def small_block(dim: int) -> FusionBlock:
    return FusionBlock(dim, num_slots=4)


def make_encoders(dropout: float = 0.1) -> dict[str, Encoder]:
    text = TextTransformer(DIM, 2, 4, max_tokens=16, dropout=dropout)
    text.transform("a text")  # loads the tokenizer, which takes seconds, before workers are forked
    return {
        "image": ViT(DIM, 2, 4, size=32, patch=8, dropout=dropout),
        "text": text,
        "audio": LogMelEncoder(DIM, max_seconds=2.0, dropout=dropout),
    }


def make_task(folder: Path, encoders: dict[str, Encoder] | None = None, **options):
    """A task of the same weights each time."""
    torch.manual_seed(0)
    towers = make_encoders() if encoders is None else encoders
    model = FusionModel(towers, DIM, small_block, hidden=64)
    task = ContrastiveTask(model, cache=str(folder / "tokens"), **options)
    task.step_seed.seed = 7
    return task


def make_trainer(folder: Path, *callbacks: Callback, **options) -> Trainer:
    settings = {"accelerator": ACCELERATOR, "devices": 1, "max_epochs": -1}
    return toys.make_trainer(folder, *callbacks, **(settings | options))
