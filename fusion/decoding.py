"""Searching for a likely caption: greedy and beam.

Shapes: B batch, T pieces, W beams, V vocabulary.
"""

import torch
from torch import Tensor

from fusion.decoder import CaptionDecoder, Memory
from fusion.vocabulary import END, PAD, START


@torch.no_grad()
def greedy_search(decoder: CaptionDecoder, memory: Memory) -> Tensor:
    """The likeliest next piece, again and again: (B, T) int64 after START, PAD after END."""
    num = len(memory.values)
    pieces = torch.full((num, 1), START, device=memory.values.device)
    for _ in range(decoder.max_pieces - 1):
        ended = pieces[:, -1] == END
        ended |= pieces[:, -1] == PAD
        if ended.all():
            break
        chosen = _log_probs(decoder, pieces, memory).argmax(dim=-1)
        pieces = torch.cat([pieces, chosen.masked_fill(ended, PAD).unsqueeze(1)], dim=1)
    return pieces[:, 1:]


@torch.no_grad()
def beam_search(decoder: CaptionDecoder, memory: Memory, num_beams: int = 4) -> Tensor:
    """The caption of the highest mean log-probability per piece among `num_beams` candidates.

    Args:
        decoder: in eval mode.
        memory: what to describe.
        num_beams: W; 1 is greedy search.

    Returns:
        (B, T) int64 after START, PAD after END.

    Raises:
        ValueError: if `num_beams` < 1.
    """
    if num_beams < 1:
        raise ValueError(f"Got num_beams={num_beams}; give at least 1 (1 is greedy search).")
    num, device = len(memory.values), memory.values.device
    repeated = Memory(*(part.repeat_interleave(num_beams, dim=0) for part in memory))
    pieces = torch.full((num, num_beams, 1), START, device=device)
    # All beams start alike: only the first may branch, or they would stay copies of each other.
    scores = torch.full((num, num_beams), -torch.inf, device=device)
    scores[:, 0] = 0
    for _ in range(decoder.max_pieces - 1):
        last = pieces[:, :, -1]
        ended = (last == END) | (last == PAD)
        if ended.all():
            break
        log_probs = _log_probs(decoder, pieces.flatten(0, 1), repeated)
        log_probs = log_probs.view(num, num_beams, -1)
        # An ended beam goes on as itself, at no cost, with PAD.
        log_probs = log_probs.masked_fill(ended.unsqueeze(-1), -torch.inf)
        log_probs[..., PAD] = torch.where(ended, 0.0, -torch.inf)
        total = (scores.unsqueeze(-1) + log_probs).flatten(1)
        scores, flat = total.topk(num_beams, dim=1)
        size = log_probs.shape[-1]
        origin = (flat // size).unsqueeze(-1).expand(-1, -1, pieces.shape[2])
        pieces = torch.cat([pieces.gather(1, origin), (flat % size).unsqueeze(-1)], dim=2)
    length = (pieces[:, :, 1:] != PAD).sum(dim=-1)
    best = (scores / length).argmax(dim=1)
    return pieces[torch.arange(num, device=device), best, 1:]


def _log_probs(decoder: CaptionDecoder, pieces: Tensor, memory: Memory) -> Tensor:
    """Log-probabilities (B, V) of the next piece; PAD and START are never one."""
    logits = decoder(pieces, memory)[:, -1]
    logits[:, [PAD, START]] = -torch.inf
    return logits.log_softmax(dim=-1)
