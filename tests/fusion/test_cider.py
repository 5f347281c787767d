"""CIDEr-D against the public COCO scorer (no Java: its `Cider` class takes tokenised strings)."""

import random

import pytest

from fusion.cider import cider_d, distinct_share, tokenize

WORDS = ["a", "the", "frog", "dog's", "red", "big", "small", "house", "of", "in", "two", "boat"]


def random_captions(seed, pictures=30, per_picture=3):
    rng = random.Random(seed)

    def sentence():
        return " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))

    references = [[sentence() or "frog" for _ in range(per_picture)] for _ in range(pictures)]
    candidates = [rng.choice(texts) if rng.random() < 0.4 else sentence() for texts in references]
    return candidates, references


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_picture", [1, 3])
def test_equals_the_public_scorer(seed, per_picture):
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    candidates, references = random_captions(seed, per_picture=per_picture)
    words = [" ".join(tokenize(text)) for text in candidates]
    truths = [[" ".join(tokenize(text)) for text in texts] for texts in references]
    mean, each = scorer.compute_score(
        dict(enumerate(truths)), {index: [text] for index, text in enumerate(words)}
    )
    ours = cider_d(candidates, references)
    assert ours.mean == pytest.approx(mean, abs=1e-9)
    assert ours.each == pytest.approx(each.tolist(), abs=1e-9)
    assert ours.mean > 0.5


def test_a_perfect_caption_scores_ten_and_a_short_one_less():
    references = [["one two three four five"], ["six seven eight nine"], ["frog"]]
    perfect = cider_d([texts[0] for texts in references], references)
    assert perfect.each == pytest.approx((10.0, 10.0, 2.5))


def test_repeating_a_word_gains_nothing():
    references = [["a green frog"], ["a red boat"], ["the big house"]]
    honest = cider_d(["frog", "", ""], references).each[0]
    padded = cider_d(["frog frog frog", "", ""], references).each[0]
    assert 0 < padded <= honest


def test_an_empty_caption_and_a_wrong_one_score_zero():
    assert cider_d(["", "boat"], [["a frog"], ["the house"]]).each == (0.0, 0.0)


def test_a_single_picture_has_no_rare_words():
    assert cider_d(["a frog"], [["a frog"]]).mean == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Frog.", ["a", "frog"]),
        ("  the dog's -- BALL!  ", ["the", "dog", "s", "ball"]),
        ("¡Una rana! «Été»", ["una", "rana", "été"]),
        ("e\u0301te\u0301 Straße", ["été", "strasse"]),
        ("हिन्दी", ["हिन्दी"]),
        ("?!", []),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words


def test_distinct_share_compares_words():
    assert distinct_share(["A frog.", "a frog", "a boat", "the boat"]) == 0.75
    assert distinct_share(["a frog"] * 4) == 0.25


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "got 0 candidates"),
        (["a"], [["a"], ["b"]], "got 1 candidates and 2 lists"),
        (["a"], [[]], r"references\[0\]"),
        (["a"], ["a frog"], r"references\[0\]"),
    ],
)
def test_bad_input_is_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        cider_d(candidates, references)


def test_distinct_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one caption"):
        distinct_share([])
