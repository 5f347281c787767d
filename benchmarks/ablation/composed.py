"""Composed retrieval of emoji: a few patches of one drawing and half the words find another one.

Towers from scratch: a small transformer over the patches that are seen, one over words. The query
is 15 % of the patches of one vendor's drawing and half of the concept's words, the target another
vendor's whole drawing. One vendor, 200 concepts and a fifth of the other drawings are never trained
on.

Shapes: B batch, P patches, L words, D width.
"""

import time
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks.ablation.costs import count_flops
from benchmarks.ablation.emoji import PATCH, SIZE, Emoji
from benchmarks.ablation.fusions import HEADS, SCRATCH, Part, build
from fusion.losses import contrastive_loss
from fusion.metrics import retrieval_scores

GRID = SIZE // PATCH
SEEN = round(0.15 * GRID * GRID)
DIM = SCRATCH.dim
BATCH, STEPS, LR, LAYERS = 512, 1000, 1e-3, 4
EVALUATED = ("fused", "image alone", "words alone", "mean of units")


class Towers(nn.Module):
    """Patches and words to tokens of width D."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, DIM)
        self.place = nn.Parameter(torch.randn(GRID * GRID, DIM) * 0.02)
        self.word = nn.Embedding(num_words, DIM)
        self.image, self.text = (
            nn.ModuleList(
                nn.TransformerEncoderLayer(
                    DIM, HEADS, 4 * DIM, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
            for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def see(self, pictures: Tensor, kept: Tensor) -> Part:
        """Tokens of the patches `kept` (B, P) of pictures (B, 3, S, S) uint8."""
        cut = pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        patches = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).float() / 127.5 - 1
        some = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        values = self.patch(some) + self.place[kept]
        for layer in self.image:
            values = layer(values)
        row, column = kept // GRID, kept % GRID
        position = torch.stack([torch.zeros_like(row), row, column], -1) / GRID
        return Part(values, torch.ones_like(kept, dtype=torch.bool), position)

    def read(self, words: Tensor) -> Part:
        """Tokens of words (B, L); 0 is none."""
        mask = words > 0
        values = self.word(words)
        for layer in self.text:
            values = layer(values, src_key_padding_mask=~mask)
        position = torch.zeros(*words.shape, 3, device=words.device)
        position[..., 0] = torch.arange(words.shape[1], device=words.device)
        return Part(values, mask, position)


class Model(nn.Module):
    """Towers and one way of fusing."""

    def __init__(self, fusion: str, num_words: int) -> None:
        super().__init__()
        self.towers, self.fusion = Towers(num_words), build(fusion, SCRATCH)

    def forward(self, image: Part, text: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Unit rows (B, D): both fused, the image alone, the words alone."""
        images = [image, image, image._replace(mask=torch.zeros_like(image.mask))]
        texts = [text, text._replace(mask=torch.zeros_like(text.mask)), text]
        rows = self.fusion([_side_by_side(images), _side_by_side(texts)])
        fused, alone, words = rows.chunk(3)
        return fused, alone, words

    def target(self, image: Part) -> Tensor:
        """Unit rows (B, D) of pictures."""
        no_words = Part(*(column.new_zeros(len(column), 1, *column.shape[2:]) for column in image))
        return self.fusion([image, no_words])


def _side_by_side(parts: list[Part]) -> Part:
    return Part(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Pairs:
    """Draws training batches on the device."""

    def __init__(self, data: Emoji, device: str, seed: int) -> None:
        self.data, self.device = data, device
        self.generator = Generator(device).manual_seed(seed)
        trained = ~(data.held_concept | data.held_vendor | data.held_drawing)
        of = [
            torch.nonzero(trained & (data.concept == c)).flatten() for c in range(len(data.words))
        ]
        self.count = torch.tensor([len(rows) for rows in of], device=device)
        self.rows = nn.utils.rnn.pad_sequence(of, batch_first=True).to(device)
        self.concepts = torch.nonzero(self.count > 1).flatten()

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Concepts (B,), and two different drawings of each."""
        order = torch.randperm(len(self.concepts), generator=self.generator, device=self.device)
        chosen = self.concepts[order[:BATCH]]
        draws = torch.rand(2, BATCH, generator=self.generator, device=self.device)
        count = self.count[chosen]
        first = (draws[0] * count).long()
        second = (first + 1 + (draws[1] * (count - 1)).long()) % count
        return chosen, self.rows[chosen, first], self.rows[chosen, second]


def some_patches(batch: int, num: int, generator: Generator) -> Tensor:
    """(B, num) different patches of each picture."""
    noise = torch.rand(batch, GRID * GRID, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :num]


def half(words: Tensor, generator: Generator) -> Tensor:
    """Half of the words of each row, at least one, the others 0."""
    noise = torch.rand(words.shape, generator=generator, device=generator.device)
    noise = noise.masked_fill(words == 0, 2.0)
    rank = noise.argsort(1).argsort(1)
    count = ((words > 0).sum(1, keepdim=True) + 1) // 2
    return words.masked_fill(rank >= count, 0)


def run(fusion: str, seed: int, device: str, data: Emoji, steps: int = STEPS) -> dict[str, Any]:
    """Trains and tests one way of fusing."""
    torch.manual_seed(seed)
    pictures, words = data.pictures.to(device), data.words.to(device)
    pairs, model = Pairs(data, device, seed), Model(fusion, data.num_words).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    every = torch.arange(GRID * GRID, device=device).expand(BATCH, -1)
    began, timed = time.perf_counter(), 0
    for step in range(steps):
        if step == min(20, steps // 2):
            _wait(device)
            began, timed = time.perf_counter(), step
        concept, first, second = pairs.draw()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            part = model.towers.see(pictures[first], some_patches(BATCH, SEEN, pairs.generator))
            text = model.towers.read(half(words[concept], pairs.generator))
            target = model.target(model.towers.see(pictures[second], every))
            queries = model(part, text)
        scale = model.towers.log_scale.exp().clamp(max=100)
        losses = [contrastive_loss(q.float(), target.float(), scale) for q in queries]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    _wait(device)
    seconds = (time.perf_counter() - began) / (steps - timed)
    found = {
        "num_parameters": sum(p.numel() for p in model.fusion.parameters()),
        "ms_per_step": 1000 * seconds,
        "num_iters": getattr(model.fusion, "num_iters", 0.0),
    }
    known = ~data.held_concept
    sets = {
        "held vendor": (known & ~data.held_vendor & ~data.held_drawing, data.held_vendor & known),
        "held concepts": (data.held_concept & ~data.held_vendor,) * 2,
        "held drawings": (data.held_drawing,) * 2,
    }
    for name, (queries, targets) in sets.items():
        found[name] = evaluate(model.eval(), data, queries, targets, device)
    found["mflop"] = count_flops(model.fusion, [part, text]) / 1e6
    return found


def one_pair_each(data: Emoji, queries: Tensor, targets: Tensor) -> list[tuple[int, int, int]]:
    """For each concept that has both: itself, its first query, and its last other target."""
    pairs = []
    for concept in range(len(data.words)):
        mine = data.concept == concept
        first = torch.nonzero(mine & queries).flatten().tolist()[:1]
        last = [i for i in torch.nonzero(mine & targets).flatten().tolist()[::-1] if [i] != first]
        if first and last:
            pairs.append((concept, first[0], last[0]))
    return pairs


@torch.no_grad()
def evaluate(
    model: Model, data: Emoji, queries: Tensor, targets: Tensor, device: str
) -> dict[str, float]:
    """R@1 of parts of drawings and half the words, among one target drawing of each concept."""
    chosen, first, second = torch.tensor(one_pair_each(data, queries, targets)).T
    generator = Generator(device).manual_seed(1)
    kept = some_patches(len(chosen), SEEN, generator)
    text = half(data.words[chosen].to(device), generator)
    every = torch.arange(GRID * GRID, device=device).expand(len(chosen), -1)
    query, target = data.pictures[first].to(device), data.pictures[second].to(device)
    found: dict[str, list[Tensor]] = {name: [] for name in ("target", *EVALUATED)}
    for some in torch.arange(len(chosen), device=device).split(BATCH):
        part = model.towers.see(query[some], kept[some])
        words = model.towers.read(text[some])
        fused, image, text_alone = model(part, words)
        found["target"].append(model.target(model.towers.see(target[some], every[some])))
        found["fused"].append(fused)
        found["image alone"].append(image)
        found["words alone"].append(text_alone)
        found["mean of units"].append(F.normalize(image + text_alone, dim=-1))
    right = torch.eye(len(chosen), dtype=torch.bool)
    targets = torch.cat(found["target"]).cpu()
    return {
        name: retrieval_scores(torch.cat(found[name]).cpu(), targets, right).recall_at_1
        for name in EVALUATED
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
