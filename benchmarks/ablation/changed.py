"""Composed retrieval as the field means it: a drawing and the word of a change find the result.

Names of emoji that differ in one word make the pairs: "woman cook" and "man cook", "red heart" and
"blue heart", "woman cook" and "woman judge". The query is a drawing of the one and the other's
word; the target is another vendor's drawing of the other. Neither part names it alone.

Shapes: B batch, C concepts, P pairs.
"""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.ablation.drawings import HELD_VENDOR, Drawings
from benchmarks.ablation.fusions import FROZEN
from benchmarks.ablation.occluded import one_drawing
from benchmarks.ablation.retrieval import Batch, Task, nothing, take

BATCH, STEPS = 64, 300
TESTED = 4  # changes of each concept that are tested, at most


class Changes(NamedTuple):
    """Pairs of concepts, each with the word that one has instead of the other's.

    Attributes:
        source: (P,) concept that is drawn.
        word: (P,) index of the word, in the vocabulary.
        target: (P,) concept that is looked for.
        weight: (P,) share of the draws: even over sources, then over patterns of a name.
    """

    source: Tensor
    word: Tensor
    target: Tensor
    weight: Tensor


def changes(data: Drawings) -> Changes:
    """All pairs; a word counts if it changes at least two names."""
    patterns: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for concept, label in enumerate(data.labels):
        for place in range(len(label) if len(label) > 1 else 0):
            patterns[(*label[:place], "", *label[place + 1 :])][label[place]] = concept
    used: dict[str, int] = defaultdict(int)
    for fits in patterns.values():
        for word in fits if len(fits) > 1 else ():
            used[word] += 1
    rows, weights = [], []
    for fits in patterns.values():
        common = {word: concept for word, concept in fits.items() if used[word] > 1}
        for word, target in common.items():
            for other, source in common.items():
                if other != word:
                    rows.append((source, data.vocabulary.index(word), target))
                    weights.append(1 / (len(common) - 1))
    source, word, target = torch.tensor(rows).T
    weight = torch.tensor(weights)
    total = torch.zeros(len(data.labels)).index_add(0, source, weight)
    return Changes(source, word, target, weight / total[source])


def task(data: Drawings, steps: int = STEPS) -> Task:
    """Trained on known concepts by known vendors; tested on the others."""
    pairs = changes(data)
    known = torch.arange(data.of.shape[1]) != HELD_VENDOR
    theirs = data.of.masked_fill(~known, -1)
    drawn = (theirs >= 0).any(1)
    usable = drawn[pairs.source] & drawn[pairs.target]
    trained = usable & ~data.held[pairs.source] & ~data.held[pairs.target]
    odds = pairs.weight * trained

    def draw(generator: Generator) -> Batch:
        chosen = torch.multinomial(odds, BATCH, generator=generator)
        target = one_drawing(theirs[pairs.target[chosen]], generator)
        return _batch(data, pairs, chosen, one_source(chosen, target, generator), target)

    def one_source(chosen: Tensor, target: Tensor, generator: Generator) -> Tensor:
        """A drawing by another vendor than the target's, where there is one."""
        of = theirs[pairs.source[chosen]]
        vendor = (data.of[pairs.target[chosen]] == target[:, None]).int().argmax(1, keepdim=True)
        others = of.scatter(1, vendor, -1)
        return one_drawing(torch.where((others >= 0).any(1, keepdim=True), others, of), generator)

    def test(targets: Tensor, by_held_vendor: bool) -> Batch:
        generator = Generator().manual_seed(1)
        of = data.of[:, HELD_VENDOR] if by_held_vendor else one_drawing(theirs, generator)
        pool = torch.nonzero(of >= 0).flatten()
        pool = pool[torch.isin(pool, pairs.target)]
        fits = torch.nonzero(usable & targets[pairs.target] & (of[pairs.target] >= 0)).flatten()
        fits = fits[torch.randperm(len(fits), generator=generator)]
        fits = fits[_first_of_each(pairs.target[fits], TESTED)]
        source = one_source(fits, of[pairs.target[fits]], generator)
        batch = _batch(data, pairs, fits, source, of[pool])
        return batch._replace(found=pool)

    tests = {
        "held vendor": test(~data.held, True),
        "held concepts": test(data.held, False),
        "both": test(data.held, True),
    }
    return Task(draw, tests, {0: "image", 1: "words"}, FROZEN, steps)


def _first_of_each(values: Tensor, count: int) -> Tensor:
    """(B,) bool, whether a value stands for the first `count` times."""
    seen: dict[int, int] = defaultdict(int)
    first = []
    for value in values.tolist():
        seen[value] += 1
        first.append(seen[value] <= count)
    return torch.tensor(first)


def _batch(data: Drawings, pairs: Changes, chosen: Tensor, source: Tensor, target: Tensor) -> Batch:
    wanted = pairs.target[chosen]
    query = [take(data.whole, source), take(data.changes, pairs.word[chosen])]
    aim = [take(data.whole, target), nothing(len(target), FROZEN.dim)]
    return Batch(query, aim, wanted, wanted)
