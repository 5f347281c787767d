"""Every config trains on a tiny shard, and a pipeline loads what it leaves."""

import re
from pathlib import Path

import pytest

from fusion import Pipeline
from fusion.cli.main import main

CONFIGS = Path(__file__).parent.parent / "configs"


def run(verb: str, name: str, shard: Path, *overrides: str) -> Path:
    """Runs a config in the working directory, on a tiny shard; returns its run folder."""
    tiny = (f"--data.train=['{shard}']", "--data.held_out=2", "--data.batch_size=8")
    config = str(CONFIGS / f"{name}.yaml")
    assert main([verb, "--config", config, *tiny, "--trainer.max_epochs=1", *overrides]) == 0
    return Path("runs") / name


def test_every_config_is_run_here_and_says_how_to_run_it():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        "captioning",
        "contrastive",
        "scratch",
    }
    texts = {path.stem: path.read_text() for path in CONFIGS.glob("*.yaml")}
    for name, text in texts.items():
        header = text.split("seed_everything")[0]
        assert f"fusion fit --config configs/{name}.yaml" in header
        assert "Hardware:" in header and "Time:" in header
    for part in CONFIGS.glob("*/*.yaml"):
        assert any(f"model: model/{part.name}" in text for text in texts.values()), part


def test_from_scratch(tiny_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run("fit", "scratch", tiny_shard)
    rows = Pipeline.from_run(folder).encode([{"text": "a red ball"}, {"text": "a blue boat"}])
    assert rows.shape == (2, 64)
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    checkpoint = f"--ckpt_path={folder / 'model.ckpt'}"
    run("validate", "scratch", tiny_shard, checkpoint, "--trainer.logger=false")
    assert "loss" in (folder / "metrics.csv").read_text()  # of the training, still


def test_contrastive_then_captioning(tiny_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = Pipeline.from_run(run("fit", "contrastive", tiny_shard))
    query = [{"text": "a red ball"}]
    found = pipeline.encode(query)
    with pytest.raises(ValueError, match=re.escape("configs/captioning.yaml")):
        pipeline.caption(["a.png"])

    described = Pipeline.from_run(run("fit", "captioning", tiny_shard))
    assert described.encode(query).equal(found)  # captioning leaves the model as it was
    assert described.captioner is not None
