"""Sparse updates against rounds of all tokens with the same rule to stop.

Shapes: B batch, H heads, N tokens, K slots, d width of a head.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.inputs import BLOCK, blocks, choose, directions, graph, mean, spread, window
from benchmarks.measure import Row, Size, compared
from fusion.accom import FrozenMixing
from fusion.choice import Choice
from fusion.solver import LazySolver

TOL, KAPPA, MAX_ITERS = 1e-4, 0.9, 1000


def sparse_updates(size: Size, device: str) -> Iterator[Row]:
    """One head of one large sample."""
    num_blocks = size.sparse_tokens // BLOCK
    hard = torch.full((num_blocks,), 3.0, device=device)
    hard[torch.randperm(num_blocks)[: max(1, num_blocks // 20)]] = 0.1
    norms = {
        "all alike": torch.ones(num_blocks, device=device),
        "norms .3 to 30": spread(num_blocks, 0.3, 30.0, device),
        "1 block in 20 hard": hard,
    }
    couplings: dict[str, Callable[[Tensor], FrozenMixing]] = {
        "blocks": blocks,
        "window": window,
        "graph": graph,
        "mean of all": mean,
    }
    for coupling, mix in couplings.items():
        for name, norm in norms.items():
            scale = norm.repeat_interleave(BLOCK)[:, None]
            anchors = scale * directions(1, size.sparse_tokens, device, num_heads=1)
            choice = choose(anchors, mix(anchors), KAPPA)
            yield from _compare(f"{coupling}, {name}", choice, size, device)


def _compare(case: str, choice: Choice, size: Size, device: str) -> Iterator[Row]:
    solver = LazySolver(MAX_ITERS, TOL)
    found, (latents, rounds) = solver(choice), _dense(choice)
    apart = (found.latents - latents).abs().max()
    updates = found.num_updates.sum().item()
    note = f"{rounds} and {found.num_iters} rounds; results differ by {apart:.0e}"
    yield Row("sparse updates", case, "updates", rounds * choice.mask.sum().item(), updates, note)
    forms = (lambda: _dense(choice), lambda: solver(choice))
    yield compared("sparse updates", case, forms, size, device)


@torch.no_grad()
def _dense(choice: Choice) -> tuple[Tensor, int]:
    """All tokens in every round, until none would move by tol / 2; the latents and rounds."""
    context = choice.start()
    weights = choice.mixing.weigh(choice.anchors, context)
    reads = weights.read(context)
    latents, rounds, settled = choice.anchors, 0, False
    while not settled and rounds < MAX_ITERS:
        latents = choice.update(choice.anchors, context, weights.read)
        context = weights.gather(latents)
        seen, reads = reads, weights.read(context)
        distance = torch.linalg.vector_norm(reads - seen, dim=-1).amax(dim=(1, 2))
        settled = bool((choice.update.gain * distance < TOL / 2).all())
        rounds += 1
    return latents, rounds
