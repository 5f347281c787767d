"""How gradients pass through an iteration.

Shapes: B batch, H heads, M rows of the state, d width of a head.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fusion.solver.rounds import Progress, Step, advance


class Gradient(ABC):
    """The closing rounds: they polish what a search found and carry the gradient.

    Attributes:
        through_search: gradients flow through the rounds of the search, too.
    """

    through_search: bool = False

    @abstractmethod
    def close(self, step: Step, progress: Progress, real: Tensor, trace: list[Tensor]) -> Progress:
        """Runs the closing rounds, with or without gradient mode alike.

        Args:
            step: one round.
            progress: where the search ended.
            real: (B, M) bool: rows that count.
            trace: the residual of every round is appended.
        """


@final
@dataclass(frozen=True)
class Unrolled(Gradient):
    """Backpropagation through the last rounds only.

    With a local rate rho of the iteration the relative error of the gradient is about
    rho ** num_rounds; memory does not grow with the rounds of the search.

    Args:
        num_rounds: k, at least 1.

    Raises:
        ValueError: if there is no round.
    """

    num_rounds: int = 3

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise ValueError(
                f"Got num_rounds={self.num_rounds}; at least 1 closing round carries the gradient "
                "(3 is the default)."
            )

    def close(self, step: Step, progress: Progress, real: Tensor, trace: list[Tensor]) -> Progress:
        """See `Gradient.close`."""
        for _ in range(self.num_rounds):
            progress = advance(step, progress, real)
            trace.append(progress.residual)
        return progress


@final
@dataclass(frozen=True)
class Full(Gradient):
    """Backpropagation through every round, for tests and short runs: memory grows with them."""

    through_search = True

    def close(self, step: Step, progress: Progress, real: Tensor, trace: list[Tensor]) -> Progress:
        """Nothing is left to do."""
        return progress


@final
@dataclass(frozen=True)
class Implicit(Gradient):
    """The exact gradient at the fixed point, by the implicit function theorem.

    With s* = G(s*, p) the gradient is y dG/dp where y = g + y dG/ds (Bai et al. 2019,
    arXiv:1909.01377, eq. 4; Almeida 1987, Pineda 1987), itself a fixed point of the rate of G. A
    sample that has not converged has no fixed point to differentiate at: it gets the gradient of
    one round.

    Args:
        max_iters: most rounds of the adjoint.
        tol: stop when no entry of y moves by more than this share of the largest of g.

    Raises:
        ValueError: if a setting is out of range.
    """

    max_iters: int = 100
    tol: float = 1e-6

    def __post_init__(self) -> None:
        if self.max_iters < 1 or not 0 < self.tol < math.inf:
            raise ValueError(
                f"Got max_iters={self.max_iters}, tol={self.tol}; give both above zero."
            )

    def close(self, step: Step, progress: Progress, real: Tensor, trace: list[Tensor]) -> Progress:
        """See `Gradient.close`; one round, whose backward pass solves the adjoint."""
        before = progress.residual
        progress = advance(step, progress._replace(state=progress.state.detach()), real)
        trace.append(progress.residual)
        if progress.state.requires_grad:
            # A move that grows is not on its way to a fixed point.
            settled = ~progress.failed & (progress.residual <= before)
            point = progress.state.detach().requires_grad_()
            with torch.enable_grad():
                image = step(point)
            progress.state.register_hook(
                lambda gradient: self._adjoint(gradient, image, point, settled)
            )
        return progress

    def _adjoint(
        self, gradient: Tensor | None, image: Tensor, point: Tensor, settled: Tensor
    ) -> Tensor | None:
        """Solves y = g + y dG/ds for the settled samples (B,); g (B, H, M, d) for the others."""
        if gradient is None or not image.requires_grad:  # a round that ignores the state
            return gradient
        keep = settled[:, None, None, None]
        enough = self.tol * gradient.abs().amax(dim=(1, 2, 3))
        adjoint = gradient
        for _ in range(self.max_iters):
            (pulled,) = torch.autograd.grad(image, point, adjoint, retain_graph=True)
            previous, adjoint = adjoint, torch.where(keep, gradient + pulled, gradient)
            moved = (adjoint - previous).abs().amax(dim=(1, 2, 3))
            if not (moved > enough).any():
                break
        return adjoint
