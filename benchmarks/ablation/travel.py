"""Information that must travel: every token names the nearest label to its left.

Trained on 32 tokens with labels at one in eight; tested on longer rows with rarer labels too, where
a label must be carried up to hundreds of tokens. A block reads its left neighbour only.

Shapes: B batch, N tokens, D width, H heads.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fusion import FixedPointSolver, FusionBlock
from fusion.accom import RelationalAccom
from fusion.assim import AnchoredAssim, Assim, GatedAssim
from fusion.phase import rotate
from fusion.relations import Earlier, Window
from fusion.solver import Implicit, Unrolled

LABELS, DIM, HEADS = 8, 64, 4
TRAINED_ON = (32, 0.12)
TESTED_ON = (TRAINED_ON, (128, 0.12), (128, 0.02), (512, 0.005))
BATCH, STEPS, LR = 64, 1000, 3e-3


def rows(
    batch: int, length: int, rate: float, generator: Generator, num_labels: int = LABELS
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N), a label or `num_labels`, and what each must name; -100 before the first."""
    device = generator.device
    is_label = torch.rand(batch, length, generator=generator, device=device) < rate
    label = torch.randint(0, num_labels, (batch, length), generator=generator, device=device)
    place = torch.arange(length, device=device).expand(batch, length)
    last = torch.where(is_label, place, -1).cummax(1).values
    wanted = torch.where(last >= 0, label.gather(1, last.clamp(min=0)), -100)
    return torch.where(is_label, label, num_labels), wanted


class CausalLayer(nn.Module):
    """Pre-norm causal self-attention with rotary positions, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, values: Tensor, angles: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        parts = self.qkv(self.norm(values)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = rotate(parts[0], angles), rotate(parts[1], angles), parts[2]
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        values = values + self.out(read.transpose(1, 2).flatten(2))
        return values + self.mlp(self.mlp_norm(values))


class Transformer(nn.Module):
    """A stack of `CausalLayer`."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CausalLayer() for _ in range(num_layers))
        pairs = DIM // HEADS // 2
        self.register_buffer("rates", 10_000.0 ** -(torch.arange(pairs) / pairs))

    def forward(self, values: Tensor) -> tuple[Tensor, float]:
        """Values and number of rounds."""
        place = torch.arange(values.shape[1], device=values.device)
        angles = place[:, None] * self.get_buffer("rates")
        for layer in self.layers:
            values = layer(values, angles)
        return values, float(len(self.layers))


class LeftNeighbour(nn.Module):
    """A fusion block in which every token reads the one to its left."""

    def __init__(self, assim: Callable[[int, int], Assim], solver: FixedPointSolver) -> None:
        super().__init__()
        accom = partial(RelationalAccom, rule=Earlier() & Window(1))
        self.block = FusionBlock(DIM, HEADS, assim=assim, accom=accom, solver=solver)

    def forward(self, values: Tensor) -> tuple[Tensor, float]:
        """Values and mean number of rounds."""
        out = self.block(values, values.new_ones(values.shape[:2], dtype=torch.bool))
        return out.values, float(out.stats.num_iters.float().mean())


def _rounds(num: int) -> FixedPointSolver:
    return FixedPointSolver(0, gradient=Unrolled(num))


_CONVERGED = FixedPointSolver(1000, gradient=Implicit(1000, 1e-4))
_CARRY = partial(GatedAssim, kappa=1.0)
VARIANTS: Mapping[str, Callable[[], nn.Module]] = {
    "gated, 1 round": lambda: LeftNeighbour(_CARRY, _rounds(1)),
    "gated, 4 rounds": lambda: LeftNeighbour(_CARRY, _rounds(4)),
    "gated, until nothing moves": lambda: LeftNeighbour(_CARRY, _CONVERGED),
    "gated with q <= 0.9, converged": lambda: LeftNeighbour(GatedAssim, _CONVERGED),
    "anchored, converged": lambda: LeftNeighbour(AnchoredAssim, _CONVERGED),
    "causal transformer, 2 layers": lambda: Transformer(2),
    "causal transformer, 4 layers": lambda: Transformer(4),
}


def run(variant: str, seed: int, device: str, steps: int = STEPS) -> dict[str, Any]:
    """Trains and tests a variant: accuracy and rounds by test set."""
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    embed, core, head = nn.Embedding(LABELS + 1, DIM), VARIANTS[variant](), nn.Linear(DIM, LABELS)
    model = nn.ModuleList([embed, core, head]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        tokens, wanted = rows(BATCH, *TRAINED_ON, generator)
        scores = head(core(embed(tokens))[0])
        loss = F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found: dict[str, Any] = {"num_parameters": sum(p.numel() for p in core.parameters())}
    generator.manual_seed(10_000)  # the same test rows for all
    for length, rate in TESTED_ON:
        tokens, wanted = rows(BATCH, length, rate, generator)
        with torch.no_grad():
            values, num_rounds = core(embed(tokens))
        right = (head(values).argmax(-1) == wanted) & (wanted >= 0)
        accuracy = float(right.sum() / (wanted >= 0).sum())
        found[f"{length} tokens, {rate:g}"] = accuracy
        found[f"{length} tokens, {rate:g}, rounds"] = num_rounds
    return found
