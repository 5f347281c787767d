"""Flickr30k: photographs of people and animals with five captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, id_of, text_of
from datamodules.sets.base import CaptionSet, Entry
from datamodules.sets.karpathy import ORIGIN, read_split

_TOKENS, _KARPATHY, _PICTURES = (
    "results_20130124.token",
    "dataset_flickr30k.json",
    "flickr30k-images",
)


@final
class Flickr30k(CaptionSet):
    """Flickr30k (Young et al. 2014, TACL 2:67-78).

    Layout: `flickr30k-images/` and `results_20130124.token` of the publishers, who send a link
    after a form: https://shannon.cs.illinois.edu/DenotationGraph/. They publish no splits;
    `train` (29,000), `val` (1,014) and `test` (1,000) are Karpathy's and need
    `dataset_flickr30k.json`, `all` needs the token file.
    """

    name = "flickr30k"
    splits = ("train", "val", "test", "all")
    extensions = ("jpg",)
    licence = "research and education, not commercial; the picture as its author on Flickr has it"
    origin = (
        f"extract {_PICTURES} and {_TOKENS} of https://shannon.cs.illinois.edu/DenotationGraph/ "
        f"there and, unless you give --split all, {_KARPATHY} from {ORIGIN}"
    )

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        path = find(root, [_TOKENS if split == "all" else _KARPATHY], self.origin)
        folder = find(root, [_PICTURES], self.origin)
        return _tokens(path, folder) if split == "all" else _karpathy(path, folder, split)


def _karpathy(path: Path, folder: Path, split: str) -> Iterator[Entry]:
    for image, captions in read_split(path, split):
        meta = {"image_id": id_of(image, "imgid")}
        yield Entry(folder, text_of(image, "filename"), captions, meta)


def _tokens(path: Path, folder: Path) -> Iterator[Entry | Refusal]:
    """Lines `PICTURE.jpg#NUMBER<tab>CAPTION`."""
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            name, tab, caption = line.partition("\t")
            picture, mark, _ = name.rpartition("#")
            if tab and mark:
                captions.setdefault(picture, []).append(caption)
            elif line.strip():
                yield Refusal(f"{path.name}:{number}", "", "it is not PICTURE#NUMBER, tab, caption")
    for picture, found in captions.items():
        yield Entry(folder, picture, found)
