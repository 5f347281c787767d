"""Captions to word pieces and back, learned from the training captions."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

PAD, START, END = 0, 1, 2
_SPECIAL = ["<pad>", "<start>", "<end>"]
_SMALLEST = 256 + len(_SPECIAL)


@final
class Vocabulary(nn.Module):
    """Byte-pair word pieces (Sennrich et al. 2016, arXiv:1508.07909) of a `tokenizers` model.

    The definition travels in the state dict (extra state, a uint8 tensor), so a checkpoint is
    enough to rebuild it.

    Args:
        size: most pieces; fixes the width of a decoder's output before anything is learned.

    Raises:
        ValueError: if `size` cannot hold every byte.
    """

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        if size < _SMALLEST:
            raise ValueError(
                f"Got a vocabulary size of {size}; give at least {_SMALLEST}, which holds every "
                "byte and the special pieces."
            )
        self.size = size
        self._definition = b""
        self._tokenizer = None

    def learn(self, captions: Iterable[str]) -> None:
        """Learns the pieces from captions, which are lower-cased."""
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sorted(captions), trainer)
        self._set_definition(tokenizer.to_str().encode())

    def encode(self, caption: str, max_pieces: int) -> list[int]:
        """Pieces of a caption between START and END, cut to `max_pieces` in all."""
        return [START, *self._ready().encode(caption).ids[: max_pieces - 2], END]

    def decode(self, pieces: Iterable[int]) -> str:
        """Text of pieces up to the first END; the first letter is made a capital."""
        kept = []
        for piece in pieces:
            if piece == END:
                break
            if piece >= len(_SPECIAL):
                kept.append(piece)
        text = self._ready().decode(kept).strip()
        return text[:1].upper() + text[1:]

    def get_extra_state(self) -> Tensor:
        """The definition as bytes."""
        return torch.tensor(list(self._definition), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Takes a definition from a state dict."""
        self._set_definition(state.cpu().numpy().tobytes())

    def _set_definition(self, definition: bytes) -> None:
        from tokenizers import Tokenizer

        self._definition = definition
        self._tokenizer = Tokenizer.from_str(definition.decode()) if definition else None
        if self._tokenizer is not None:
            self._tokenizer.encode_special_tokens = True  # a caption with "<end>" in it is text

    def _ready(self):
        if self._tokenizer is None:
            raise RuntimeError(
                "This vocabulary is empty: let it learn from captions, or load a state dict."
            )
        return self._tokenizer
