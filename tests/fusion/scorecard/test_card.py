import io
import json

import pytest
import torch
from rich.console import Console

from fusion.report import writer as report_writer
from fusion.scorecard import (
    Collector,
    Noise,
    Scorecard,
    caption_quality,
    make_scorecard,
    print_scorecard,
    score,
    write_scorecard,
)
from fusion.scorecard.held_out import disturbed
from fusion.scorecard.recall import proper_subsets
from fusion.tokens import Tokens
from tests.fusion.scorecard.made import everything
from tests.fusion.tasks.toys import NAMES, make_batch, make_task


@pytest.fixture
def model(tmp_path):
    return make_task(tmp_path, dropout=0.5).model


def batches(num: int = 3) -> list[dict]:
    made = [make_batch(20, shared=0.7) for _ in range(num)]
    for index, batch in enumerate(made):
        batch["keys"] = [f"{index}-{key}" for key in batch["keys"]]
        batch["masks"]["audio"][:5] = False
    return made


def test_the_same_card_for_the_same_seed_however_samples_come(model):
    made = batches()
    card = make_scorecard(model, made)
    assert model.training  # as it was
    assert make_scorecard(model, made[::-1]).to_json() == card.to_json()
    assert make_scorecard(model, made, seed=1).to_json() != card.to_json()


def test_the_card_has_every_measure(model):
    card = make_scorecard(model, batches(), captions=caption_quality(["a b"], [["a b"]]))
    assert (card.num_samples, card.num_groups) == (60, 60)
    assert len(card.recall) == 12 and len(card.mixed) == 3
    assert len(card.missing) == 9 and len(card.noisy) == 48
    assert len(card.spreads) == len(card.gaps) == 3
    assert [z.query for z in card.zero_shot] == ["image", "audio", "image+audio"]
    assert len(card.calibration) == len(card.iterations) == 9
    assert card.captions is not None and card.captions.num == 1
    plain = json.loads(card.to_json())
    assert plain["recall"][0]["direction"] == "image->text"
    assert plain["recall"][0]["scores"]["pool"] == 60
    assert plain["captions"] == {"cider": 0.0, "distinct": 1.0, "num": 1}


def test_a_collapsed_model_is_at_or_below_chance_everywhere():
    card = score(everything(lambda subset: torch.ones(30, 8) / 8**0.5), NAMES)
    for item in (*card.recall, *card.mixed, *card.missing, *card.noisy):
        assert item.scores.recall_at_1 <= item.scores.chance_at_1
        assert item.scores.recall_at_10 <= item.scores.chance_at_10
    assert all(z.top_5 <= z.chance_5 for z in card.zero_shot)
    assert all(s.effective_rank < 1.01 and s.uniformity > -1e-5 for s in card.spreads)
    assert all(c.brier == pytest.approx(0.25, abs=0.01) for c in card.calibration)
    assert all(i.correlation is None for i in card.iterations)
    assert [w for w in card.warnings if "collapsed" in w] == list(card.warnings) and card.warnings
    json.loads(card.to_json())


def test_a_sample_that_is_not_finite_is_not_found_and_is_named(model):
    made = batches(1)
    made[0]["inputs"]["image"][7] = torch.nan
    card = make_scorecard(model, made)
    (warning,) = [w for w in card.warnings if "not finite" in w]
    assert warning.endswith(": 0-sample7.")
    made = [{**made[0], "inputs": {n: v.clone() for n, v in made[0]["inputs"].items()}}]
    made[0]["inputs"]["image"][:] = torch.nan
    hopeless = make_scorecard(model, made)
    for cell in hopeless.recall:
        if "image" in cell.direction:
            assert cell.scores.recall_at_1 == 0
    json.loads(hopeless.to_json())


def test_without_samples_there_is_no_card(model):
    with pytest.raises(ValueError, match="no held-out sample"):
        make_scorecard(model, [])


def test_two_modalities_and_one(tmp_path):
    card = score(everything(lambda subset: torch.eye(12), ("image", "text")), ("image", "text"))
    assert [c.direction for c in card.recall] == ["image->text", "text->image"]
    assert card.missing == () and len(card.gaps) == 1
    write_scorecard(tmp_path, card)
    lone = score(everything(lambda subset: torch.eye(12), ("text",)), ("text",))
    assert lone.recall == lone.mixed == lone.gaps == ()
    write_scorecard(tmp_path, lone)
    print_scorecard(lone, Console(file=io.StringIO()))


def test_four_modalities_fit_the_page(tmp_path):
    names = ("image", "text", "audio", "video")
    card = score(everything(lambda subset: torch.eye(12), names), names)
    assert len(card.recall) == 50
    assert "image + text + audio" in write_scorecard(tmp_path, card).read_text()


def test_noise_depends_on_the_key_and_the_seed_alone():
    values, mask = torch.randn(4, 3, 8), torch.ones(4, 3, dtype=torch.bool)
    mask[:, 2] = False
    tokens = Tokens(values, mask, torch.zeros(4, 3, 3), torch.zeros(3).long())
    noisy = disturbed(tokens, "abcd", 0.5, seed=0).values
    again = disturbed(tokens.per_sample(lambda c: c.flip(0)), "dcba", 0.5, seed=0).values
    assert noisy.equal(again.flip(0))
    shorter = tokens.per_sample(lambda c: c[:, :2])._replace(modality=torch.zeros(2).long())
    assert disturbed(shorter, "abcd", 0.5, seed=0).values.equal(noisy[:, :2])
    assert not disturbed(tokens, "abcd", 0.5, seed=1).values.equal(noisy)
    assert noisy[:, 2].equal(values[:, 2])  # padding stays
    wide = Tokens(torch.randn(1, 1, 9999) * 7, mask[:1, :1], torch.zeros(1, 1, 3), mask[:1].long())
    size = (disturbed(wide, "a", 0.5, seed=0).values - wide.values).square().mean().sqrt()
    assert size == pytest.approx(3.5, rel=0.05)


def test_the_collector_drops_what_lies_beyond_the_keys(model):
    (batch,) = batches(1)
    found = []
    for num in (20, 15):
        collector = Collector(model, [("image",)], [Noise("image", 1.0)])
        cut = {name: {m: v[:num] for m, v in batch[name].items()} for name in ("inputs", "masks")}
        part = {**batch, **cut, "group_id": batch["group_id"][:num], "keys": batch["keys"][:15]}
        collector.add(part)
        found.append(collector.finish())
    padded, plain = found
    assert padded.keys == plain.keys and padded.groups.equal(plain.groups)
    torch.testing.assert_close(padded.embedded["image",].rows, plain.embedded["image",].rows)


def test_repeated_samples_count_once_if_the_loader_repeats_them(model):
    (batch,) = batches(1)
    for repeated, num in ((True, 20), (False, 40)):
        collector = Collector(model, proper_subsets(NAMES))
        collector.add(batch)
        collector.add(batch)
        assert len(collector.finish(repeated).keys) == num


def test_the_files_are_whole_or_not_there(model, tmp_path, monkeypatch):
    card = make_scorecard(model, batches(1))
    page = write_scorecard(tmp_path / "run", card)
    assert {path.name for path in page.parent.iterdir()} == {"scorecard.json", "scorecard.html"}
    text = page.read_text()
    assert "<script" not in text and 'src="http' not in text
    assert text.count("data:image/svg+xml") >= 6

    class Full(type(tmp_path)):
        def write_text(self, *args, **options):
            super().write_text("half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_writer, "Path", Full)
    with pytest.raises(OSError):
        write_scorecard(tmp_path / "run", card)
    assert page.read_text() == text and len(list(page.parent.iterdir())) == 2


def test_the_table_shows_directions_and_warnings(model):
    made = batches(1)
    made[0]["inputs"]["image"][7] = torch.nan
    out = io.StringIO()
    print_scorecard(make_scorecard(model, made), Console(file=out, width=100))
    text = out.getvalue()
    assert "image+audio->text" in text and "image->*" in text and "effective rank" in text
    assert "without 50 % of inputs" in text and "warning: 1 samples" in text
    assert max(map(len, text.splitlines())) <= 100


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path):
    names = ("[red]", "<b>")
    card = score(everything(lambda subset: torch.eye(12), names), names)
    assert isinstance(card, Scorecard)
    out = io.StringIO()
    print_scorecard(card, Console(file=out, width=100))
    assert "[red]-><b>" in out.getvalue()
    assert "<b>" not in write_scorecard(tmp_path, card).read_text()
