"""Composed retrieval on frozen towers: a window of a drawing and half its words find another one.

The query is what a window of 15 % of the area shows of one vendor's drawing, and half of the
concept's words; the target another vendor's whole drawing.

Shapes: B batch, C concepts.
"""

import torch
from torch import Generator, Tensor

from benchmarks.ablation.drawings import HELD_VENDOR, NUM_HALVES, NUM_WINDOWS, Drawings
from benchmarks.ablation.fusions import FROZEN
from benchmarks.ablation.retrieval import Batch, Task, nothing, take

BATCH, STEPS = 64, 200


def task(data: Drawings, steps: int = STEPS) -> Task:
    """Trained on known concepts by known vendors; tested on the others."""
    known = torch.arange(data.of.shape[1]) != HELD_VENDOR
    theirs = data.of.masked_fill(~known, -1)
    trained = torch.nonzero(~data.held & ((theirs >= 0).sum(1) > 1)).flatten()

    def draw(generator: Generator) -> Batch:
        concept = trained[torch.randperm(len(trained), generator=generator)[:BATCH]]
        return _batch(data, concept, *two_drawings(theirs[concept], generator), generator)

    def test(concepts: Tensor, by_held_vendor: bool) -> Batch:
        generator = Generator().manual_seed(1)
        targets = data.of[:, HELD_VENDOR] if by_held_vendor else None
        fits = concepts & ((theirs >= 0).sum(1) > 1 - by_held_vendor)
        if targets is not None:
            fits &= targets >= 0
        concept = torch.nonzero(fits).flatten()
        if targets is not None:
            source = one_drawing(theirs[concept], generator)
            return _batch(data, concept, source, targets[concept], generator)
        return _batch(data, concept, *two_drawings(theirs[concept], generator), generator)

    tests = {
        "held vendor": test(~data.held, True),
        "held concepts": test(data.held, False),
        "both": test(data.held, True),
    }
    return Task(draw, tests, {0: "image", 1: "words"}, FROZEN, steps)


def one_drawing(of: Tensor, generator: Generator) -> Tensor:
    """(B,) a drawing of each concept, of those (B, vendors) that are not -1."""
    noise = torch.rand(of.shape, generator=generator).masked_fill(of < 0, -1)
    return of.gather(1, noise.argmax(1, keepdim=True)).flatten()


def two_drawings(of: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two different drawings (B,) of each concept."""
    first = one_drawing(of, generator)
    return first, one_drawing(of.masked_fill(of == first[:, None], -1), generator)


def _batch(
    data: Drawings, concept: Tensor, source: Tensor, target: Tensor, generator: Generator
) -> Batch:
    view = torch.randint(NUM_WINDOWS, concept.shape, generator=generator)
    text = torch.randint(NUM_HALVES, concept.shape, generator=generator)
    seen = take(data.windows, view * len(data.whole.mask) + source)
    read = take(data.halves, concept * NUM_HALVES + text)
    aim = [take(data.whole, target), nothing(len(concept), FROZEN.dim)]
    return Batch([seen, read], aim, concept, concept)
