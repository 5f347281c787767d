"""Checkpoints whose weights tell the step, and the model that they are of."""

from pathlib import Path

import torch
from lightning import LightningModule
from torch import nn

from fusion.checkpoint import read_plain

NET = LightningModule()
NET.net = nn.Linear(100, 100)


def checkpoint(step: int, size: int = 10_000) -> dict:
    """What Lightning saves, with weights that tell the step."""
    weights = {"net.weight": torch.full((100, 100), float(step)), "net.bias": torch.ones(100)}
    state = {"more": torch.full((size,), float(step))}
    return {
        "state_dict": weights,
        "global_step": step,
        "loops": {},
        "lr_schedulers": [],
        "optimizer_states": [{"state": state}],
    }


def step_of(path: Path) -> int:
    return read_plain(path)["global_step"]
