"""Weights that are split over ranks (FSDP2: `torch.distributed.fsdp.fully_shard`).

A split module gathers its weights when it is called and reduces their gradients in its backward
pass, so all ranks must call the same modules equally often, whatever their samples have. So each
batch is made alike on all of them, absent modalities included (`level`), and no samples are left
out of a fusion pass.

Shapes: B samples of a rank, L inputs of a sample.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fusion.losses.exchange.ranks import count_ranks
from fusion.model import Batch, FusionModel

MESH = "data_parallel"  # Lightning's name of the ranks that hold different samples
Column = tuple[tuple[int, ...], torch.dtype, bool]  # shape of a sample, dtype, tokens already


def shard(model: FusionModel, mesh: Any) -> None:
    """Splits every tower, projection and block over the ranks of a mesh.

    Each is gathered as a whole while it computes. Losses stay whole (`average_gradients`).

    Args:
        model: with the same weights on all ranks; changed in place, as its weights become DTensors.
        mesh: a `torch.distributed.device_mesh.DeviceMesh` of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for part in (*model.encoders.values(), *model.projections.values(), *model.blocks):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether some of its weights are split over ranks."""
    return any(hasattr(parameter, "device_mesh") for parameter in module.parameters())


def average_gradients(module: nn.Module) -> None:
    """Gives whole weights the mean gradient of all ranks, which split ones have already."""
    for parameter in module.parameters():
        if parameter.grad is not None and not hasattr(parameter, "device_mesh"):
            dist.all_reduce(parameter.grad)
            parameter.grad /= count_ranks()


def level(batch: Batch) -> dict[str, Any]:
    """The batch with as many samples as the largest of any rank, and every modality of any.

    What is added is absent: all-False rows of its mask. All ranks call it together.

    Args:
        batch: see `fusion.model.Batch`, with `group_id` (B,).
    """
    num = len(batch["group_id"])
    told: list[tuple[int, dict[str, Column]]] = [(num, {})] * count_ranks()
    own = {n: (tuple(x.shape[1:]), x.dtype, n in batch["positions"]) for n, x in _inputs(batch)}
    dist.all_gather_object(told, (num, own))
    most = max(count for count, _ in told)
    everywhere = {name: column for _, columns in reversed(told) for name, column in columns.items()}
    made: dict[str, Any] = {**batch, "inputs": {}, "masks": {}, "positions": {}}
    made["group_id"] = _lengthen(batch["group_id"], most)
    for name, (shape, dtype, encoded) in sorted(everywhere.items()):
        device = batch["group_id"].device
        if name in batch["inputs"]:
            values, mask = batch["inputs"][name], batch["masks"][name]
            position = batch["positions"].get(name)
        else:
            values = torch.zeros(num, *shape, dtype=dtype, device=device)
            mask = torch.zeros(num, shape[0], dtype=torch.bool, device=device)
            position = torch.zeros(num, shape[0], 3, device=device) if encoded else None
        made["inputs"][name], made["masks"][name] = _lengthen(values, most), _lengthen(mask, most)
        if position is not None:
            made["positions"][name] = _lengthen(position, most)
    return made


def _inputs(batch: Batch) -> list[tuple[str, Tensor]]:
    return list(batch["inputs"].items())


def _lengthen(column: Tensor, num: int) -> Tensor:
    return torch.cat([column, column.new_zeros(num - len(column), *column.shape[1:])])
