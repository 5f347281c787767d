"""fusion data: shards of public sets, from packages or from their publishers' files."""

from pathlib import Path
from typing import Literal

Packaged = Literal["stamps", "clipart", "emoji", "emoji-all", "asterisk"]
Published = Literal["coco", "flickr30k", "audiocaps", "clotho", "librispeech", "esc50", "msrvtt"]
_SHARD_BYTES = 256 * 2**20


def data(
    name: Literal[Packaged, Published],
    *,
    out: str,
    source: str | None = None,
    split: str | None = None,
    workers: int = 2,
    overwrite: bool = False,
) -> None:
    """Makes shards of a public set, with a manifest and a list of what was left out.

    Built from public packages, which are fetched:
        stamps       950 pictures with captions, many with spoken French and sounds
        clipart      5,400 drawings with names and keywords
        emoji        3,600 emoji of two vendors with names and tags
        emoji-all    14,100 emoji of ten vendors with names and tags
        asterisk     553 telephone prompts, 24 minutes of one speaker, with transcripts

    Packed from a folder into which you extracted the publishers' files (--source; docs/data.md
    tells which and where to get them):
        coco         photographs, five captions each; splits train, val, test
        flickr30k    photographs, five captions each; splits train, val, test, all
        audiocaps    sounds of videos, one or five captions; splits train, val, test
        clotho       sounds, five captions each; splits train, val, test
        librispeech  audiobooks with transcripts; splits train-clean-100, dev-clean, ...
        esc50        sounds of 50 classes; splits all, fold1 to fold5
        msrvtt       video clips, twenty captions each; splits train, val, test

    Examples:
        fusion data stamps --out shards
        fusion data coco --source ~/coco --split val --out shards/coco-val --workers 8

    Args:
        name: one of the above.
        out: folder for the shards; a pack that was killed goes on where it stopped.
        source: folder of the publishers' files, or of the extracted packages.
        split: part of the set; without this option the first that is named above.
        workers: processes that draw or decode.
        overwrite: replace what is there already.
    """
    from datamodules.recipes import RECIPES

    folder = Path(source) if source else None
    if workers < 1:
        raise ValueError(f"Got {workers} workers; give at least 1.")
    if name not in RECIPES:
        _pack(name, folder, split, Path(out), workers, overwrite)
    elif split is not None:
        raise ValueError(f"{name} has no splits; leave --split {split} out.")
    else:
        _build(name, folder, Path(out), workers, overwrite)


def _build(name: str, source: Path | None, out: Path, workers: int, overwrite: bool) -> None:
    from datamodules.recipes import build

    shard = out / f"{name}-000000.tar.gz"
    if shard.exists() and not overwrite:
        raise ValueError(f"{shard} is there already; give --overwrite to replace it.")
    written = build(name, out, source, workers)
    print(f"Wrote {written}; {written.parent / f'{name}.rejected.jsonl'} says what was left out.")


def _pack(
    name: str, source: Path | None, split: str | None, out: Path, workers: int, overwrite: bool
) -> None:
    from datamodules.pack import BySize, pack
    from datamodules.sets import SETS, SetSource

    captions = SETS[name]()
    if source is None:
        raise ValueError(f"{name} is in no package; give --source FOLDER and {captions.origin}.")
    plan = SetSource(captions, source, split)
    packed = pack(plan, out, BySize(_SHARD_BYTES), workers, overwrite)
    print(
        f"Read {packed.num_read} = packed {packed.num_samples} + rejected {packed.num_rejected}; "
        f"{len(packed.shards)} shards of {name}, split {plan.split}, in {out}."
    )
    if packed.num_rejected:
        print(f"{out / 'rejected.jsonl'} says why for each.")
