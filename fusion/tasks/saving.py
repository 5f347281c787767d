"""What tasks write into checkpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from fusion.losses.exchange.ranks import sum_over_ranks


def without_modules(checkpoint: dict[str, Any]) -> None:
    """Drops hyper-parameters that are objects, which only unsafe loading could read back.

    From the command line hyper-parameters are plain settings and all of them stay, so that the
    file alone rebuilds the task. A task made in Python was given objects: its weights are saved,
    and who loads them passes the objects again.

    Args:
        checkpoint: what Lightning is about to write; changed in place.
    """
    settings = checkpoint.get("hyper_parameters", {})
    checkpoint["hyper_parameters"] = {
        name: value
        for name, value in settings.items()
        if not isinstance(value, nn.Module) and not is_dataclass(value)
    }


@torch.no_grad()
def check_finite(task: LightningModule) -> None:
    """Refuses to save weights that are not finite, on all ranks together.

    So a checkpoint of such weights never takes the place of a good one. To be called while a
    checkpoint is made.

    Args:
        task: what is about to be saved.

    Raises:
        ValueError: a parameter is not finite, or a buffer is NaN, on any rank.
    """
    bad = {name: ~value.isfinite().all() for name, value in _local(task.named_parameters())}
    bad |= {name: value.isnan().any() for name, value in _local(task.named_buffers())}
    if not bad:
        return
    flags = torch.stack([flag.to(task.device) for flag in bad.values()])
    ranks = sum_over_ranks(flags.float())
    if ranks.any():
        name = next(name for name, num in zip(bad, ranks.tolist(), strict=True) if num)
        raise ValueError(
            f"{name} is not finite after step {task.global_step}, so no checkpoint was written "
            "and the one before stands; go on from it with a lower learning rate."
        )


def _local(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Those of floating point, of sharded ones the part that this rank holds."""
    for name, value in named:
        if value.is_floating_point() or value.is_complex():
            whole: Any = value
            yield name, whole.to_local() if hasattr(whole, "to_local") else whole
