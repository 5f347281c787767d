"""ESC-50: five seconds of a sound of one of fifty classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, read_rows
from datamodules.sets.base import CaptionSet, Entry

_COLUMNS = ("filename", "fold", "category", "esc10", "src_file")


@final
class Esc50(CaptionSet):
    """ESC-50 (Piczak 2015, ACM MM): the caption is made of the class, "the sound of rain".

    Layout: `meta/esc50.csv` and `audio/`, in a folder ESC-50-master or not, of
    https://github.com/karolpiczak/ESC-50. The publishers split by fold, for five-fold
    cross-validation: `fold1` to `fold5`; `all` is the five.
    """

    name = "esc50"
    splits = ("all", *(f"fold{number}" for number in range(1, 6)))
    extensions = ("wav",)
    licence = "CC-BY-NC-3.0"
    origin = "extract the archive of https://github.com/karolpiczak/ESC-50 there"

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        names = ["meta/esc50.csv", "ESC-50-master/meta/esc50.csv"]
        table = find(root, names, self.origin)
        folder = find(table.parent.parent, ["audio"], self.origin)
        for row in read_rows(table, _COLUMNS):
            if isinstance(row, Refusal):
                yield row
            elif split in ("all", f"fold{row['fold']}"):
                caption = f"the sound of {row['category'].replace('_', ' ')}"
                meta = {"category": row["category"], "fold": row["fold"]}
                meta["freesound_id"] = row["src_file"]
                if row["esc10"] == "True":
                    meta["licence"] = "CC-BY-3.0"
                yield Entry(folder, row["filename"], [caption], meta)
