"""AudioCaps: ten seconds of a video's sound with captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, read_rows
from datamodules.sets.base import CaptionSet, Entry

_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


@final
class AudioCaps(CaptionSet):
    """AudioCaps (Kim et al. 2019, NAACL): one caption for a sound to train on, five for the others.

    Layout: `dataset/{train,val,test}.csv` (or the three without a folder) of
    https://github.com/cdjkim/audiocaps. The sounds are not published: they are cut out of YouTube
    videos, and many are gone. They are looked for in `train/`, `val/` and `test/` under one of the
    names that downloaders give: `YOUTUBEID_START`, `YOUTUBEID` or the number of a caption.
    """

    name = "audiocaps"
    splits = ("train", "val", "test")
    extensions = ("wav", "flac", "ogg", "opus", "mp3")
    licence = (
        "captions MIT, for academic use as their authors ask; the sound as its uploader has it"
    )
    origin = (
        "put train.csv, val.csv and test.csv of https://github.com/cdjkim/audiocaps there and the "
        "sounds, which you cut out of YouTube's videos, in train, val and test as "
        "YOUTUBEID_START.wav"
    )

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        table = find(root, [f"dataset/{split}.csv", f"{split}.csv"], self.origin)
        folder = find(root, [split], self.origin)
        sounds: dict[tuple[str, str], list[Mapping[str, str]]] = {}
        for row in read_rows(table, _COLUMNS):
            if isinstance(row, Refusal):
                yield row
            else:
                sounds.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
        paths = (path for path in folder.iterdir() if path.suffix[1:].lower() in self.extensions)
        files = {path.stem: path.name for path in sorted(paths)}
        for (video, start), rows in sounds.items():
            ids = [row["audiocap_id"] for row in rows]
            stems = [f"{video}_{start}", video, *ids]
            file = next((files[stem] for stem in stems if stem in files), f"{stems[0]}.wav")
            meta = {"youtube_id": video, "start_time": start, "audiocap_ids": ids}
            yield Entry(folder, file, [row["caption"] for row in rows], meta)
