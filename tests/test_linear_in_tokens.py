"""The benchmark of a round's time against the number of tokens; how fast it is, is not tested."""

import json

import pytest

from benchmarks import linear_in_tokens
from benchmarks.linear_in_tokens import BAR, slope


def test_the_slope_tells_linear_from_quadratic():
    counts = (4, 8, 16, 32)
    assert slope(counts, [3.0 * n for n in counts]) == pytest.approx(1)
    assert slope(counts, [n * n for n in counts]) == pytest.approx(2)
    assert abs(slope(counts, [n * (n**0.3) for n in counts]) - 1) > BAR


def test_a_tiny_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(linear_in_tokens, "REPEATS", 2)
    path = tmp_path / "results" / "linear.json"
    arguments = ["--device", "cpu", "--batch", "1", "--tokens", "64", "128", "--out", str(path)]
    found = linear_in_tokens.main(arguments)
    record = json.loads(path.read_text())
    assert [row["tokens"] for row in record["rounds"]] == [64, 128]
    assert all(row["ms"] > 0 for row in record["rounds"]) and record["slope"] == found
    assert capsys.readouterr().out.count("ms a round") == 2
