"""What fusing a query costs."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ablation.fusions import Part


@torch.no_grad()
def count_flops(fuse: nn.Module, query: Sequence[Part]) -> float:
    """Operations of products, forward, for one of the queries; the module does not train on.

    What is done once for all of a batch is shared among them: give many.
    """
    fuse.requires_grad_(False)  # the counter fails on views of what trains
    fuse.train()  # in eval mode torch fuses a layer into one operation that is not counted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        fuse(query)
    return counter.get_total_flops() / len(query[0].mask)
