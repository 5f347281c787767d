import pytest
import torch

from fusion.scorecard.held_out import Collector, Noise
from fusion.scorecard.recall import proper_subsets
from fusion.scorecard.robustness import (
    draw_kept,
    missing_curve,
    noise_curve,
    remaining_rows,
)
from fusion.subsets import parse_direction
from tests.fusion.scorecard.made import embedded, everything, held_out, unit
from tests.fusion.tasks.toys import NAMES, make_batch, make_task

BOTH = parse_direction("image+audio->text")


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "share"), [(2, 0.0), (2, 0.25), (2, 0.5), (3, 0.5), (4, 0.75)])
def test_the_share_is_exact_and_one_input_is_left(size, share):
    kept = draw_kept(100, size, share, draw())
    assert int((~kept).sum()) == round(share * 100 * size)
    assert kept.any(1).all()
    each = kept.double().mean(0)
    assert ((each - (1 - share)).abs() < 0.17).all()  # no modality is spared
    assert kept.equal(draw_kept(100, size, share, draw()))
    assert share in (0, 0.0) or not kept.equal(draw_kept(100, size, share, draw(1)))


def test_what_remains_is_what_a_sample_without_the_rest_gives(tmp_path):
    """One pass over samples that lack inputs, beside the rows of their subsets."""
    model = make_task(tmp_path, dropout=0.0).model.eval()
    batch = make_batch(24, shared=0.7)
    collector = Collector(model, proper_subsets(NAMES))
    collector.add(batch)
    samples = collector.finish()
    kept = draw_kept(24, 2, 0.5, draw())
    order = torch.tensor([batch["keys"].index(key) for key in samples.keys])
    lacking = {**batch, "masks": dict(batch["masks"])}
    for column, name in enumerate(BOTH.query):
        here = torch.zeros(24, dtype=torch.bool).index_put((order,), kept[:, column])
        lacking["masks"][name] = batch["masks"][name] & here.unsqueeze(1)
    with torch.no_grad():
        rows = model.embed(lacking, BOTH.query)[order]
    found = remaining_rows(samples, BOTH.query, kept)
    torch.testing.assert_close(found, rows, atol=1e-5, rtol=0)
    whole = samples.embedded[BOTH.query].rows
    assert not torch.isclose(found, whole, atol=1e-3).all(1).any()


def test_recall_falls_by_what_is_taken_away():
    """Sound alone says nothing: without the picture a query is lost."""
    eye, nothing = torch.eye(40), unit(40, 40)
    rows = {("image",): eye, ("audio",): nothing, ("image", "audio"): eye, ("text",): eye}
    samples = held_out({subset: embedded(value) for subset, value in rows.items()})
    points = missing_curve(samples, [BOTH, parse_direction("image->text")], draw())
    assert [(p.direction, p.absent) for p in points] == [
        ("image+audio->text", share) for share in (0.0, 0.25, 0.5)
    ]
    assert points[0].scores.recall_at_1 == 1
    kept = draw_kept(40, 2, 0.25, torch.Generator().manual_seed(5))
    (point,) = missing_curve(samples, [BOTH], torch.Generator().manual_seed(5), [0.25])
    assert point.scores.recall_at_1 == pytest.approx(float(kept[:, 0].double().mean()), abs=0.06)
    assert points[1].scores.pool == points[0].scores.pool == 40


def test_three_inputs_may_lose_more():
    names = ("a", "b", "c", "d")
    samples = everything(lambda subset: torch.eye(20), names)
    points = missing_curve(samples, [parse_direction("a+b+c->d")], draw())
    assert [p.absent for p in points] == [0.0, 0.25, 0.5]  # 0.75 would leave none
    assert all(p.scores.recall_at_1 == 1 for p in points)


def test_the_noise_curve():
    eye = torch.eye(30)
    clean = {("image",): embedded(eye), ("text",): embedded(eye), ("audio",): embedded(eye)}
    noisy = {
        Noise("image", 1.0): {("image",): embedded(eye.roll(1, 0))},
        Noise("image", 2.0): {("image",): embedded(torch.ones(30, 30) / 30**0.5)},
    }
    directions = [parse_direction("image->text"), parse_direction("text->image")]
    points = noise_curve(held_out(clean, noisy=noisy), directions)
    found = {(p.direction, p.modality, p.level): p.scores.recall_at_1 for p in points}
    assert found == {  # targets stay clean
        ("image->text", "image", 0.0): 1,
        ("image->text", "image", 1.0): 0,
        ("image->text", "image", 2.0): 0,
    }
