from itertools import product

import pytest
import torch
from torch import Tensor

from fusion.decoder import CaptionDecoder, Memory
from fusion.decoding import beam_search, greedy_search
from fusion.vocabulary import END, PAD, START

SIZE, LONGEST = 6, 4  # pieces END, 3, 4, 5 may be written; three of them at most


def make_decoder(max_pieces: int = LONGEST, size: int = SIZE, sharpness: float = 3.0):
    decoder = CaptionDecoder(8, size, dim=8, num_layers=1, num_heads=2, max_pieces=max_pieces)
    with torch.no_grad():
        decoder.embedding.weight.mul_(sharpness)
        decoder.bias.normal_(std=0.3)
        for parameter in decoder.layers.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        decoder.bias[[PAD, START]] = 9.0  # the likeliest, were they allowed
    return decoder.eval()


def make_memory(num: int = 8, places: int = 5) -> Memory:
    mask = torch.rand(num, places) > 0.3
    mask[:, 0] = True
    return Memory(torch.randn(num, places, 8), mask)


def written(row: Tensor) -> tuple[int, ...]:
    """The pieces up to the first END."""
    pieces = row.tolist()
    return tuple(pieces[: pieces.index(END) + 1] if END in pieces else pieces)


@torch.no_grad()
def mean_log_probability(decoder: CaptionDecoder, memory: Memory, pieces: tuple) -> float:
    """Of a caption, for a memory of one sample; PAD and START never follow."""
    logits = decoder(torch.tensor([[START, *pieces[:-1]]]), memory)[0]
    logits[:, [PAD, START]] = -torch.inf
    log_probs = logits.log_softmax(dim=-1)
    return float(log_probs[range(len(pieces)), list(pieces)].mean())


def one(memory: Memory, row: int) -> Memory:
    return Memory(memory.values[row : row + 1], memory.mask[row : row + 1])


def means(decoder: CaptionDecoder, memory: Memory, found: Tensor) -> list[float]:
    return [
        mean_log_probability(decoder, one(memory, i), written(row)) for i, row in enumerate(found)
    ]


def all_captions() -> list[tuple[int, ...]]:
    """Those that end, and those that are cut at the longest length."""
    words = (3, 4, 5)
    ended = [(*w, END) for n in range(LONGEST - 1) for w in product(words, repeat=n)]
    return ended + list(product(words, repeat=LONGEST - 1))


def test_one_beam_is_greedy():
    decoder, memory = make_decoder(max_pieces=9, size=12), make_memory(16)
    assert beam_search(decoder, memory, num_beams=1).equal(greedy_search(decoder, memory))


def test_greedy_takes_the_likeliest_next_piece():
    decoder, memory = make_decoder(), make_memory()
    for row, found in enumerate(greedy_search(decoder, memory)):
        pieces = written(found)
        for length, piece in enumerate(pieces):
            logits = decoder(torch.tensor([[START, *pieces[:length]]]), one(memory, row))[0, -1]
            logits[[PAD, START]] = -torch.inf
            assert int(logits.argmax()) == piece


def test_a_wide_beam_is_exhaustive_search():
    captions, num_better = all_captions(), 0
    for _ in range(6):
        decoder, memory = make_decoder(), make_memory(4)
        wide, narrow = (beam_search(decoder, memory, num_beams=n) for n in (64, 1))
        for row, found in enumerate(wide):
            scores = [mean_log_probability(decoder, one(memory, row), c) for c in captions]
            assert written(found) == captions[scores.index(max(scores))]
            num_better += written(found) != written(narrow[row])
    assert num_better > 0  # control: greedy search does not always find it


def test_more_beams_find_likelier_captions():
    decoder, memory = make_decoder(max_pieces=7, size=10), make_memory(16)
    greedy = means(decoder, memory, greedy_search(decoder, memory))
    beam = means(decoder, memory, beam_search(decoder, memory, num_beams=6))
    assert sum(beam) > sum(greedy)
    exhaustive = make_decoder()
    greedy = means(exhaustive, memory, greedy_search(exhaustive, memory))
    beam = means(exhaustive, memory, beam_search(exhaustive, memory, num_beams=64))
    assert all(b >= g - 1e-6 for b, g in zip(beam, greedy, strict=True))


@pytest.mark.parametrize("num_beams", [1, 3, 80])
def test_padding_comes_after_the_end_only(num_beams):
    decoder, memory = make_decoder(), make_memory(16)
    rows = beam_search(decoder, memory, num_beams)
    assert rows.shape[1] < LONGEST
    for row in rows:
        pieces = written(row)
        assert pieces and PAD not in pieces and START not in pieces
        assert row[len(pieces) :].eq(PAD).all()


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_caption_does_not_depend_on_its_batch(num_beams):
    decoder, memory = make_decoder(max_pieces=8, size=10), make_memory()
    together = beam_search(decoder, memory, num_beams)
    for row in range(8):
        alone = beam_search(decoder, one(memory, row), num_beams)
        assert written(alone[0]) == written(together[row])
    memory.values[~memory.mask] = 1e3
    assert beam_search(decoder, memory, num_beams).equal(together)


def test_no_beam():
    with pytest.raises(ValueError, match="num_beams=0"):
        beam_search(make_decoder(), make_memory(), num_beams=0)
