"""Emoji drawn by ten vendors, as tensors: what `fusion data emoji-all` leaves.

Shapes: S samples, L words, P patches of a picture.
"""

import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIZE, PATCH, MAX_WORDS = 64, 8, 16
HELD_VENDOR = "noto"
HELD_CONCEPTS, HELD_DRAWINGS = 200, 0.2  # number, and share of the other vendors' drawings


class Emoji(NamedTuple):
    """All drawings.

    Attributes:
        pictures: (S, 3, 64, 64) uint8.
        concept: (S,) index of what is drawn.
        vendor: names of the vendors, one for each sample.
        words: (number of concepts, L) ids of the words of a concept; 0 is none.
        num_words: number of different words, 0 included.
        held_concept: (S,) bool, of a concept that is not trained on.
        held_vendor: (S,) bool, of the vendor that is not trained on.
        held_drawing: (S,) bool, a drawing that is not trained on, though its concept and its
            vendor are.
    """

    pictures: Tensor
    concept: Tensor
    vendor: list[str]
    words: Tensor
    num_words: int
    held_concept: Tensor
    held_vendor: Tensor
    held_drawing: Tensor


def load(shard: Path) -> Emoji:
    """Reads the shard."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.functional import resize

    pictures, concepts, vendors = [], [], []
    labels: dict[str, list[str]] = {}
    with tarfile.open(shard) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for name in sorted(files):
        if not name.endswith(".json"):
            continue
        meta = json.loads(files[name])
        data = np.frombuffer(files[name.replace(".json", ".webp")], np.uint8).copy()
        picture = decode_image(torch.from_numpy(data), ImageReadMode.RGB)
        pictures.append(resize(picture, [SIZE, SIZE], antialias=True))
        concepts.append(meta["concept"])
        vendors.append(meta["vendor"])
        words = " ".join([meta["label"], *meta["tags"]]).lower().replace("-", " ").split()
        labels[meta["concept"]] = [*map(str, dict.fromkeys(words))][:MAX_WORDS]
    order = {concept: index for index, concept in enumerate(sorted(labels))}
    vocabulary = {w: i + 1 for i, w in enumerate(sorted({w for ws in labels.values() for w in ws}))}
    words = torch.zeros(len(order), MAX_WORDS, dtype=torch.int64)
    for concept, index in order.items():
        ids = [vocabulary[word] for word in labels[concept]]
        words[index, : len(ids)] = torch.tensor(ids)
    concept = torch.tensor([order[name] for name in concepts])
    draw = torch.Generator().manual_seed(0)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[torch.randperm(len(order), generator=draw)[:HELD_CONCEPTS]] = True
    held_concept = chosen[concept]
    held_vendor = torch.tensor([vendor == HELD_VENDOR for vendor in vendors])
    drawing = torch.rand(len(concept), generator=draw) < HELD_DRAWINGS
    drawing &= ~held_concept & ~held_vendor
    held = held_concept, held_vendor, drawing
    return Emoji(torch.stack(pictures), concept, vendors, words, len(vocabulary) + 1, *held)
