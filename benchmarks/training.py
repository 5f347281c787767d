"""Gradient modes, and the time of one round against the number of tokens.

Shapes: B batch, H heads, N tokens, d width of a head.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.inputs import at, choose, directions, slots
from benchmarks.measure import Row, Size, compared, milliseconds
from fusion.choice import Choice
from fusion.solver import FixedPointSolver, Full, Gradient, Implicit, Unrolled

TOL = 1e-4
KINDS: dict[str, Gradient] = {
    "unrolled 1": Unrolled(1),
    "unrolled 3": Unrolled(3),
    "implicit": Implicit(),
}


def gradients(size: Size, device: str) -> Iterator[Row]:
    """Forward and backward pass, and what the first keeps for the second; plain is `Full`."""
    for kappa, norm in ((0.9, 1.0), (0.99, 0.1)):
        anchors = norm * directions(size.batch, size.tokens, device)
        choice = choose(anchors, slots(anchors), kappa)
        full, most = _gradient(choice, Full()).flatten().double(), _bytes_kept(choice, Full())
        for name, kind in KINDS.items():
            case = f"{name}, kappa {kappa}, anchors of norm {norm}"
            near = cosine_similarity(_gradient(choice, kind).flatten().double(), full, dim=0)
            note = f"cosine with the full gradient {near:.5f}"
            kept = _bytes_kept(choice, kind)
            yield Row("gradient", case, "MiB kept", most / 2**20, kept / 2**20)
            forms = (
                lambda c=choice: _gradient(c, Full()),
                lambda c=choice, k=kind: _gradient(c, k),
            )
            yield compared("gradient", case, forms, size, device, note)


def scaling(size: Size, device: str) -> Iterator[Row]:
    """How the time of a round grows: the exponent, 1 is linear."""
    taken = []
    for num_tokens in size.scaling:
        anchors = directions(size.scaling_batch, num_tokens, device, num_heads=1)
        choice = choose(anchors, slots(anchors), 0.9)
        state = choice.start()
        with torch.no_grad():
            taken += milliseconds([lambda c=choice, s=state: c.step(s)], 3 * size.repeats, device)
    note = ", ".join(f"N={n}: {t:.3g} ms" for n, t in zip(size.scaling, taken, strict=True))
    case = (
        f"one round, batch {size.scaling_batch}, 1 head, N {size.scaling[0]} to {size.scaling[-1]}"
    )
    yield Row("cost", case, "exponent of N", 1.0, _slope(size.scaling, taken), note)


def _slope(counts: Sequence[int], taken: Sequence[float]) -> float:
    """Least squares slope of log time against log count."""
    points = torch.tensor([[math.log(n), math.log(t)] for n, t in zip(counts, taken, strict=True)])
    points = (points - points.mean(dim=0)).double()
    return ((points[:, 0] @ points[:, 1]) / (points[:, 0] @ points[:, 0])).item()


def _bytes_kept(choice: Choice, kind: Gradient) -> int:
    """What a forward pass keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = _loss(choice, kind)
    assert loss.requires_grad
    return sum(kept.values())


def _gradient(choice: Choice, kind: Gradient) -> Tensor:
    """Of a readout, in the anchors: (B, H, N, d)."""
    loss, anchors = _loss(choice, kind)
    return torch.autograd.grad(loss, anchors)[0]


def _loss(choice: Choice, kind: Gradient) -> tuple[Tensor, Tensor]:
    anchors = choice.anchors.detach().requires_grad_()
    choice = at(choice, anchors)
    start = choice.start()
    solver = FixedPointSolver(1000, TOL, kind)
    state, _ = solver(choice.step, start, choice.real(start), choice.q)
    latents, _ = choice.read_out(state)
    return (latents * latents.detach().flip(2)).sum(), anchors
