"""Texts cut by open_clip's own tokenizer.

Letters: L text ids.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from encoders.text import clean_text

VOCAB_SIZE = 49408


@final
@dataclass(frozen=True)
class ClipPieces:
    """Cuts a text into the ids of open_clip's own tokenizer.

    Args:
        context_length: Ids kept, the two end markers included.
        max_chars: Characters kept, before cutting: its cleaning is quadratic in the length.
    """

    context_length: int
    max_chars: int

    def __call__(self, raw: str) -> Tensor:
        """Turn a text into (L,) int64 ids, start and end marker included.

        Raises:
            ValueError: If `raw` is not a str.
        """
        import open_clip

        ids = open_clip.tokenize(clean_text(raw, self.max_chars), self.context_length)[0]
        return ids[: int(ids.argmax()) + 1]  # the end marker has the highest id
