"""LibriSpeech: audiobooks read aloud, cut into utterances with transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from datamodules.pack.source import Refusal
from datamodules.sets.annotations import find
from datamodules.sets.base import CaptionSet, Entry, shown


@final
class LibriSpeech(CaptionSet):
    """LibriSpeech (Panayotov et al. 2015, ICASSP); the splits are the publishers' subsets.

    Layout: `LibriSpeech/SUBSET/SPEAKER/CHAPTER/` with `SPEAKER-CHAPTER-NUMBER.flac` and one
    `SPEAKER-CHAPTER.trans.txt`, or the subsets without the folder LibriSpeech, from
    https://www.openslr.org/12. Transcripts are in capitals, without punctuation.
    """

    name = "librispeech"
    splits = (
        *("train-clean-100", "train-clean-360", "train-other-500"),
        *("dev-clean", "dev-other", "test-clean", "test-other"),
    )
    extensions = ("flac",)
    licence = "CC-BY-4.0"
    origin = "extract the subset's archive, such as dev-clean.tar.gz, of https://www.openslr.org/12"

    def entries(self, root: Path, split: str) -> Iterator[Entry | Refusal]:
        """See `CaptionSet`."""
        folder = find(root, [f"LibriSpeech/{split}", split], self.origin)
        for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
            yield from _chapter(folder, chapter)


def _chapter(folder: Path, chapter: Path) -> Iterator[Entry | Refusal]:
    place = chapter.relative_to(folder)
    speaker, number = place.parts
    table = chapter / f"{speaker}-{number}.trans.txt"
    left = {path.stem for path in chapter.glob("*.flac")}
    text = table.read_bytes().decode("utf-8", "surrogateescape") if table.is_file() else ""
    for line in filter(str.strip, text.split("\n")):
        name, _, transcript = line.strip().partition(" ")
        left.discard(name)
        file = (place / f"{name}.flac").as_posix()
        yield Entry(folder, file, [transcript], {"speaker": speaker, "chapter": number})
    for name in sorted(left):
        source = shown(f"{folder.name}/{place.as_posix()}/{name}.flac")
        yield Refusal(source, "", f"{table.name} holds no transcript of it")
