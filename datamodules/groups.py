"""Captions that mean the same by their spelling: one number for each."""

from __future__ import annotations

import hashlib
import unicodedata

_LONGEST_WORD = 256  # characters; normalising takes time squared in a run of accents


def group_of(caption: str) -> int:
    """Hash a caption so that equal meanings of spelling share one group.

    Case, runs of white space, surrounding punctuation and the Unicode form do not count.

    Returns:
        A signed 64-bit integer, the same in every process.
    """
    words = " ".join(map(_normal, caption.split())).casefold()
    start, end = 0, len(words)
    while start < end and not words[start].isalnum():
        start += 1
    while end > start and not words[end - 1].isalnum():
        end -= 1
    text = words[start:end] or words
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _normal(word: str) -> str:
    return unicodedata.normalize("NFC", word) if len(word) <= _LONGEST_WORD else word
