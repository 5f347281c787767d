"""Clotho: 15 to 30 seconds of sound with five captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find, read_rows
from datamodules.sets.base import CaptionSet, Entry

_PARTS = {"train": "development", "val": "validation", "test": "evaluation"}
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
_ABOUT = ("sound_id", "manufacturer", "license")


@final
class Clotho(CaptionSet):
    """Clotho 2.1 (Drossos et al. 2020, arXiv:1910.09387).

    Layout: `clotho_captions_PART.csv`, `clotho_metadata_PART.csv` and the folder `PART/` of
    clotho_audio_PART.7z, for the parts development (the split `train`, 3,839 sounds), validation
    (`val`, 1,045) and evaluation (`test`, 1,045), from https://zenodo.org/records/4783391. The
    metadata may be missing: it gives each sound's author and licence.
    """

    name = "clotho"
    splits = tuple(_PARTS)
    extensions = ("wav",)
    licence = "captions: Tampere University, not commercial; sounds: see clotho_metadata_*.csv"
    origin = (
        "put clotho_captions_*.csv and clotho_metadata_*.csv of "
        "https://zenodo.org/records/4783391 there and extract clotho_audio_*.7z of it"
    )

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        part = _PARTS[split]
        table = find(root, [f"clotho_captions_{part}.csv"], self.origin)
        folder = find(root, [part], self.origin)
        about = _about(root / f"clotho_metadata_{part}.csv")
        for row in read_rows(table, ("file_name", *_CAPTIONS)):
            if isinstance(row, Refusal):
                yield row
                continue
            captions = [row[column] for column in _CAPTIONS]
            yield Entry(folder, row["file_name"], captions, about.get(row["file_name"], {}))


def _about(path: Path) -> dict[str, dict[str, str]]:
    """File -> id and author on Freesound and licence; rows that cannot be read are left out."""
    if not path.is_file():
        return {}
    rows = [row for row in read_rows(path, ("file_name", *_ABOUT)) if not isinstance(row, Refusal)]
    return {
        row["file_name"]: {
            "freesound_id": row["sound_id"],
            "author": row["manufacturer"],
            "licence": f"captions: Tampere University, not commercial; sound: {row['license']}",
        }
        for row in rows
    }
