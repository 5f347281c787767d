import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate

from fusion.metrics import retrieval_scores
from fusion.ranking import rank_queries
from fusion.scorecard import recall
from fusion.scorecard.recall import (
    Cell,
    disjoint_directions,
    flagged,
    mixed_pools,
    proper_subsets,
    recall_matrix,
)
from fusion.subsets import all_directions, parse_direction
from tests.fusion.scorecard.made import DIRECTIONS, NAMES, embedded, everything, held_out, unit

A_TO_B = [parse_direction("a->b")]


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pair(a: torch.Tensor, b: torch.Tensor, groups=None):
    return held_out({("a",): embedded(a), ("b",): embedded(b)}, groups)


@pytest.mark.parametrize(("num", "cells"), [(1, 0), (2, 2), (3, 12), (4, 50)])
def test_every_ordered_pair_of_disjoint_subsets(num, cells):
    names = [f"m{index}" for index in range(num)]
    directions = disjoint_directions(names)
    assert len(set(directions)) == len(directions) == cells
    assert cells == max(0, 3**num - 2 ** (num + 1) + 1)
    assert all(not set(d.query) & set(d.target) for d in directions)
    assert {side for d in directions for side in d} <= set(proper_subsets(names))


def test_with_five_modalities_queries_are_single_or_pairs():
    assert disjoint_directions("abcde") == all_directions("abcde")


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_the_hit_rate_of_torchmetrics(k):
    """On untied scores, negative ones among them, with five captions for each picture."""
    image, text = unit(40), unit(200)
    groups = torch.arange(40).repeat_interleave(5)
    rank = rank_queries(image, text, torch.arange(40), groups)[0].rank
    scores = image @ text.T
    index = torch.arange(40)[:, None].expand(40, 200)
    positives = groups[None] == torch.arange(40)[:, None]
    oracle = RetrievalHitRate(top_k=k)(scores.flatten(), positives.flatten(), index.flatten())
    assert float((rank <= k).double().mean()) == pytest.approx(float(oracle))


def test_chunks_rank_as_the_whole_does(monkeypatch):
    query, target = unit(50), unit(70)
    wanted, offered = torch.arange(50) % 7, torch.arange(70) % 7
    whole = retrieval_scores(query, target, wanted[:, None] == offered[None])
    monkeypatch.setattr("fusion.ranking.QUERIES_TOGETHER", 8)
    parts = rank_queries(query, target, wanted, offered)[0].scores
    assert parts[:6] == whole[:6] and parts[6:] == pytest.approx(whole[6:])


def test_a_perfect_model_and_its_control():
    (cell,) = recall_matrix(pair(torch.eye(100), torch.eye(100)), A_TO_B, draw())
    assert cell.scores.recall == (1, 1, 1) and cell.scores.median_rank == 1
    assert cell.control.recall_at_10 < 0.3 and not cell.control_is_high


def test_ties_count_against():
    rows = torch.eye(30)[torch.arange(30) // 3]  # three samples of each embedding
    (cell,) = recall_matrix(pair(rows, rows), A_TO_B, draw())
    assert cell.scores.recall == (0, 1, 1)
    (cell,) = recall_matrix(pair(rows, rows, torch.arange(30) // 3), A_TO_B, draw())
    assert cell.scores.recall == (1, 1, 1)  # positives are no competitors


def test_a_collapsed_model_is_never_above_chance():
    samples = everything(lambda subset: torch.ones(24, 8) / 8**0.5)
    cells = recall_matrix(samples, DIRECTIONS, draw()) + mixed_pools(samples, NAMES, draw())
    assert len(cells) == 15
    for cell in cells:
        pairs = zip(cell.scores.recall, cell.scores.chance, strict=True)
        assert all(found <= chance for found, chance in pairs)


def test_the_mixed_pool_shows_a_gap_that_separate_pools_hide():
    """Text sits on image's side of the space, sound far off: alone each is found."""
    rows, aside = unit(60, 15), torch.zeros(60, 1)

    def shifted(by: float) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.cat([rows, aside + by], dim=1), dim=1)

    def made(by: dict[str, float]):
        return held_out({(name,): embedded(shifted(by[name])) for name in NAMES})

    apart = made({"image": 0.0, "text": 0.0, "audio": 9.0})
    together = made({"image": 0.0, "text": 0.0, "audio": 0.0})
    directions = [parse_direction("text->audio"), parse_direction("audio->text")]
    for samples in (apart, together):
        for cell in recall_matrix(samples, directions, draw()):
            assert cell.scores.recall_at_1 == 1
    # Text carries the wrong groups, so that only sound is right: the gap hides it.
    wrong = {name: embedded(apart.embedded[name,].rows) for name in NAMES}
    wrong["text"] = embedded(apart.embedded["text",].rows.roll(1, 0))
    pools = {
        cell.direction: cell.scores
        for cell in mixed_pools(held_out({(n,): e for n, e in wrong.items()}), NAMES, draw())
    }
    assert pools["image->*"].pool == 120 and pools["image->*"].recall_at_1 == 0
    near = {name: embedded(together.embedded[name,].rows) for name in NAMES}
    pools = {
        cell.direction: cell.scores
        for cell in mixed_pools(held_out({(n,): e for n, e in near.items()}), NAMES, draw())
    }
    assert pools["image->*"].recall_at_1 == 1


def test_the_control_flags_an_evaluation_that_peeks(monkeypatch):
    """Answers put where their queries are, whatever the pairs: the control sees it."""

    def peeking(query, target, wanted, offered, *others):
        return tuple(
            rank_queries(torch.eye(50)[ids], torch.eye(50)[offered], ids, offered)[0]
            for ids in (wanted, *others)
        )

    samples = pair(unit(50), unit(50))
    assert flagged(recall_matrix(samples, A_TO_B, draw())) == []
    monkeypatch.setattr(recall, "rank_queries", peeking)
    (sentence,) = flagged(recall_matrix(samples, A_TO_B, draw()))
    assert "a->b" in sentence and "leaks" in sentence


def test_the_control_does_not_see_a_model_that_has_seen_its_target():
    """Its scores are too good on independent data instead; the control is of the evaluation."""
    target = unit(80)
    leaky, honest = pair(target + 0.01 * unit(80), target), pair(unit(80), target)
    (seen,), (unseen,) = (recall_matrix(s, A_TO_B, draw()) for s in (leaky, honest))
    assert seen.scores.recall_at_1 == 1 and unseen.scores.recall_at_1 < 0.1
    assert not seen.control_is_high and not unseen.control_is_high


def test_noise_in_the_control_is_no_flag():
    for seed in range(40):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        (cell,) = recall_matrix(pair(unit(30, 4), unit(30, 4)), A_TO_B, generator)
        assert not cell.control_is_high


def test_a_direction_without_answers_is_left_out():
    apart = held_out(
        {("a",): embedded(unit(4), [1, 1, 0, 0]), ("b",): embedded(unit(4), [0, 0, 1, 1])}
    )
    assert recall_matrix(apart, A_TO_B, draw()) == ()
    assert mixed_pools(apart, ("a",), draw()) == ()


def test_cells_are_plain():
    (cell,) = recall_matrix(pair(unit(5), unit(5)), A_TO_B, draw())
    assert isinstance(cell, Cell)
    assert all(type(value) in (int, float) for value in (*cell.scores, *cell.control))
