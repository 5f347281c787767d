"""Ways to make one embedding of the tokens of any modalities, at one number of parameters.

Each takes a `Part` of every modality, in their order; where a sample lacks one its mask is False.

Shapes: B batch, N tokens, D width, K latents.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import (
    DeltaAccom,
    MeanAccom,
    RelationalAccom,
    ResponsibilityAccom,
    SlotAccom,
)
from fusion.assim import (
    AnchoredAssim,
    ChoiceAssim,
    GatedAssim,
    LiteralAssim,
    PhaseAssim,
    ProximalAssim,
)
from fusion.layers import masked_mean
from fusion.solver import Unrolled

DIM, HEADS, SLOTS, DEPTH = 192, 4, 8, 2
BUDGET = 900_000  # parameters


class Part(NamedTuple):
    """Tokens of one modality.

    Attributes:
        values: (B, N, D).
        mask: (B, N) bool, True = real.
        position: (B, N, 3).
    """

    values: Tensor
    mask: Tensor
    position: Tensor


def unit_mean(part: Part) -> Tensor:
    """(B, D) unit mean of the real tokens."""
    return F.normalize(masked_mean(part.values, part.mask), dim=-1, eps=1e-6)


class MeanOfUnits(nn.Module):
    """No fusion: an MLP on each token, and the mean of the modalities' unit embeddings."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = _mlp(DIM, hidden, DIM)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        done = [p._replace(values=p.values + self.mlp(p.values)) for p in parts]
        return F.normalize(torch.stack([unit_mean(part) for part in done]).sum(0), dim=-1)


class ConcatMLP(nn.Module):
    """The pooled modalities side by side, a learned vector for an absent one, through an MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.zeros(2, DIM))
        self.mlp = _mlp(2 * DIM, hidden, DIM)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        present = [part.mask.any(1, keepdim=True) for part in parts]
        pooled = [unit_mean(part) for part in parts]
        filled = [
            torch.where(p, x, a) for p, x, a in zip(present, pooled, self.absent, strict=True)
        ]
        return F.normalize(sum(pooled) + self.mlp(torch.cat(filled, dim=-1)), dim=-1)


class TransformerFusion(nn.Module):
    """Self-attention over the tokens of all modalities."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(hidden) for _ in range(DEPTH))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        for layer in self.layers:
            values = layer(values, src_key_padding_mask=~mask)
        return _votes(values, parts)


class LatentFusion(nn.Module):
    """Learned latents that read all tokens, twice (Perceiver: Jaegle et al. 2021, 2103.03206)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(SLOTS, DIM) * 0.02)
        self.reads = nn.ModuleList(
            nn.MultiheadAttention(DIM, HEADS, batch_first=True) for _ in range(DEPTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(DEPTH))
        self.mlps = nn.ModuleList(_mlp(DIM, hidden, DIM) for _ in range(DEPTH))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        latents = self.latents.expand(len(mask), -1, -1)
        for read, norm, mlp in zip(self.reads, self.norms, self.mlps, strict=True):
            latents = (
                latents
                + read(norm(latents), values, values, key_padding_mask=~mask, need_weights=False)[0]
            )
            latents = latents + mlp(latents)
        pooled = torch.stack([unit_mean(part) for part in parts]).sum(0)
        return F.normalize(pooled + latents.mean(1), dim=-1)


class BlockFusion(nn.Module):
    """Fusion blocks of the project."""

    def __init__(self, make: Callable[[int], FusionBlock], hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(hidden) for _ in range(DEPTH))
        self.num_iters = 0.0

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        position = torch.cat([part.position for part in parts], dim=1)
        kinds = [torch.full(part.mask.shape[1:], i) for i, part in enumerate(parts)]
        modality = torch.cat(kinds).to(mask.device)
        for block in self.blocks:
            values, _, stats, _ = block(values, mask, position, modality)
        self.num_iters = float(stats.num_iters.float().mean())
        return _votes(values, parts)


def _votes(values: Tensor, parts: Sequence[Part]) -> Tensor:
    split = values.split([part.mask.shape[1] for part in parts], dim=1)
    done = [part._replace(values=some) for part, some in zip(parts, split, strict=True)]
    return F.normalize(torch.stack([unit_mean(part) for part in done]).sum(0), dim=-1)


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    last = nn.Linear(hidden, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), last)


def _layer(hidden: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        DIM, HEADS, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _blocks(assim: type, accom: type, rounds: int | None = None) -> Callable[[int], nn.Module]:
    solver = FixedPointSolver(tol=1e-3)
    if rounds is not None:
        solver = FixedPointSolver(0, gradient=Unrolled(rounds))

    def make(hidden: int) -> FusionBlock:
        return FusionBlock(DIM, HEADS, SLOTS, assim, accom, solver, hidden=hidden)

    return partial(BlockFusion, make)


FUSIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "mean of unit embeddings": MeanOfUnits,
    "concatenation and MLP": ConcatMLP,
    "transformer, 2 layers": TransformerFusion,
    "latents (Perceiver)": LatentFusion,
    "anchored + slots, 1 round": _blocks(AnchoredAssim, SlotAccom, 1),
    "anchored + slots, converged": _blocks(AnchoredAssim, SlotAccom),
    "gated + slots": _blocks(GatedAssim, SlotAccom),
    "choice + slots": _blocks(ChoiceAssim, SlotAccom),
    "proximal + slots": _blocks(ProximalAssim, SlotAccom),
    "proximal + responsibilities": _blocks(ProximalAssim, ResponsibilityAccom),
    "phase + responsibilities": _blocks(PhaseAssim, ResponsibilityAccom),
    "literal + mean": _blocks(LiteralAssim, MeanAccom),
    "anchored + mean": _blocks(AnchoredAssim, MeanAccom),
    "anchored + relational": _blocks(AnchoredAssim, RelationalAccom),
    "anchored + delta": _blocks(AnchoredAssim, DeltaAccom),
}


def build(name: str) -> nn.Module:
    """A fusion whose hidden width brings it to `BUDGET` parameters."""
    size = [sum(p.numel() for p in FUSIONS[name](hidden).parameters()) for hidden in (64, 128)]
    hidden = 64 + round((BUDGET - size[0]) * 64 / (size[1] - size[0]))
    return FUSIONS[name](max(hidden, 16))
