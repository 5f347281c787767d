"""MSR-VTT: clips of web videos with twenty captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, id_of, objects_of, read_object, text_of
from datamodules.sets.base import CaptionSet, Entry

# split -> (file, folder, word in the file)
_PARTS = {
    "train": ("train_val_videodatainfo.json", "TrainValVideo", "train"),
    "val": ("train_val_videodatainfo.json", "TrainValVideo", "validate"),
    "test": ("test_videodatainfo.json", "TestVideo", "test"),
}


@final
class MsrVtt(CaptionSet):
    """MSR-VTT (Xu et al. 2016, CVPR): 6,513 clips for train, 497 for val, 2,990 for test.

    Layout: `train_val_videodatainfo.json` and `TrainValVideo/`, `test_videodatainfo.json` and
    `TestVideo/`, as the 2016 challenge gave them out (https://ms-multimedia-challenge.com/2016);
    its site is gone and copies are passed on, so check whose you take.
    """

    name = "msrvtt"
    splits = tuple(_PARTS)
    extensions = ("mp4",)
    licence = "not stated by the publishers; the video as its uploader on YouTube has it"
    origin = (
        "put train_val_videodatainfo.json, test_videodatainfo.json and the folders TrainValVideo "
        "and TestVideo of the 2016 challenge (https://ms-multimedia-challenge.com/2016) there"
    )

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        file, place, word = _PARTS[split]
        path = find(root, [file], self.origin)
        folder = find(root, [place], self.origin)
        value = read_object(path)
        captions: dict[str, list[str]] = {}
        for row in objects_of(value, "sentences", path):
            captions.setdefault(text_of(row, "video_id"), []).append(text_of(row, "caption"))
        for video in objects_of(value, "videos", path):
            name = text_of(video, "video_id")
            if text_of(video, "split") == word:
                meta = {"video_id": name, "category": id_of(video, "category")}
                meta["url"] = text_of(video, "url")
                yield Entry(folder, f"{name}.mp4" if name else "", captions.get(name, []), meta)
