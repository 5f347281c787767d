"""Every config trains on a tiny shard, and a pipeline loads what it leaves."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fusion import Pipeline
from fusion.checkpoint import read_plain
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
    trained = {n: (folder / n).read_text() for n in ("metrics.csv", "config.yaml")}
    run("validate", "scratch", tiny_shard, checkpoint)
    run("test", "scratch", tiny_shard, checkpoint)
    assert (folder / "scorecard.html").exists()
    directions = json.loads((folder / "scorecard.json").read_text())["recall"]
    assert {"image->text", "image+audio->text"} <= {cell["direction"] for cell in directions}
    assert (folder / "config.yaml").read_text() == trained["config.yaml"]
    kept = list(csv.DictReader((folder / "metrics.csv").open()))  # with what was found since
    before = list(csv.DictReader(trained["metrics.csv"].splitlines()))
    assert len(kept) > len(before)
    for row, same in zip(before, kept, strict=False):
        assert row.items() <= same.items()


def test_from_scratch_at_a_real_size(tiny_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--config", str(CONFIGS / "scratch_vit.yaml"), f"--data.train=['{tiny_shard}']"]
    args += ["--data.batch_size=4", "--data.num_workers=0", "--trainer.max_steps=2"]
    assert main(["fit", *args, "--trainer.accelerator=cpu"]) == 0
    assert Pipeline.from_run("runs/scratch_vit").encode([{"text": "a red ball"}]).shape == (1, 128)


def test_contrastive_then_captioning(tiny_shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = "--model.init_args.align.num_steps=20"
    pipeline = Pipeline.from_run(run("fit", "contrastive", tiny_shard, short))
    query = [{"text": "a red ball"}]
    found = pipeline.encode(query)
    with pytest.raises(ValueError, match=re.escape("configs/captioning.yaml")):
        pipeline.caption(["a.png"])

    described = Pipeline.from_run(run("fit", "captioning", tiny_shard))
    assert described.encode(query).equal(found)  # captioning leaves the model as it was
    assert described.captioner is not None


def test_streaming_is_stopped_and_resumed(tiny_shard, tmp_path, monkeypatch, capsys):
    """The same command, given again, ends with the weights of a run that nothing stopped.

    It is interrupted, then terminated, then finds its newest checkpoint damaged.
    """
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
    assert "runs/streaming yet: starting at step 0." in capsys.readouterr().err
    step = ContrastiveTask.training_step
    steps: list[int] = []
    stops = {5: "interrupt", 8: "terminate"}

    def stopping(task, batch):
        steps.append(task.global_step)
        stop = stops.pop(len(steps) - 1, None)
        if stop == "interrupt":
            raise KeyboardInterrupt
        if stop == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch)

    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    monkeypatch.setattr(ContrastiveTask, "training_step", stopping)
    folder = tmp_path / "broken" / "runs" / "streaming"
    assert main(args) == 130
    assert read_plain(folder / "last.ckpt")["global_step"] == 3
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 143
    assert read_plain(folder / "last.ckpt")["global_step"] == 7
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"Passed over: .*last\.ckpt is not a checkpoint"):
        got = train("broken")
    # From the end of an epoch, then from the checkpoint before the damaged one.
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 6, 7]
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert (folder / "rejected.jsonl").read_text() == ""
    rows = Pipeline.from_run(folder).encode([{"text": "a red ball"}])
    assert rows.shape == (1, 384)


def damaged(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")


def weights_only(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (None, "There is no checkpoint bad.ckpt; give the path of one"),
        (damaged, "bad.ckpt is not a checkpoint, or it is cut off"),
        (weights_only, "bad.ckpt is no checkpoint to go on from: it lacks loops"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_sentence(
    make, reason, tiny_shard, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if make is not None:
        make(tmp_path / "bad.ckpt")
    config = ["--config", str(CONFIGS / "scratch.yaml"), f"--data.train=['{tiny_shard}']"]
    assert main(["fit", *config, "--ckpt_path=bad.ckpt"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"fusion: error: {reason}") and "\n" not in said


def start_two_ranks(shard: Path, folder: Path, *before: str) -> subprocess.Popen:
    """`fusion fit` in a process group of its own, on two ranks for a long time."""
    args = ["--config", str(CONFIGS / "scratch.yaml"), f"--data.train=['{shard}']"]
    args += ["--data.held_out=2", "--data.batch_size=2", "--trainer.max_epochs=1000"]
    args += ["--trainer.devices=2", "--trainer.strategy=ddp_find_unused_parameters_true"]
    command = [*before, sys.executable, "-m", "fusion", "fit", *args, "--ckpt_path=last"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def check_none_left(run: subprocess.Popen) -> None:
    """All processes that a run started have ended too, or do so soon."""
    for _ in range(100):
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGKILL)
    raise AssertionError("a rank was left behind")


@pytest.mark.exhaustive
def test_ranks_that_the_command_started_stop_together(tiny_shard, tmp_path):
    """SIGTERM comes to the first process only, as from a scheduler."""
    model = tmp_path / "runs" / "scratch" / "model.ckpt"
    for num_epochs in (1, 2):
        began = model.stat().st_mtime_ns if model.exists() else 0
        run = start_two_ranks(tiny_shard, tmp_path)
        while not model.exists() or model.stat().st_mtime_ns == began:
            assert run.poll() is None
            time.sleep(0.2)
        told = time.time()
        run.terminate()
        assert run.wait(60) == 143 and time.time() - told < 30
        check_none_left(run)
        assert read_plain(model.with_name("last.ckpt"))["epoch"] >= num_epochs - 1


@pytest.mark.exhaustive
def test_ranks_that_the_command_started_end_when_the_first_fails(tiny_shard, tmp_path):
    """Its disk gets full when it saves; the other would wait for it."""
    limit = ("bash", "-c", 'ulimit -f 500; exec "$@"', "limited")  # files of 500 kB
    run = start_two_ranks(tiny_shard, tmp_path, *limit)
    assert run.wait(120) == 2
    check_none_left(run)
    assert not list((tmp_path / "runs" / "scratch").glob("*.ckpt"))
    assert not list((tmp_path / "runs" / "scratch").glob(".*.saving"))
