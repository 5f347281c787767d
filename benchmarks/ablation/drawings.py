"""Emoji as five vendors draw them, through frozen towers: what `occluded` and `changed` share.

Shapes: S drawings, C concepts, W windows of a drawing, T texts, N tokens, D width.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.ablation.frozen import Towers, fit_space, into, window
from benchmarks.ablation.fusions import FROZEN, Part

VENDORS = ("emojione", "fluent-3d", "openmoji", "twemoji", "noto")
HELD_VENDOR = VENDORS.index("noto")
HELD_CONCEPTS = 0.15  # share of the concepts
NUM_WINDOWS, NUM_HALVES = 2, 4  # of each drawing, and of the words of each concept
PLACES = ["upper left", "upper right", "lower left", "lower right"]
LEFT_OUT = ("flag:", "regional indicator")  # their words name what they are, and nothing else does


class Drawings(NamedTuple):
    """All drawings and words, as tokens of width D.

    Attributes:
        whole: (S, N, D) the drawings.
        windows: (W S, N, D) what a window of each shows; window w of drawing s is at w S + s.
        halves: (C NUM_HALVES, N, D) half of the words of a concept, drawn again and again.
        changes: (T, N, D) single words, in the order of `vocabulary`.
        places: (4, N, D) `PLACES`.
        vocabulary: the words of `changes`.
        labels: name of each concept, as words.
        of: (C, number of vendors) the drawing of a concept by a vendor, -1 if there is none.
        held: (C,) bool, concepts that are not trained on.
    """

    whole: Part
    windows: Part
    halves: Part
    changes: Part
    places: Part
    vocabulary: list[str]
    labels: list[list[str]]
    of: Tensor
    held: Tensor


class _Drawing(NamedTuple):
    key: str
    picture: Tensor
    concept: str
    vendor: int


def load(shard: Path, tokens: Path) -> Drawings:
    """Reads the shard of `fusion data emoji-all`; tokens are kept in a folder."""
    words: dict[str, tuple[list[str], list[str]]] = {}
    drawings = list(_read(shard, words))
    concepts = sorted(words)
    of = torch.full((len(concepts), len(VENDORS)), -1)
    for index, drawing in enumerate(drawings):
        of[concepts.index(drawing.concept), drawing.vendor] = index
    draw = Generator().manual_seed(0)
    held = torch.rand(len(concepts), generator=draw) < HELD_CONCEPTS
    labels = [words[concept][0] for concept in concepts]
    whole_texts = [" ".join(words[concept][1]) for concept in concepts]
    halves = [half(words[c][1], draw) for c in concepts for _ in range(NUM_HALVES)]
    vocabulary = sorted({word for label in labels for word in label})
    whole, windows, text = _encode(drawings, whole_texts + halves + vocabulary + PLACES, tokens)
    owner = torch.full((len(drawings),), -1)
    for vendor in range(len(VENDORS)):
        owner[of[:, vendor][of[:, vendor] >= 0]] = torch.nonzero(of[:, vendor] >= 0).flatten()
    known = ~held[owner]
    known[of[:, HELD_VENDOR][of[:, HELD_VENDOR] >= 0]] = False
    trained = torch.nonzero(known).flatten()
    row = torch.full((len(concepts),), -1)
    row[~held] = torch.arange(int((~held).sum()))
    every = torch.cat([trained + w * len(drawings) for w in range(NUM_WINDOWS)])
    seen = Part(*(torch.cat([a[trained], b[every]]) for a, b in zip(whole, windows, strict=True)))
    to_text = row[owner[trained]].repeat(1 + NUM_WINDOWS)
    names = Part(*(column[: len(concepts)][~held] for column in text))
    space = fit_space(names, {"image": (seen, to_text)}, FROZEN.dim)
    words_in, end = into(text, space.text), len(concepts) * (1 + NUM_HALVES)
    return Drawings(
        into(whole, space.other["image"]),
        into(windows, space.other["image"]),
        Part(*(column[len(concepts) : end] for column in words_in)),
        Part(*(column[end : -len(PLACES)] for column in words_in)),
        Part(*(column[-len(PLACES) :] for column in words_in)),
        vocabulary,
        labels,
        of,
        held,
    )


def half(words: list[str], generator: Generator) -> str:
    """Half of the words, at least one, in their order."""
    count = (len(words) + 1) // 2
    kept = torch.randperm(len(words), generator=generator)[:count].sort().values
    return " ".join(words[index] for index in kept.tolist())


def _encode(drawings: list[_Drawing], texts: list[str], folder: Path) -> tuple[Part, Part, Part]:
    towers = Towers(folder)
    keys = [drawing.key for drawing in drawings]
    views = [(index, view) for view in range(NUM_WINDOWS) for index in range(len(keys))]

    def show(number: int) -> Tensor:
        index, view = views[number]
        return window(drawings[index].picture, Generator().manual_seed(10 * index + view))

    return (
        towers.see(keys, lambda index: drawings[index].picture),
        towers.see([f"{keys[index]}, window {view}" for index, view in views], show),
        towers.read(texts),
    )


def _read(shard: Path, words: dict[str, tuple[list[str], list[str]]]) -> Iterator[_Drawing]:
    from torchvision.io import ImageReadMode, decode_image

    with tarfile.open(shard) as archive:
        files: Mapping[str, io.BufferedIOBase] = {
            member.name: io.BytesIO(archive.extractfile(member).read())  # type: ignore[union-attr]
            for member in archive
        }
    for name in sorted(name for name in files if name.endswith(".json")):
        meta = json.load(files[name])
        if meta["vendor"] not in VENDORS or meta["label"].startswith(LEFT_OUT):
            continue
        label = meta["label"].lower().replace("-", " ").replace(":", " ").replace(",", " ").split()
        words[meta["concept"]] = label, list(dict.fromkeys([*label, *meta["tags"]]))
        data = bytearray(files[name.replace(".json", ".webp")].read())
        picture = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
        yield _Drawing(name[:-5], picture, meta["concept"], VENDORS.index(meta["vendor"]))
