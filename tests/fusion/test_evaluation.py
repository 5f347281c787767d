import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderOutput
from fusion.block import FusionBlock
from fusion.evaluation import (
    Embedded,
    LinearBaseline,
    embed_subsets,
    needed_subsets,
    score_directions,
)
from fusion.model import FusionModel
from fusion.solver import SolverStats
from fusion.subsets import all_directions, parse_direction

A_TO_B, B_TO_A = parse_direction("a->b"), parse_direction("b->a")


class Toy(Encoder):
    def __init__(self, modality: str) -> None:
        super().__init__(modality, 8, torch.as_tensor)
        self.linear = nn.Linear(8, 8)

    def forward(self, inputs, mask):
        return EncoderOutput(self.linear(inputs), mask, torch.zeros(*mask.shape, 3))


def embedded(rows: torch.Tensor, present: list[int] | None = None) -> Embedded:
    num = len(rows)
    here = torch.tensor(present or [1] * num, dtype=torch.bool)
    zeros = torch.zeros(num)
    stats = SolverStats(zeros.long(), zeros, here, zeros, zeros, zeros.long(), zeros.unsqueeze(0))
    return Embedded(rows * here.unsqueeze(1), here, stats)


def score(a: Embedded, b: Embedded, groups, generator=None) -> dict:
    sides = {("a",): a, ("b",): b}
    return score_directions(sides, torch.as_tensor(groups), [A_TO_B, B_TO_A], generator)


def test_each_row_finds_itself_unless_turned():
    rows = torch.eye(20)
    right = score(embedded(rows), embedded(rows), range(20))
    wrong = score(embedded(rows), embedded(rows.roll(1, 0)), range(20))
    assert list(right) == ["a->b", "b->a"]
    for name in right:
        assert right[name].recall == (1, 1, 1) and wrong[name].recall_at_1 == 0
        assert right[name].pool == right[name].num_queries == 20


def test_samples_that_lack_a_side_are_neither_query_nor_target():
    rows = torch.eye(5)
    scores = score(embedded(rows, [1, 1, 1, 1, 0]), embedded(rows, [0, 1, 1, 1, 1]), range(5))
    for direction in scores.values():
        # Sample 0 has no b, so nothing answers it as a query; it is still a target of b->a.
        assert (direction.num_queries, direction.pool) == (3, 4)
        assert direction.recall_at_1 == 1


def test_a_sample_without_target_is_answered_by_its_group():
    rows = torch.eye(4)
    scores = score(embedded(rows[[0, 0, 2, 3]]), embedded(rows, [1, 0, 1, 1]), [7, 7, 8, 9])
    assert (scores["a->b"].num_queries, scores["a->b"].pool) == (4, 3)
    assert scores["a->b"].recall_at_1 == 1


def test_any_positive_of_a_group_counts():
    rows = torch.eye(4)
    a, b = embedded(rows), embedded(rows[[1, 0, 3, 2]])
    assert score(a, b, [5, 5, 6, 6])["a->b"].recall_at_1 == 1
    assert score(a, b, [5, 6, 7, 8])["a->b"].recall_at_1 == 0


def test_a_direction_that_nothing_can_answer_is_left_out():
    rows = torch.eye(4)
    assert score(embedded(rows, [1, 1, 0, 0]), embedded(rows, [0, 0, 1, 1]), range(4)) == {}


def test_the_shuffled_control_is_at_chance():
    rows = embedded(torch.eye(200))
    scores = score(rows, rows, range(200), torch.Generator().manual_seed(0))["a->b"]
    assert scores.recall_at_1 < 0.03 and scores.recall_at_10 < 0.12
    assert scores.chance_at_10 == pytest.approx(0.05)


def test_needed_subsets():
    subsets = needed_subsets(all_directions(("a", "b", "c")))
    assert len(subsets) == len(set(subsets)) == 6
    assert subsets[:2] == [("a",), ("b",)]


def test_embed_subsets():
    block = lambda dim: FusionBlock(dim, num_heads=2, num_slots=3)  # noqa: E731
    model = FusionModel({name: Toy(name) for name in "ab"}, dim=8, block=block, hidden=8)
    batches = []
    for start, names in ((0, "ab"), (4, "a")):
        masks = {name: torch.ones(4, 3, dtype=torch.bool) for name in names}
        if "b" in masks:
            masks["b"][0] = False
        inputs = {name: torch.randn(4, 3, 8) for name in names}
        ids = torch.arange(start, start + 4)
        batches.append({"inputs": inputs, "masks": masks, "positions": {}, "group_id": ids})
    found, groups = embed_subsets(model, batches, [("a",), ("b",), ("a", "b")])
    assert model.training and groups.tolist() == list(range(8))
    for subset, present in {("a",): [1] * 8, ("b",): [0, 1, 1, 1] + 4 * [0]}.items():
        assert found[subset].present.int().tolist() == present
        assert all(part.shape[-1] == 8 for part in found[subset].stats)
    assert found[("a", "b")].present.equal(found[("b",)].present)
    assert not found[("b",)].rows[found[("b",)].present.logical_not()].any()
    model.eval()
    expected = torch.cat([model.embed(batch, ("a",)) for batch in batches])
    torch.testing.assert_close(found[("a",)].rows, expected, atol=1e-6, rtol=0)


def tokens_of(image: torch.Tensor, text: torch.Tensor) -> dict:
    masks = {name: torch.ones(len(image), 1, dtype=torch.bool) for name in ("image", "text")}
    masks["text"][0] = False
    inputs = {"image": image.unsqueeze(1), "text": text.unsqueeze(1)}
    ids = torch.arange(len(image))
    return {"inputs": inputs, "masks": masks, "group_id": ids, "weight": torch.ones(len(image))}


@pytest.mark.parametrize(("linear", "lowest", "highest"), [(True, 1.0, 1.0), (False, 0.0, 0.2)])
def test_the_baseline_recovers_a_linear_relation_and_no_other(linear, lowest, highest):
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    batches = []
    for _ in range(2):
        image = F.normalize(torch.randn(60, 6), dim=1)
        batches.append(tokens_of(image, image @ turn if linear else torch.randn(60, 6)))
    scores = LinearBaseline("image", "text", strength=1e-6).score(batches[:1], iter(batches[1:]))
    assert list(scores) == ["image->text", "text->image"]
    for direction in scores.values():
        assert direction.num_queries == 59
        assert lowest <= direction.recall_at_1 <= highest
