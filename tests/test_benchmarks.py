"""The benchmarks run and write rows of the right form; how fast anything is, is not tested."""

import json
import math

import pytest
import torch

from benchmarks import efficiency, loaders, loading
from benchmarks.ablation import composed, emoji, table, travel
from benchmarks.measure import Row
from benchmarks.media import small_picture, write_shards


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_run_writes_every_technique(tmp_path, capsys) -> None:
    efficiency.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    table = tmp_path / "efficiency-cpu.md"
    assert capsys.readouterr().out.strip() == str(table)
    record = json.loads(table.with_suffix(".json").read_text())
    assert {"cpu", "cores", "threads", "torch"} == set(record["hardware"])
    assert {row["technique"] for row in record["rows"]} == {
        "Anderson",
        "cost",
        "early exit per sample",
        "gradient",
        "low-precision search",
        "sparse updates",
        "warm start",
    }
    for row in record["rows"]:
        assert row["case"] and row["unit"] and row["pays"] in {"yes", "no", "costs"}
        figures = [row[name] for name in ("plain", "with_it", "ratio")]
        assert all(math.isfinite(figure) for figure in figures)
    lines = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(record["rows"])
    assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(("with_it", "pays"), [(5.0, "yes"), (10.5, "no"), (20.0, "costs")])
def test_a_row_says_whether_it_pays(with_it: float, pays: str) -> None:
    row = Row("a", "b", "ms", 10.0, with_it)
    assert row.pays == pays and row.ratio == 10.0 / with_it


@pytest.mark.slow
def test_a_tiny_run_of_the_loaders(tmp_path, capsys) -> None:
    loading.main(["--tiny", "--out", str(tmp_path)])
    table = tmp_path / "loading-cpu.md"
    assert capsys.readouterr().out.strip() == str(table)
    record = json.loads(table.with_suffix(".json").read_text())
    assert set(loading.VERSIONS) == set(record["versions"]) and record["load"]
    cases = [(row["case"], row["num_workers"], row["bar"]) for row in record["rows"]]
    for name in (loading.PHOTO, loading.SMALL):
        assert (f"{name}: ours, against bare", 0, 0.95) in cases
        for workers in (0, 1):
            assert (f"{name}: ours, same output, against open_clip", workers, 1.0) in cases
    for row in record["rows"]:
        figures = [row[name] for name in ("plain", "ours", "ratio", "cpu_ratio")]
        assert all(0 < figure < math.inf for figure in figures)
    decoded = {key for core in record["per_core"] for key in core if key.startswith("decode")}
    assert decoded == {"decode of image", "decode of audio", "decode of video"}
    assert "| case |" in table.read_text() and "Per core" in table.read_text()


def test_the_forms_compared_give_the_same(tmp_path) -> None:
    """Ours in open_clip's form gives as many pictures and ids, and so does the bare one."""
    shards = write_shards(tmp_path, small_picture, (2, 4, 3))
    theirs = loaders.open_clip_loader(shards, 4, 0)
    forms = (loaders.our_loader(shards, 4, 0, True), loaders.our_loader(shards, 4, 0, False))
    guards = (loaders.bare(shards, 4), loaders.guarded(shards, 4))
    assert [form() for form in (theirs, *forms, *guards)] == [8] * 5


@pytest.mark.parametrize("variant", travel.VARIANTS)
def test_travel_runs(variant, monkeypatch) -> None:
    monkeypatch.setattr(travel, "TESTED_ON", (travel.TRAINED_ON,))
    found = travel.run(variant, 0, "cpu", steps=2)
    assert 0 <= found["32 tokens, 0.12"] <= 1


def test_every_row_of_travel_names_the_nearest_label_to_its_left() -> None:
    tokens, wanted = travel.rows(4, 200, 0.1, torch.Generator().manual_seed(0))
    for row, answers in zip(tokens.tolist(), wanted.tolist(), strict=True):
        last = -100
        for token, answer in zip(row, answers, strict=True):
            last = last if token == travel.LABELS else token
            assert answer == last


@pytest.mark.parametrize("name", ["concatenation and MLP", "anchored + slots, converged"])
def test_composed_runs(name, monkeypatch) -> None:
    monkeypatch.setattr(composed, "BATCH", 4)
    draw = torch.Generator().manual_seed(0)
    concept, vendor = torch.arange(12).repeat_interleave(4), ["noto", "a", "b", "c"] * 12
    data = emoji.Emoji(
        torch.randint(0, 256, (48, 3, emoji.SIZE, emoji.SIZE), dtype=torch.uint8, generator=draw),
        concept,
        vendor,
        torch.randint(1, 30, (12, emoji.MAX_WORDS), generator=draw),
        30,
        concept < 2,
        torch.tensor([name == "noto" for name in vendor]),
        (concept > 8) & torch.tensor([name in "ab" for name in vendor]),
    )
    found = composed.run(name, 0, "cpu", data, steps=2)
    runs = [{"task": "composed", "variant": name, "seed": 0, "hardware": "a", **found}]
    assert f"| {name} |" in table.table(runs, "composed")
