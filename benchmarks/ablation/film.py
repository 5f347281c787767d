"""Travel with real pictures: every frame of a film finds the name of what was shown last.

A frame is one token, the mean of a drawing's; most frames are blank. Names are the frozen text
tower's, among those of `POOL` concepts. As in `travel`, a block reads the frame before only; it is
trained on 32 frames and tested on longer films with rarer pictures, drawn by a vendor never
trained on. What a frame that shows a picture finds is the limit of the towers.

Shapes: B batch, N frames, C concepts of the pool, D width of the towers.
"""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks.ablation import travel
from benchmarks.ablation.drawings import HELD_VENDOR, NUM_HALVES, Drawings
from benchmarks.ablation.fusions import FROZEN
from benchmarks.ablation.occluded import one_drawing
from benchmarks.ablation.pointing import unit_tokens

BATCH, STEPS, LR, POOL = 16, 300, 3e-3, 64
TRAINED_ON = (32, 0.12)
TESTED_ON = (TRAINED_ON, (128, 0.02), (256, 0.01))
VARIANTS = (
    "gated, 1 round",
    "gated, 4 rounds",
    "gated, until nothing moves",
    "causal transformer, 2 layers",
)


class Model(nn.Module):
    """Frames into the width of a core of `travel`, and out of it."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.enter, self.leave = (
            nn.Linear(FROZEN.dim, travel.DIM),
            nn.Linear(travel.DIM, FROZEN.dim),
        )
        self.blank = nn.Parameter(torch.randn(FROZEN.dim))
        self.core = travel.VARIANTS[variant]()
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, frames: Tensor, shown: Tensor, names: Tensor) -> tuple[Tensor, float]:
        """Scores (B, N, C) of the names (C, D), and the number of rounds.

        Args:
            frames: (B, N, D); anything where nothing is shown.
            shown: (B, N) bool.
            names: (C, D) unit rows.
        """
        values, num_rounds = self.core(
            self.enter(torch.where(shown[..., None], frames, self.blank))
        )
        found = F.normalize(self.leave(values), dim=-1)
        return self.log_scale.exp().clamp(max=100) * found @ names.T, num_rounds


def run(variant: str, seed: int, data: Drawings, steps: int = STEPS) -> dict[str, Any]:
    """Trains and tests a variant: accuracy and rounds by test set."""
    torch.manual_seed(seed)
    generator, model = Generator().manual_seed(seed), Model(variant)
    pictures = unit_tokens(data.whole) * FROZEN.dim**0.5
    names = unit_tokens(data.halves)[::NUM_HALVES]
    by_noto = torch.arange(data.of.shape[1]) == HELD_VENDOR
    theirs, noto = data.of.masked_fill(by_noto, -1), data.of.masked_fill(~by_noto, -1)

    def films(length: int, rate: float, of: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames (B, N, D), where they show something, names of the pool, and what is wanted."""
        usable = torch.nonzero(~data.held & (of >= 0).any(1)).flatten()
        pool = usable[torch.randperm(len(usable), generator=generator)[:POOL]]
        drawn = pictures[one_drawing(of[pool], generator)]
        label, wanted = travel.rows(BATCH, length, rate, generator, POOL)
        shown = label < POOL
        return drawn[label.clamp(max=POOL - 1)], shown, names[pool], wanted

    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        *film, wanted = films(*TRAINED_ON, theirs)
        loss = F.cross_entropy(model(*film)[0].flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    found: dict[str, Any] = {"num_parameters": sum(p.numel() for p in model.core.parameters())}
    generator.manual_seed(10_000)  # the same films for all
    for length, rate in TESTED_ON:
        *film, wanted = films(length, rate, noto)
        with torch.no_grad():
            scores, num_rounds = model(*film)
        right, before = scores.argmax(-1) == wanted, (wanted >= 0) & ~film[1]
        name = f"{length} frames, {rate:g}"
        found[name] = float(right[before].float().mean())
        found[f"{name}, shown now"] = float(right[film[1]].float().mean())
        found[f"{name}, rounds"] = num_rounds
    return found
