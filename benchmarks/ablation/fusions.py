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

HEADS, HEAD_WIDTH, SLOTS = 4, 48, 8


class Size(NamedTuple):
    """What all ways of fusing have in common.

    Attributes:
        dim: D.
        num_modalities: parts that they take.
        depth: layers, or blocks.
        budget: number of parameters.
        light: share of them with which a block takes no more FLOPs than the transformer: it takes
            more for a weight.
    """

    dim: int
    num_modalities: int
    depth: int
    budget: int
    light: float


SCRATCH = Size(192, 2, 2, 900_000, 0.9)  # beside towers that train
FROZEN = Size(128, 2, 1, 120_000, 0.7)  # on tokens of frozen towers
THREE = FROZEN._replace(num_modalities=3)


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

    def __init__(self, size: Size, hidden: int) -> None:
        super().__init__()
        self.mlp = _mlp(size.dim, hidden, size.dim)

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        done = [p._replace(values=p.values + self.mlp(p.values)) for p in parts]
        return F.normalize(torch.stack([unit_mean(part) for part in done]).sum(0), dim=-1)


class ConcatMLP(nn.Module):
    """The pooled modalities side by side, a learned vector for an absent one, through an MLP."""

    def __init__(self, size: Size, hidden: int) -> None:
        super().__init__()
        self.absent = nn.Parameter(torch.zeros(size.num_modalities, size.dim))
        self.mlp = _mlp(size.num_modalities * size.dim, hidden, size.dim)

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

    def __init__(self, size: Size, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(size.dim, hidden) for _ in range(size.depth))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        for layer in self.layers:
            values = layer(values, src_key_padding_mask=~mask)
        return _votes(values, parts)


class LatentFusion(nn.Module):
    """Learned latents that read all tokens, twice (Perceiver: Jaegle et al. 2021, 2103.03206)."""

    def __init__(self, size: Size, hidden: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(SLOTS, size.dim) * 0.02)
        self.reads = nn.ModuleList(
            nn.MultiheadAttention(size.dim, HEADS, batch_first=True) for _ in range(size.depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size.dim) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        self.mlps = nn.ModuleList(_mlp(size.dim, hidden, size.dim) for _ in range(size.depth))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        values, latents = self.norm(values), self.latents.expand(len(mask), -1, -1)
        for read, norm, mlp in zip(self.reads, self.norms, self.mlps, strict=True):
            latents = (
                latents
                + read(norm(latents), values, values, key_padding_mask=~mask, need_weights=False)[0]
            )
            latents = latents + mlp(latents)
        pooled = torch.stack([unit_mean(part) for part in parts]).sum(0)
        return F.normalize(pooled + latents.mean(1), dim=-1)


class BlockFusion(nn.Module):
    """Fusion blocks of the project.

    They are not told positions: all ways of fusing know places by what is added to the tokens.
    """

    def __init__(self, make: Callable[[int, int], FusionBlock], size: Size, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(size.dim, hidden) for _ in range(size.depth))
        self.num_iters = 0.0

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        kinds = [torch.full(part.mask.shape[1:], i) for i, part in enumerate(parts)]
        modality = torch.cat(kinds).to(mask.device)
        for block in self.blocks:
            values, _, stats, _ = block(values, mask, modality=modality)
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


def _layer(dim: int, hidden: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        dim, HEADS, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


Make = Callable[[Size, int], nn.Module]


def _blocks(assim: type, accom: type, rounds: int | None = None) -> Make:
    solver = FixedPointSolver(tol=1e-3)
    if rounds is not None:
        solver = FixedPointSolver(0, gradient=Unrolled(rounds))

    def make(dim: int, hidden: int) -> FusionBlock:
        return FusionBlock(dim, HEADS, SLOTS, assim, accom, solver, HEAD_WIDTH, hidden)

    return partial(BlockFusion, make)


FUSIONS: Mapping[str, Make] = {
    "mean of unit embeddings": MeanOfUnits,
    "concatenation and MLP": ConcatMLP,
    "transformer": TransformerFusion,
    "latents (Perceiver)": LatentFusion,
    "anchored + slots, 1 round": _blocks(AnchoredAssim, SlotAccom, 1),
    "anchored + slots, converged": _blocks(AnchoredAssim, SlotAccom),
    "gated + slots, 1 round": _blocks(GatedAssim, SlotAccom, 1),
    "gated + slots, 1 round, lighter": _blocks(GatedAssim, SlotAccom, 1),
    "gated + slots, converged": _blocks(GatedAssim, SlotAccom),
    "choice + slots": _blocks(ChoiceAssim, SlotAccom),
    "proximal + slots": _blocks(ProximalAssim, SlotAccom),
    "proximal + responsibilities": _blocks(ProximalAssim, ResponsibilityAccom),
    "phase + responsibilities": _blocks(PhaseAssim, ResponsibilityAccom),
    "literal + mean": _blocks(LiteralAssim, MeanAccom),
    "anchored + mean": _blocks(AnchoredAssim, MeanAccom),
    "anchored + relational, 1 round": _blocks(AnchoredAssim, RelationalAccom, 1),
    "anchored + relational, converged": _blocks(AnchoredAssim, RelationalAccom),
    "gated + relational, 1 round": _blocks(GatedAssim, RelationalAccom, 1),
    "gated + relational, converged": _blocks(GatedAssim, RelationalAccom),
    "anchored + delta": _blocks(AnchoredAssim, DeltaAccom),
}
LIGHT = ("gated + slots, 1 round, lighter",)


def build(name: str, size: Size) -> nn.Module:
    """A fusion whose hidden width brings it to its share of `size.budget` parameters."""
    make = partial(FUSIONS[name], size)
    budget = size.budget * (size.light if name in LIGHT else 1)
    few, many = (sum(p.numel() for p in make(hidden).parameters()) for hidden in (64, 128))
    return make(max(64 + round((budget - few) * 64 / (many - few)), 16))
