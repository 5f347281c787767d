"""The fusion block: tokens of any modalities, refined together with their shared context.

Shapes: B batch, N tokens, D width, H heads, K slots, d width of a head (D / H by default).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.accom import Accom, SlotAccom
from fusion.assim import AnchoredAssim, Assim
from fusion.choice import Choice
from fusion.layers import MLP
from fusion.phase import rotate
from fusion.solver import FixedPointSolver, SolverStats
from fusion.tokens import Place

# Also bounds the slope of the norms at a zero token, by 1/sqrt(EPS).
EPS = 1e-6


class FusionOutput(NamedTuple):
    """What a block returns.

    Attributes:
        values: (B, N, D) refined tokens; those that are not real are the input.
        context: (B, K, D) the slots of all heads, brought to the width of the tokens by the
            transpose of the anchor projection; 0 for a sample without tokens.
        stats: what the iteration did, per sample.
        slots: (B, H, K, d) the same context, head by head: a warm start for a similar input.
    """

    values: Tensor
    context: Tensor
    stats: SolverStats
    slots: Tensor


class FusionBlock(nn.Module):
    """Norm, anchors, choose, solve, projection, residual, MLP.

    The block maps x to `evaluate(choose(x), x)`: weights and strengths are chosen once, then a
    map with constant parameters is iterated to its fixed point. What is added to a token is read
    from its latent and from what it sees of the context: a latent alone is bound to its anchor,
    which the token knows already.

    Args:
        dim: D, a multiple of twice `num_heads` (channels are complex).
        num_heads: H.
        num_slots: K.
        assim: makes the Assim from (dim_head, num_heads).
        accom: makes the Accom from (dim_head, num_heads, num_slots).
        solver: the iteration.
        dim_head: d, even; None is D / H. A round costs in proportion to H d.
        hidden: width of the MLP; None is 4 D.

    Raises:
        ValueError: if `dim` does not divide into complex heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        num_slots: int = 16,
        assim: Callable[[int, int], Assim] = AnchoredAssim,
        accom: Callable[[int, int, int], Accom] = SlotAccom,
        solver: FixedPointSolver = FixedPointSolver(),
        dim_head: int | None = None,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if min(dim, num_heads, num_slots) < 1 or (dim_head is None and dim % (2 * num_heads)):
            raise ValueError(
                f"Got dim={dim}, num_heads={num_heads}, num_slots={num_slots}; all must be "
                "positive and dim a multiple of 2 * num_heads, or dim_head given."
            )
        dim_head = dim // num_heads if dim_head is None else dim_head
        inner = num_heads * dim_head
        self.dim = dim
        self.num_heads = num_heads
        self.solver = solver
        self.norm = nn.RMSNorm(dim, eps=EPS)
        self.anchor = nn.Linear(dim, inner, bias=False)
        self.gain = nn.Parameter(torch.ones(num_heads))
        self.assim = assim(dim_head, num_heads)
        self.accom = accom(dim_head, num_heads, num_slots)
        self.out = nn.Linear(2 * inner, dim, bias=False)
        nn.init.normal_(self.out.weight, std=dim**-0.5)
        self.mlp_norm = nn.RMSNorm(dim, eps=EPS)
        self.mlp = MLP(dim, hidden or 4 * dim)

    def start_as_identity(self) -> None:
        """Makes the block return its input until training changes that, whatever the iteration
        finds: so it cannot harm tokens that are good already."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp.shrink.weight)
        nn.init.zeros_(self.mlp.shrink.bias)

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        position: Tensor | None = None,
        modality: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> FusionOutput:
        """Fuses the tokens of each sample.

        Args:
            values: (B, N, D) tokens of any modalities, of the dtype of the parameters (any
                floating dtype under autocast).
            mask: (B, N) bool, True = real token. What the others hold changes nothing, and they
                are returned as they came.
            position: (B, N, 3): seconds, row, column. None is the same as all zero.
            modality: (B, N) or (N,) int, for Accoms that ask which modality a token came from.
                None is the same as all zero.
            slots: (B, H, K, d) the `slots` of an earlier output to start from; rows that are not
                finite start anew. None starts from the anchors.

        Returns:
            Refined tokens, context and statistics.

        Raises:
            ValueError: if a shape or dtype is not as above, or the solver's tol is below what
                the dtype can resolve.
        """
        return self.evaluate(self.choose(values, mask, position, modality), values, slots)

    def choose(
        self,
        values: Tensor,
        mask: Tensor,
        position: Tensor | None = None,
        modality: Tensor | None = None,
    ) -> Choice:
        """Chooses all that the iteration needs; arguments and errors as in `forward`."""
        self._check(values, mask, position, modality)
        projected = self.anchor(self.norm(self._clean(values, mask)))
        with torch.autocast(values.device.type, enabled=False):
            heads = self._split(projected.to(self.gain.dtype))
            scale = self.gain / heads.shape[-1] ** 0.5
            anchors = F.rms_norm(heads, heads.shape[-1:], eps=EPS) * scale[:, None, None]
            if position is not None:
                position = torch.where(mask.unsqueeze(-1), position, 0)
                anchors = rotate(anchors, position)
            place = _place(mask, position, modality)
            update = self.assim(anchors, mask)
            return Choice(anchors, mask, position, update, self.accom(anchors, mask, place))

    def evaluate(self, choice: Choice, values: Tensor, slots: Tensor | None = None) -> FusionOutput:
        """Iterates the chosen map and adds what it found to the tokens.

        Args:
            choice: from `choose`.
            values: (B, N, D) the tokens it was chosen for.
            slots: as in `forward`.

        Returns:
            As `forward`.
        """
        with torch.autocast(values.device.type, enabled=False):
            start = choice.start(slots)
            real, coarse = choice.real(start), None
            if self.solver.search_dtype is not None:
                coarse = choice.to(getattr(torch, self.solver.search_dtype)).step
            state, stats = self.solver(choice.step, start, real, choice.q, coarse)
            latents, slots = choice.read_out(state)
            context = _merge(slots) @ self.anchor.weight
            found = torch.cat([latents, choice.seen(latents, slots)], dim=1)
            if choice.position is not None:
                found = rotate(found, choice.position, sign=-1)
        refined = self._clean(values, choice.mask)
        refined = refined + self.out(_merge(found)).to(refined.dtype)
        refined = refined + self.mlp(self.mlp_norm(refined)).to(refined.dtype)
        refined = torch.where(choice.mask.unsqueeze(-1), refined.to(values.dtype), values)
        return FusionOutput(refined, context, stats, slots)

    def _clean(self, values: Tensor, mask: Tensor) -> Tensor:
        """The real tokens in the parameters' dtype; 0 elsewhere, whatever was there."""
        return torch.where(mask.unsqueeze(-1), values, 0).to(self.gain.dtype)

    def _split(self, values: Tensor) -> Tensor:
        """(B, N, H d) -> (B, H, N, d)."""
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _check(
        self, values: Tensor, mask: Tensor, position: Tensor | None, modality: Tensor | None
    ) -> None:
        shape = tuple(values.shape)
        if len(shape) != 3 or shape[2] != self.dim or shape[1] == 0:
            raise ValueError(
                f"Got values of shape {shape}; give (B, N, {self.dim}) with N >= 1 (a sample "
                "without tokens is an all-False row of the mask)."
            )
        dtype = self.gain.dtype
        autocast = torch.is_autocast_enabled(values.device.type)
        if not values.is_floating_point() or (values.dtype != dtype and not autocast):
            raise ValueError(
                f"Got values of {values.dtype} for a block of {dtype}; convert either, or run "
                "under torch.autocast."
            )
        if mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
            raise ValueError(
                f"Got a mask of {mask.dtype} and shape {tuple(mask.shape)}; give torch.bool of "
                f"shape {shape[:2]}, True = real token."
            )
        if position is not None and tuple(position.shape) != (*shape[:2], 3):
            raise ValueError(
                f"Got position of shape {tuple(position.shape)}; give {(*shape[:2], 3)}: seconds, "
                "row, column of every token."
            )
        if modality is not None and tuple(modality.shape) not in (shape[:2], shape[1:2]):
            raise ValueError(
                f"Got modality of shape {tuple(modality.shape)}; give {shape[:2]} or {shape[1:2]}: "
                "an index for every token."
            )


def _merge(heads: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    return heads.transpose(1, 2).flatten(2)


def _place(mask: Tensor, position: Tensor | None, modality: Tensor | None) -> Place:
    where = mask.new_zeros(*mask.shape, 3, dtype=torch.float32) if position is None else position
    which = mask.new_zeros(mask.shape, dtype=torch.long) if modality is None else modality
    return Place(where, which.expand(mask.shape))
