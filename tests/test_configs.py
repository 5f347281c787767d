"""Every config trains on a tiny shard, and a pipeline loads what it leaves."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from fusion import Pipeline
from fusion.cli.main import main
from fusion.tasks import ContrastiveTask

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
        "scratch_vit",
        "streaming",
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


def test_from_scratch_at_a_real_size(tiny_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--config", str(CONFIGS / "scratch_vit.yaml"), f"--data.train=['{tiny_shard}']"]
    args += ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_steps=2"]
    assert main(["fit", *args, "--trainer.accelerator=cpu"]) == 0
    assert Pipeline.from_run("runs/scratch_vit").encode([{"text": "a red ball"}]).shape == (1, 128)


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


def test_streaming_is_stopped_and_resumed(tiny_shard, tmp_path, monkeypatch):
    """The same command, given again, ends with the weights of a run that nothing stopped."""
    configs = Path(shutil.copytree(CONFIGS, tmp_path / "configs"))
    config = configs / "streaming.yaml"
    often = config.read_text().replace("every_n_train_steps: 500", "every_n_train_steps: 3")
    config.write_text(often)
    args = ["fit", "--config", str(config), f"--data.train=['{tiny_shard}']", "--ckpt_path=last"]
    args += ["--data.batch_size=4", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]

    def train(name: str) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        assert main(args) == 0
        checkpoint = torch.load("runs/streaming/model.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 8
        return checkpoint["state_dict"]

    wanted = train("unbroken")
    step = ContrastiveTask.training_step
    steps: list[int] = []

    def stops(task, batch):
        steps.append(task.global_step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(task, batch)

    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    with monkeypatch.context() as stopped:
        stopped.setattr(ContrastiveTask, "training_step", stops)
        assert main(args) == 130
    folder = tmp_path / "broken" / "runs" / "streaming"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    steps.append(-100)  # the second run is not stopped
    monkeypatch.setattr(ContrastiveTask, "training_step", stops)
    got = train("broken")
    assert steps == [0, 1, 2, 3, 4, 5, -100, 3, 4, 5, 6, 7]
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert (folder / "rejected.jsonl").read_text() == ""
    rows = Pipeline.from_run(folder).encode([{"text": "a red ball"}])
    assert rows.shape == (1, 384)
