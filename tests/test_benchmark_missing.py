"""The benchmark of missing inputs compares the right models on the same queries."""

import json

import pytest
import torch

from benchmarks import missing
from tests.fusion.scorecard.made import embedded, held_out


def sample_set(image_is_right: bool, audio_is_right: bool):
    """Whole queries are right; a part of them is right or finds the wrong caption."""
    eye = torch.eye(40)
    parts = {
        ("image",): eye if image_is_right else eye.roll(1, 0),
        ("audio",): eye if audio_is_right else eye.roll(1, 0),
        missing.QUERY: eye,
        ("text",): eye,
    }
    return held_out({subset: embedded(rows) for subset, rows in parts.items()})


class Data:
    train_samples = [0] * 7


def test_each_query_is_judged_by_what_remains_of_it(monkeypatch):
    sets = {
        (missing.IMAGE, missing.AUDIO, missing.BOTH): sample_set(True, False),
        (missing.BOTH,): sample_set(False, False),
        (missing.IMAGE,): sample_set(True, False),
        (missing.AUDIO,): sample_set(False, True),
    }
    monkeypatch.setattr(missing, "train", lambda names, *rest: (tuple(names), Data()))
    monkeypatch.setattr(missing, "embed", lambda task, data: sets[task])
    outcome, sizes = missing.compare(0, None)
    assert sizes == {"train": 7, "queries": 40}
    assert outcome[missing.REFERENCE]["absent R@1"] == 100  # each part by the model of its own
    found = outcome["all subsets"]
    assert found["complete R@1"] == found["image left R@1"] == 100
    kept = missing.draw_kept(40, 2, 0.5, torch.Generator().manual_seed(0))
    assert kept.sum(1).eq(1).all()  # half of the inputs each
    assert found["audio left R@1"] == 0
    assert found["absent R@1"] == pytest.approx(100 * float(kept[:, 0].double().mean()))
    assert outcome["whole queries only"]["absent R@1"] == 0


def test_the_verdict_follows_the_mean_over_seeds(tmp_path):
    def run(lost: float) -> missing.Outcome:
        return {
            "all subsets": {f"absent R@{k}": 50.0 - lost for k in missing.CUTOFFS},
            missing.REFERENCE: {f"absent R@{k}": 50.0 for k in missing.CUTOFFS},
        }

    about = {"date": "", "minutes": 1.0, "hardware": {"cores": 1}, "seeds": 2, "steps": 1}
    about |= {"batch": 8, "train": 7, "queries": 40}
    table = missing.write([run(0.5), run(3.0)], about, tmp_path)
    assert "all subsets, R@1: -1.8 (-0.5, -3.0): within 2 points" in table.read_text()
    assert len(json.loads(table.with_suffix(".json").read_text())["runs"]) == 2
    table = missing.write([run(2.0), run(3.0)], about, tmp_path)
    assert "all subsets, R@10: -2.5 (-2.0, -3.0): not within 2 points" in table.read_text()


@pytest.mark.exhaustive
def test_a_tiny_run(tmp_path, capsys):
    missing.main(["--tiny", "--out", str(tmp_path), "--cache", str(tmp_path / "tokens")])
    assert capsys.readouterr().out.strip().endswith("missing-cpu.md")
    (run,) = json.loads((tmp_path / "missing-cpu.json").read_text())["runs"]
    assert run.keys() == {*list(missing.TRAINED)[:3], missing.REFERENCE}
