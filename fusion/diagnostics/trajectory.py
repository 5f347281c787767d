"""A block's iteration again, round by round, with what each round left.

Shapes: B batch, N tokens, H heads, K slots, M rows of the state, d width of a head, T rounds.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from fusion.block import FusionBlock
from fusion.certificate import error_bound
from fusion.choice import Choice
from fusion.diagnostics.measures import phase_coherence, slot_weights
from fusion.solver.rounds import replace, step_size


@final
@dataclass(frozen=True)
class Trajectory:
    """A block's iteration on a batch, round by round; entry 0 of (T + 1, ...) is the start.

    A sample that has stopped, or failed, repeats its last round.

    Attributes:
        mask: (B, N) bool, True = real token.
        anchors: (B, H, N, d) latents before the first round.
        latents: (B, H, N, d) latents after the last.
        context: (T + 1, B, H, K, d) slots.
        coherence: (T + 1, B) `phase_coherence` of the latents.
        energy: (T + 1, B) what no round raises; None if none is known for this Assim and Accom.
        residual: (T, B) largest move of a real row of the state; inf if a round was not finite.
        error_bound: (T, B) largest possible distance to the fixed point after each round; inf
            where q >= 1.
        num_iters: (B,) int: rounds until the sample stopped.
        converged: (B,) bool: its last residual is below tol.
        q: (B,) contraction factor; inf where none is declared.
        weights: (B, H, K, N) `slot_weights` of the last round.
        tol: residual at which a sample stops.
    """

    mask: Tensor
    anchors: Tensor
    latents: Tensor
    context: Tensor
    coherence: Tensor
    energy: Tensor | None
    residual: Tensor
    error_bound: Tensor
    num_iters: Tensor
    converged: Tensor
    q: Tensor
    weights: Tensor
    tol: float


class _Round(NamedTuple):
    state: Tensor  # (B, H, M, d)
    latents: Tensor  # (B, H, N, d)
    context: Tensor  # (B, H, K, d)


@torch.no_grad()
def trajectory(
    block: FusionBlock,
    values: Tensor,
    mask: Tensor,
    position: Tensor | None = None,
    modality: Tensor | None = None,
) -> Trajectory:
    """Runs the map that a block chooses for its input, in plain rounds, and records each.

    Plain rounds are what the block's own solver takes unless it is accelerated; its tol and
    max_iters (at least one round) hold here too, its closing rounds are left out.

    Args:
        block: the block.
        values: (B, N, D), and the others, as `FusionBlock.forward` takes them.
        mask: (B, N) bool, True = real token.
        position: (B, N, 3) or None.
        modality: (B, N) or (N,) int, or None.

    Raises:
        ValueError: as `FusionBlock.forward`.
    """
    choice = block.choose(values, mask, position, modality)
    with torch.autocast(values.device.type, enabled=False):
        max_iters = max(block.solver.max_iters, 1)
        rounds, residual, num_iters = _run(choice, max_iters, block.solver.tol)
        energies = [choice.energy(each.state) for each in rounds]
        weights = choice.mixing.weigh(rounds[-1].latents, rounds[-1].context)
        weights = slot_weights(weights, choice.anchors, mask)
    q = choice.q.detach().nan_to_num(nan=math.inf, posinf=math.inf)
    return Trajectory(
        mask=mask,
        anchors=choice.anchors,
        latents=rounds[-1].latents,
        context=torch.stack([each.context for each in rounds]),
        coherence=torch.stack([phase_coherence(each.latents, mask) for each in rounds]),
        energy=torch.stack([e for e in energies if e is not None]) if _known(energies) else None,
        residual=residual,
        error_bound=error_bound(q.expand_as(residual), residual),
        num_iters=num_iters,
        converged=(residual[-1] if len(residual) else torch.zeros_like(q)) < block.solver.tol,
        q=q,
        weights=weights,
        tol=block.solver.tol,
    )


def _known(energies: list[Tensor | None]) -> bool:
    return all(energy is not None for energy in energies)


def _run(choice: Choice, max_iters: int, tol: float) -> tuple[list[_Round], Tensor, Tensor]:
    """The rounds with their start, residuals (T, B) and numbers of rounds (B,)."""
    start = choice.start()
    real, live = choice.real(start), choice.mask.any(dim=1)
    first = start if choice.memoryless else start[:, :, choice.mask.shape[1] :]
    rounds, residuals = [_Round(start, choice.anchors, first)], []
    residual = start.new_zeros(len(live)).masked_fill(live, math.inf)
    num_iters = torch.zeros_like(live, dtype=torch.long)
    while live.any() and len(residuals) < max_iters:
        last = rounds[-1]
        following = _following(choice, last.state)
        size = step_size(following.state, last.state, real)
        num_iters = num_iters + live
        moved = live & size.isfinite()
        residual = torch.where(live, size, residual).masked_fill(live & ~moved, math.inf)
        live = moved & (size >= tol)
        pairs = zip(last, following, strict=True)
        rounds.append(_Round(*(replace(old, new, moved) for old, new in pairs)))
        residuals.append(residual)
    return rounds, torch.stack(residuals) if residuals else residual[None][:0], num_iters


def _following(choice: Choice, state: Tensor) -> _Round:
    """One round: the next state with its latents and its context."""
    following = choice.step(state)
    # Of a state that is the context alone, `read_out` makes the latents that the next one gathers.
    return _Round(following, *choice.read_out(state if choice.memoryless else following))
