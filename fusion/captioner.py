"""Captions of what a model has fused.

Shapes: B batch, P places of the memory, D width.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fusion.decoder import CaptionDecoder, Memory, memory_of
from fusion.decoding import beam_search
from fusion.model import FusionModel
from fusion.tokens import select
from fusion.vocabulary import Vocabulary


@final
class Captioner(nn.Module):
    """A model, a decoder over what it fuses, and the vocabulary of that decoder.

    Args:
        model: the model.
        source: modalities that are described, such as "image" or "image+audio".
        vocabulary_size: word pieces of the decoder.
    """

    def __init__(self, model: FusionModel, source: str, vocabulary_size: int) -> None:
        super().__init__()
        self.model = model
        self.source = tuple(source.split("+"))
        self.vocabulary = Vocabulary(vocabulary_size)
        self.decoder = CaptionDecoder(model.dim, vocabulary_size)

    def memory(self, batch: Mapping[str, Any]) -> tuple[Memory, Tensor]:
        """What the decoder attends to, and which samples (B,) have the source modalities.

        The memory holds those samples only.
        """
        tokens = self.model.encode(batch, self.source)
        rows = torch.stack([part.mask.any(1) for part in tokens.values()]).all(0)
        fused = self.model.fuse({name: select(part, rows) for name, part in tokens.items()})
        return memory_of(fused, self.model.pool(fused)), rows

    @torch.no_grad()
    def write(self, batch: Mapping[str, Any], num_beams: int = 4) -> list[str | None]:
        """A caption for each sample; None for those without the source modalities."""
        memory, rows = self.memory(batch)
        written = iter(beam_search(self.decoder, memory, num_beams).tolist())
        return [self.vocabulary.decode(next(written)) if kept else None for kept in rows.tolist()]
