"""What data-parallel training of a task asks for before its first step."""

import torch
from lightning import Trainer
from torch import distributed as dist
from torch import nn

from fusion.losses.exchange.ranks import count_ranks


def check_strategy(trainer: Trainer) -> None:
    """Refuses a strategy that waits for gradients which a step does not make.

    A step trains the directions drawn for it, with the modalities its samples have: some weights
    get no gradient on some ranks, and on none of them others.

    Raises:
        ValueError: if it is DDP that waits for every gradient.
    """
    if not getattr(trainer.strategy.model, "find_unused_parameters", True):
        raise ValueError(
            "Got a strategy that waits for the gradient of every weight, and a step trains only "
            "the directions drawn for it; set trainer.strategy to ddp_find_unused_parameters_true."
        )


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Gives all ranks the weights and buffers of the first."""
    if count_ranks() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, 0)
