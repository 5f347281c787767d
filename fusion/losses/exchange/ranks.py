"""What ranks say to each other, with as many rows on each as there are; none carries gradients.

Without an initialised `torch.distributed` there is one rank. Every function is called by all ranks
together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def count_ranks() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """Index of this rank."""
    return dist.get_rank() if count_ranks() > 1 else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks of a tensor of one shape; a new tensor."""
    total = tensor.detach().clone()
    if count_ranks() > 1:
        dist.all_reduce(total)
    return total


def row_counts(tensor: Tensor) -> list[int]:
    """Number of rows of every rank's tensor."""
    if count_ranks() == 1:
        return [len(tensor)]
    own = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(own) for _ in range(count_ranks())]
    dist.all_gather(counts, own)
    return torch.cat(counts).tolist()


def gather_rows(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, in the order of ranks.

    Args:
        tensor: (R, ...) of this rank.
        counts: see `row_counts`.
    """
    if len(counts) == 1:
        return tensor.detach()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    if padded.numel():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def pass_on(tensors: Sequence[Tensor], num_rows: int) -> list[Tensor]:
    """Gives tensors to the next rank and takes those of the rank before, as a ring.

    Args:
        tensors: (R, ...) each.
        num_rows: that the rank before gives.
    """
    size, rank = count_ranks(), this_rank()
    if size == 1:
        return list(tensors)
    received = [tensor.new_empty(num_rows, *tensor.shape[1:]) for tensor in tensors]
    sides = ((dist.isend, tensors, (rank + 1) % size), (dist.irecv, received, (rank - 1) % size))
    sent = [
        dist.P2POp(act, tensor.detach().contiguous(), peer, tag=tag)
        for act, side, peer in sides
        for tag, tensor in enumerate(side)
        if tensor.numel()
    ]
    for request in dist.batch_isend_irecv(sent) if sent else ():
        request.wait()
    return received
