import torch

from fusion.metrics import RetrievalScores
from fusion.scorecard import tradeoff


def scores(at_1: float, at_10: float, num: int = 400) -> RetrievalScores:
    return RetrievalScores(at_1, (at_1 + at_10) / 2, at_10, 3.0, num, num, 0.0, 0.0, 0.0)


def test_one_falls_while_another_rises():
    before = {"image->text": scores(0.4, 0.8), "audio->text": scores(0.1, 0.3)}
    after = {"image->text": scores(0.2, 0.6), "audio->text": scores(0.1, 0.6)}
    sentence = tradeoff(before, after)
    assert sentence is not None
    lost, won = sentence.split("; against ")
    assert "image->text R@1 40.0 -> 20.0 %" in lost and "image->text R@10" in lost
    assert won == "audio->text R@10 30.0 -> 60.0 %."


def test_all_rising_or_all_falling_is_no_tradeoff():
    low = {name: scores(0.1, 0.3) for name in "ab"}
    high = {name: scores(0.5, 0.9) for name in "ab"}
    assert tradeoff(low, high) is None and tradeoff(high, low) is None
    assert tradeoff({}, high) is None


def test_small_sets_need_larger_changes():
    for num, said in ((50, False), (5000, True)):
        before = {"a": scores(0.4, 0.5, num), "b": scores(0.4, 0.5, num)}
        after = {"a": scores(0.45, 0.5, num), "b": scores(0.35, 0.5, num)}
        assert (tradeoff(before, after) is not None) == said


def test_the_ends_have_noise_too():
    before = {"a": scores(0.0, 0.0, 20), "b": scores(1.0, 1.0, 20)}
    after = {"a": scores(0.05, 0.05, 20), "b": scores(0.95, 0.95, 20)}
    assert tradeoff(before, after) is None


def sampled(num: int) -> dict[str, RetrievalScores]:
    shares = torch.rand(12, num) < torch.linspace(0.05, 0.9, 12)[:, None]
    values = shares.double().mean(1).tolist()
    return {f"{index}->x": scores(value, value, num) for index, value in enumerate(values)}


def count_false_alarms(num_runs: int = 300) -> int:
    return sum(tradeoff(sampled(150), sampled(150)) is not None for _ in range(num_runs))


def test_noise_gives_no_warning():
    """Twelve directions, other queries each time."""
    assert count_false_alarms() == 0


def test_a_bar_of_one_deviation_would_cry_wolf(monkeypatch):
    monkeypatch.setattr("fusion.scorecard.changes.DEVIATIONS", 1.0)
    assert count_false_alarms() > 100
