"""Retrieval metrics: right on ties, NaN, negative scores and several positives."""

import itertools

import pytest
import torch

from fusion.metrics import (
    RetrievalScores,
    chance_recall,
    median_rank,
    ranks,
    recall_at_k,
    retrieval_scores,
    shuffled_scores,
)


def random_problem(seed=0, queries=40, targets=60, extra=0.05):
    """Untied scores, and positives with one target per query at least."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, targets, generator=generator, dtype=torch.float64)
    positives = torch.rand(queries, targets, generator=generator) < extra
    positives[torch.arange(queries), torch.randint(targets, (queries,), generator=generator)] = True
    return scores, positives


def unit_rows(rows, width=32, seed=0):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def test_ranks_by_hand():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [-3.0, -1.0, -2.0]])
    positives = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    assert ranks(scores, positives).tolist() == [1, 3, 2, 2]
    assert ranks(scores, positives).dtype == torch.int64
    assert recall_at_k(scores, positives, 1) == 0.25
    assert recall_at_k(scores, positives, 2) == 0.75
    assert median_rank(scores, positives) == 2.0


def test_other_positives_do_not_compete_and_the_best_one_counts():
    scores = torch.tensor([[5.0, 4.0, 4.0, 1.0]])
    positives = torch.tensor([[False, True, True, True]])
    assert ranks(scores, positives).tolist() == [2]


@pytest.mark.parametrize("shift", [0.0, -100.0])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_equals_torchmetrics_hit_rate_on_untied_scores(k, shift):
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    scores, positives = random_problem()
    rows = torch.arange(len(scores))[:, None].expand_as(scores)
    metric = retrieval.RetrievalHitRate(top_k=k)
    oracle = metric(scores.flatten(), positives.flatten(), indexes=rows.flatten())
    # The order alone counts: scores that are all negative change nothing.
    assert recall_at_k(scores + shift, positives, k) == pytest.approx(float(oracle), abs=1e-6)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_a_collapsed_model_is_not_above_chance(k):
    positives = torch.eye(50, dtype=torch.bool)
    collapsed = torch.ones(50, 8)
    assert recall_at_k(torch.zeros(50, 50), positives, k) == 0.0
    assert getattr(retrieval_scores(collapsed, collapsed, positives), f"recall_at_{k}") == 0.0
    assert chance_recall(positives, k) == pytest.approx(k / 50)


def test_equal_targets_tie_whatever_the_order_of_summation():
    query, target = unit_rows(33, width=257), unit_rows(1, width=257, seed=1).expand(67, 257)
    positives = torch.zeros(33, 67, dtype=torch.bool)
    positives[:, 5] = True
    assert retrieval_scores(query, target, positives).median_rank == 67


def test_minus_infinity_is_a_score_and_ties_with_itself():
    scores = torch.tensor([[-torch.inf, -torch.inf, 0.0]])
    assert ranks(scores, torch.tensor([[True, False, False]])).tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float16, torch.bool])
def test_every_real_dtype_ranks(dtype):
    scores = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    assert ranks(scores, torch.eye(2, dtype=torch.bool)).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        (torch.full((2, 2), torch.nan), torch.eye(2).bool(), "4 NaN of 4"),
        (torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), "first: query 1"),
        (torch.zeros(2, 3), torch.eye(2).bool(), r"\(2, 3\) and \(2, 2\)"),
        (torch.zeros(2, 2), torch.eye(2), "torch.float32"),
        (torch.zeros(0, 2), torch.zeros(0, 2).bool(), "non-empty"),
        (torch.zeros(2), torch.zeros(2).bool(), "matrix"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(scores, positives, message):
    with pytest.raises(ValueError, match=message) as error:
        recall_at_k(scores, positives, 1)
    assert "\n" not in str(error.value)


def test_one_nan_in_a_negative_is_refused():
    scores = torch.eye(3)
    scores[0, 2] = torch.nan
    with pytest.raises(ValueError, match="1 NaN of 9"):
        recall_at_k(scores, torch.eye(3).bool(), 1)


@pytest.mark.parametrize("call", [recall_at_k, lambda s, p, k: chance_recall(p, k)])
def test_a_cut_off_below_one_is_refused(call):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        call(torch.eye(3), torch.eye(3).bool(), 0)


def test_embeddings_of_two_widths_are_refused():
    with pytest.raises(ValueError, match="one width"):
        retrieval_scores(torch.zeros(2, 3), torch.zeros(2, 4), torch.eye(2).bool())


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_chance_equals_the_mean_over_all_rankings(k):
    positives = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    rankings = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.float64)
    exact = sum(recall_at_k(rankings, row.expand(120, 5), k) for row in positives) / 3
    assert chance_recall(positives, k) == pytest.approx(exact, abs=1e-12)


def test_retrieval_scores_report_pool_chance_and_recall():
    target = unit_rows(40)
    query = torch.cat([target, target[:10]])
    positives = torch.eye(40).bool()[[*range(40), *range(10)]]
    scores = retrieval_scores(query, target, positives)
    assert scores == RetrievalScores(1.0, 1.0, 1.0, 1.0, 50, 40, *scores.chance)
    assert scores.chance == pytest.approx((1 / 40, 5 / 40, 10 / 40))
    assert scores.recall == (1.0, 1.0, 1.0)


def test_the_shuffled_control_sits_at_chance_and_the_true_pairs_do_not():
    rows = unit_rows(100)
    positives = torch.eye(100).bool()
    generator = torch.Generator().manual_seed(0)
    runs = [shuffled_scores(rows, rows, positives, generator).recall for _ in range(50)]
    mean = torch.tensor(runs).mean(dim=0).tolist()
    assert mean == pytest.approx((0.01, 0.05, 0.10), abs=0.02)
    assert retrieval_scores(rows, rows, positives).recall_at_1 == 1.0


def test_the_shuffled_control_is_reproducible():
    rows, positives = unit_rows(30), torch.eye(30).bool()
    first, second = (
        shuffled_scores(rows, rows, positives, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert first == second
