"""Names for the tokens of a text."""

from collections.abc import Sequence

import torch

from encoders.base import Encoder
from encoders.open_clip_tower import ClipPieces
from encoders.text import WordPieces
from fusion.explain.content import Piece

_START = ("[CLS]", "<start_of_text>")
_END = ("[SEP]", "<end_of_text>")


def pieces_of(encoder: Encoder, ids: Sequence[int], num_tokens: int) -> list[Piece]:
    """What each token of a text stands for, as its encoder's tokenizer names it.

    Args:
        encoder: of the text.
        ids: what its transform made of the text.
        num_tokens: tokens it made of them.

    Returns:
        A piece for each token; numbers, counted from 1, where the encoder's are not known.
    """
    if len(ids) == num_tokens and isinstance(encoder.transform, WordPieces):
        return [_word_piece(name) for name in _bert_names(encoder.transform, ids)]
    if len(ids) == num_tokens and isinstance(encoder.transform, ClipPieces):
        return _clip_pieces(ids)
    return [Piece(str(index)) for index in range(1, num_tokens + 1)]


def _bert_names(pieces: WordPieces, ids: Sequence[int]) -> list[str]:
    import tokenizers

    definition = pieces.get_extra_state().numpy().tobytes().decode()
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    return [tokenizer.id_to_token(index) or "?" for index in ids]


def _word_piece(name: str) -> Piece:
    return _mark(name) or Piece(name.removeprefix("##"), joined=name.startswith("##"))


def _clip_pieces(ids: Sequence[int]) -> list[Piece]:
    """Pieces of open_clip's tokenizer, which writes a space after the last one of a word."""
    import open_clip

    found: list[Piece] = []
    inside = False
    for index in ids:
        name = open_clip.decode(torch.tensor([index]))
        found.append(_mark(name.strip()) or Piece(name.strip(), joined=inside))
        inside = not found[-1].mark and not name.endswith(" ")
    return found


def _mark(name: str) -> Piece | None:
    if name in _START or name in _END:
        return Piece("start" if name in _START else "end", mark=True)
    return None
