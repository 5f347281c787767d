"""What training of a task on several ranks asks for before its first step."""

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed as dist
from torch import nn

from fusion.losses.exchange.ranks import count_ranks


def check_strategy(trainer: Trainer) -> None:
    """Refuses a strategy under which a run would hang, or leave what nobody can read.

    A step trains the directions drawn for it, with the modalities its samples have: some weights
    get no gradient on some ranks, and on none of them others.

    Raises:
        ValueError: if it is DDP that waits for every gradient, or splits single weights over
            ranks, or its checkpoints.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        mesh = trainer.strategy.device_mesh
        if mesh["tensor_parallel"].size() > 1 or trainer.strategy._save_distributed_checkpoint:
            raise ValueError(
                "Got a ModelParallelStrategy that splits more than a run can use; set "
                f"data_parallel_size: {mesh.size()}, tensor_parallel_size: 1 and "
                "save_distributed_checkpoint: false."
            )
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
