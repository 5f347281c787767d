"""Karpathy and Fei-Fei's splits of COCO and Flickr30k: dataset_NAME.json.

Most published figures of retrieval and captioning are on these. The file holds `images`, each
with `filename`, `split` and `sentences` of `raw` text; COCO's also `filepath` and `cocoid`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.sets.annotations import objects_of, read_object, text_of

ORIGIN = "caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent/"


def read_split(path: Path, split: str) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """Reads the pictures of a split and their captions.

    Args:
        path: the file.
        split: train, val or test. COCO's `restval`, the rest of its validation pictures, is part
            of train, as in the figures published on it.

    Raises:
        PackError: the file is of another form.
    """
    wanted = (split, "restval") if split == "train" else (split,)
    for image in objects_of(read_object(path), "images", path):
        if text_of(image, "split") in wanted:
            sentences = image.get("sentences")
            found = sentences if isinstance(sentences, list) else []
            yield image, [text_of(item, "raw") for item in found if isinstance(item, dict)]
