"""Scenes of four drawings, and words that point at one: find what is there, drawn by another.

A cell of a scene is one token, the mean of a drawing's. The words are "upper left" and the like.
The pool holds all four of each scene. A score that adds up what the picture says and what the
words say cannot tell the four apart: the picture shows all of them, and the words fit anything.
So the mean of unit embeddings is right one time in four at best.

Shapes: B batch, C concepts, V vendors, D width.
"""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmarks.ablation.drawings import HELD_VENDOR, Drawings
from benchmarks.ablation.fusions import FROZEN, Part
from benchmarks.ablation.occluded import one_drawing
from benchmarks.ablation.retrieval import Batch, Task, nothing, take
from fusion.layers import masked_mean

SCENES, STEPS, TESTED = 16, 300, 64  # scenes of a step, steps, scenes of each test
CELLS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.float32)


def task(data: Drawings, steps: int = STEPS) -> Task:
    """Trained on known concepts by known vendors; tested on the others."""
    cells = unit_tokens(data.whole)
    by_noto = torch.arange(data.of.shape[1]) == HELD_VENDOR
    theirs, noto = data.of.masked_fill(by_noto, -1), data.of.masked_fill(~by_noto, -1)

    def scenes(count: int, concepts: Tensor, aims: Tensor, generator: Generator) -> Batch:
        """Every scene with each of the four places."""
        others = (theirs >= 0).sum(1) > (aims == theirs).all(1)  # a drawing is not its own target
        usable = torch.nonzero(concepts & others & (aims >= 0).any(1)).flatten()
        order = torch.randperm(len(usable), generator=generator)
        four = usable[order[: 4 * min(count, len(usable) // 4)]]  # a concept is shown once
        target = one_drawing(aims[four], generator)
        seen = one_drawing(theirs[four].masked_fill(theirs[four] == target[:, None], -1), generator)
        shown = _part(cells[seen].view(-1, 4, FROZEN.dim).repeat_interleave(4, 0), CELLS)
        words = take(data.places, torch.arange(4).repeat(len(four) // 4))
        found = _part(cells[target][:, None], CELLS[:1])
        ids = torch.arange(len(four))
        return Batch([shown, words], [found, nothing(len(ids), FROZEN.dim)], ids, ids)

    def draw(generator: Generator) -> Batch:
        return scenes(SCENES, ~data.held, theirs, generator)

    def test(concepts: Tensor, aims: Tensor) -> Batch:
        return scenes(TESTED, concepts, aims, Generator().manual_seed(1))

    tests = {
        "held vendor": test(~data.held, noto),
        "held concepts": test(data.held, theirs),
        "both": test(data.held, noto),
    }
    return Task(draw, tests, {0: "image", 1: "words"}, FROZEN, steps)


def unit_tokens(part: Part) -> Tensor:
    """One unit token (S, D) for each sample."""
    return F.normalize(masked_mean(part.values, part.mask), dim=-1)


def _part(values: Tensor, position: Tensor) -> Part:
    batch, length, _ = values.shape
    mask = torch.ones(batch, length, dtype=torch.bool)
    return Part(values, mask, position.expand(batch, -1, -1))
