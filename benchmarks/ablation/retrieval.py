"""Trains and tests one way of fusing on tokens of frozen towers.

A query has several modalities, and the model learns to find the target by all of them and, in
turn, by each alone, so that "fused" has a fair rival: the mean of the unit embeddings of the parts,
by the same model.

Shapes: B batch, M modalities, N tokens, D width.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks.ablation.costs import count_flops
from benchmarks.ablation.fusions import Part, Size, build
from fusion.losses import contrastive_loss
from fusion.metrics import retrieval_scores

LR = 3e-3
PLACE = 0.044  # deviation of the vectors of places, beside unit tokens
LONGEST, PRICED = 64, 256  # tokens of a modality, samples whose cost is counted


class Batch(NamedTuple):
    """Queries and targets; in training, query i belongs to target i.

    Attributes:
        query: M parts; one that no query has is `nothing`.
        target: M parts.
        wanted: (B,) what each query looks for.
        found: (T,) what each target is; a target is right where the two are equal.
    """

    query: list[Part]
    target: list[Part]
    wanted: Tensor
    found: Tensor


class Task(NamedTuple):
    """What a run learns and is tested on.

    Attributes:
        draw: gives a batch to train on.
        tests: batches never trained on, by name.
        parts: names of the modalities that make up a query, by their index.
        size: of the ways of fusing.
        steps: of training.
    """

    draw: Callable[[Generator], Batch]
    tests: Mapping[str, Batch]
    parts: Mapping[int, str]
    size: Size
    steps: int


def nothing(batch: int, dim: int) -> Part:
    """A modality that no sample has."""
    mask = torch.zeros(batch, 1, dtype=torch.bool)
    return Part(torch.zeros(batch, 1, dim), mask, torch.zeros(batch, 1, 3))


def take(part: Part, index: Tensor) -> Part:
    """The samples (B,) of a part, without columns that none of them fills."""
    mask = part.mask[index]
    length = max(1, int(mask.sum(1).max()))
    return Part(part.values[index, :length], mask[:, :length], part.position[index, :length])


class Model(nn.Module):
    """A learned vector for each place of a token, and one way of fusing."""

    def __init__(self, fusion: str, size: Size) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(size.num_modalities, LONGEST, size.dim) * PLACE)
        self.fusion = build(fusion, size)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Unit rows (B, D)."""
        placed = [
            part._replace(values=part.values + place[: part.values.shape[1]])
            for part, place in zip(parts, self.place, strict=True)
        ]
        return self.fusion(placed)

    def alone(self, query: list[Part], index: int) -> Tensor:
        """Unit rows (B, D) of one modality of the queries."""
        batch, _, dim = query[index].values.shape
        return self([p if i == index else nothing(batch, dim) for i, p in enumerate(query)])


def run(fusion: str, seed: int, task: Task) -> dict[str, Any]:
    """Trains and tests; the draws are the same for every way of fusing."""
    torch.manual_seed(seed)
    model, generator = Model(fusion, task.size), Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=task.steps)
    parts, began, warm = list(task.parts), time.process_time(), min(5, task.steps - 1)
    for step in range(task.steps):
        if step == warm:
            began = time.process_time()
        batch = task.draw(generator)
        target, scale = model(batch.target), model.log_scale.exp().clamp(max=100)
        rows = model(batch.query), model.alone(batch.query, parts[step % len(parts)])
        losses = [contrastive_loss(row, target, scale, batch.wanted) for row in rows]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = (time.process_time() - began) / (task.steps - warm)
    found: dict[str, Any] = {
        "num_parameters": sum(p.numel() for p in model.fusion.parameters()),
        "ms_per_step": 1000 * seconds,
    }
    for name, test in task.tests.items():
        found[name] = evaluate(model.eval(), test, task.parts)
    found["num_iters"] = getattr(model.fusion, "num_iters", 0.0)
    first = next(iter(task.tests.values()))
    some = torch.arange(min(PRICED, len(first.wanted)))
    found["mflop"] = count_flops(model, [take(part, some) for part in first.query]) / 1e6
    return found


@torch.no_grad()
def evaluate(model: Model, test: Batch, parts: Mapping[int, str]) -> dict[str, float]:
    """R@1 of all parts fused, of each alone, and of the mean of their unit embeddings."""
    rows = {"fused": model(test.query)}
    alone = {f"{name} alone": model.alone(test.query, i) for i, name in parts.items()}
    rows |= alone
    rows["mean of units"] = F.normalize(torch.stack([*alone.values()]).sum(0), dim=-1)
    target, right = model(test.target), test.wanted[:, None] == test.found
    return {name: retrieval_scores(row, target, right).recall_at_1 for name, row in rows.items()}
