"""Public sets of captioned files, read where their publishers' archives were extracted."""

from collections.abc import Mapping

from datamodules.sets.audiocaps import AudioCaps
from datamodules.sets.base import CaptionSet, Entry, SetSource
from datamodules.sets.clotho import Clotho
from datamodules.sets.coco import Coco
from datamodules.sets.esc50 import Esc50
from datamodules.sets.flickr30k import Flickr30k
from datamodules.sets.librispeech import LibriSpeech
from datamodules.sets.msrvtt import MsrVtt

SETS: Mapping[str, type[CaptionSet]] = {
    captions.name: captions
    for captions in (Coco, Flickr30k, AudioCaps, Clotho, LibriSpeech, Esc50, MsrVtt)
}
"""Name -> set: a fixed table."""

__all__ = ["SETS", "CaptionSet", "Entry", "SetSource"]
