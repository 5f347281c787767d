import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from fusion.scorecard.zero_shot import classify, macro_average
from tests.fusion.scorecard.made import embedded, everything, held_out, unit

IMAGE = [("image",)]


def both(image: torch.Tensor, text: torch.Tensor, groups, present=None):
    return held_out({("image",): embedded(image), ("text",): embedded(text, present)}, groups)


@pytest.mark.parametrize("k", [1, 5])
def test_it_is_the_macro_accuracy_of_torchmetrics(k):
    groups = torch.cat([torch.arange(12), torch.zeros(30).long(), torch.ones(6).long()])
    image, text = unit(48), unit(48)
    (found,) = classify(both(image, text, groups), IMAGE)
    means = torch.stack([F.normalize(text[groups == g].mean(0), dim=0) for g in range(12)])
    oracle = MulticlassAccuracy(12, top_k=k, average="macro")(image @ means.T, groups)
    assert (found.top_1, found.top_5)[k == 5] == pytest.approx(float(oracle), abs=1e-6)
    assert (found.num_classes, found.num_queries) == (12, 48)
    assert (found.chance_1, found.chance_5) == (1 / 12, 5 / 12)


def test_large_classes_do_not_drown_small_ones():
    values, groups = torch.tensor([1.0, 1, 1, 1, 0]), torch.tensor([4, 4, 4, 4, 9])
    assert macro_average(values, groups) == 0.5


def test_samples_of_classes_without_a_caption_are_no_queries():
    eye = torch.eye(4)
    (found,) = classify(both(eye, eye, [0, 1, 2, 3], [1, 1, 1, 0]), IMAGE)
    assert (found.num_classes, found.num_queries, found.top_1) == (3, 3, 1)


def test_a_collapsed_model_finds_no_class():
    samples = everything(lambda subset: torch.ones(20, 8) / 8**0.5)
    (found,) = classify(samples, IMAGE)
    assert found.top_1 == found.top_5 == 0


def test_without_captions_there_are_no_classes():
    rows = unit(5)
    assert classify(held_out({("image",): embedded(rows)}), IMAGE) == ()
    assert classify(both(rows, rows, range(5), [0] * 5), IMAGE) == ()
    assert classify(both(rows, rows, range(5)), [("text",)]) == ()
