import random
import time

import open_clip
import pytest

from encoders.clip_pieces import ClipPieces

LETTERS = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1000))
HOSTILE = {
    "unfinished entities": "&#x26",
    "nested entities": "&amp;amp;amp;lt;",
    "one long word": LETTERS,
    "blank lines": "\n\t",
    "stacked accents": "e\u0301\u0302\u0323\u0334",
    "wrong encoding": "aÃ¢â‚¬â„¢b&#",
    "lone surrogates": "\ud800",
}


def cost(transform: ClipPieces, text: str) -> float:
    """Seconds of processor time, the best of three."""
    spent = []
    for _ in range(3):
        start = time.process_time()
        transform(text)
        spent.append(time.process_time() - start)
    return min(spent)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_captions_cost_little_at_any_length(name: str):
    transform = ClipPieces(77, 500)
    transform("warm up")
    for length in (1_000, 10_000, 100_000, 1_000_000):
        text = (HOSTILE[name] * (length // len(HOSTILE[name]) + 1))[:length]
        assert cost(transform, text) < 0.05, length
        assert len(transform(text)) <= 77


def test_control_without_the_cut_hostile_captions_are_dear():
    open_clip.tokenize("warm up")
    text = "&#x26" * 10_000
    assert cost(ClipPieces(77, len(text)), text) > 4 * cost(ClipPieces(77, 500), text)


def test_several_languages_give_the_ids_of_open_clip():
    for text in ("a cat", "eine Katze", "кошка", "猫が好き", "قطة", "🐈"):
        ids = ClipPieces(77, 500)(text)
        assert ids.tolist() == open_clip.tokenize(text)[0][: len(ids)].tolist()


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="must be a str, got int"):
        ClipPieces(77, 500)(3)  # type: ignore[arg-type]
