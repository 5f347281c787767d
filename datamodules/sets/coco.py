"""COCO captions: photographs of everyday scenes with five captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, id_of, objects_of, read_object, text_of
from datamodules.sets.base import CaptionSet, Entry
from datamodules.sets.karpathy import ORIGIN, read_split

_KARPATHY, _FOLDERS = "dataset_coco.json", ("train2014", "val2014")


@final
class Coco(CaptionSet):
    """COCO captions (Chen et al. 2015, arXiv:1504.00325), of 2017 or of 2014.

    Layout: `annotations/captions_{train,val}2017.json` and `train2017/`, `val2017/`, or the same of
    2014; both from https://cocodataset.org/#download. Captions of test pictures are not published.
    Where `dataset_coco.json` lies beside them its splits are read instead (113,287 pictures to
    train on, 5,000 for val and 5,000 for test); they need the pictures of 2014.
    """

    name = "coco"
    splits = ("train", "val", "test")
    extensions = ("jpg",)
    licence = "captions CC-BY-4.0; the picture as its author on Flickr has it"
    origin = (
        "extract annotations_trainval2017.zip, train2017.zip and val2017.zip of "
        "https://cocodataset.org/#download there, or for Karpathy's splits, test among them, "
        f"train2014.zip and val2014.zip of it and dataset_coco.json from {ORIGIN}"
    )

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        path = root / _KARPATHY
        return self._karpathy(path, split) if path.exists() else self._published(root, split)

    def _karpathy(self, path: Path, split: str) -> Iterator[Entry | Refusal]:
        for image, captions in read_split(path, split):
            place, name = text_of(image, "filepath"), text_of(image, "filename")
            if place in _FOLDERS:
                folder = find(path.parent, [place], self.origin)
                yield Entry(folder, name, captions, {"image_id": id_of(image, "cocoid")})
            else:
                source = f"{_KARPATHY}: image {id_of(image, 'imgid')}"
                yield Refusal(source, "", f"its folder is not one of {', '.join(_FOLDERS)}")

    def _published(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        names = [f"annotations/captions_{split}{year}.json" for year in (2017, 2014)]
        path = find(root, names, self.origin)
        folder = find(root, [path.stem.removeprefix("captions_")], self.origin)
        value = read_object(path)
        terms = {
            id_of(row, "id"): text_of(row, "name") for row in objects_of(value, "licenses", path)
        }
        captions: dict[int | str | None, list[str]] = {}
        for row in objects_of(value, "annotations", path):
            captions.setdefault(id_of(row, "image_id"), []).append(text_of(row, "caption"))
        for image in objects_of(value, "images", path):
            number = id_of(image, "id")
            found = captions.pop(number, [])
            of_picture = terms.get(id_of(image, "license"))
            licence = f"captions CC-BY-4.0; picture: {of_picture}" if of_picture else self.licence
            meta = {"image_id": number, "licence": licence}
            yield Entry(folder, text_of(image, "file_name"), found, meta)
        for number in captions:
            source = f"{path.name}: image {number}"
            yield Refusal(source, "", "there are captions of it, but the file lists no such image")
