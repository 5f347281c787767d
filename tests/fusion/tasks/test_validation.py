import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fusion.cli.main import main
from fusion.evaluation import embed_subsets, needed_subsets, score_directions
from fusion.scorecard import make_scorecard
from fusion.subsets import all_directions
from fusion.tasks import validation
from tests.fusion.conftest import CONFIG, working_in
from tests.fusion.tasks.toys import NAMES, Data, Losses, make_batch, make_task, make_trainer

ROOT = Path(__file__).parents[3]


class Tested(Data):
    def test_dataloader(self):
        return self.val_dataloader()


ONE = {"image->text": 1.0}  # direction to train: a step of all of them takes longer


def fit(tmp_path, *callbacks, **options):
    task = make_task(tmp_path, lr=0.0, dropout=0.0, directions=ONE)
    trainer = make_trainer(tmp_path, *callbacks, **{"max_epochs": 1} | options)
    data = Tested()
    trainer.fit(task, datamodule=data)
    return task, trainer, data


def test_what_is_logged_is_what_the_model_scores(tmp_path):
    task, trainer, data = fit(tmp_path)
    directions = all_directions(NAMES)
    embedded, groups = embed_subsets(
        task.model, data.batches[:1], needed_subsets([*directions, *task.shares])
    )
    logged = trainer.callback_metrics
    for name, scores in score_directions(embedded, groups, directions).items():
        assert logged[f"val/{name}/R@1"] == pytest.approx(scores.recall_at_1)
        assert logged[f"val/{name}/R@10"] == pytest.approx(scores.recall_at_10)
    stats = embedded["image",].stats
    assert logged["val/num_iters"] == pytest.approx(float(stats.num_iters.float().mean()))
    assert logged["val/converged"] == pytest.approx(float(stats.converged.float().mean()))
    for name in ("gap/image-text", "effective_rank/audio", "uniformity/text"):
        assert f"val/{name}" in logged


def test_trained_directions_of_any_size_are_scored(tmp_path):
    task = make_task(tmp_path, directions={"image->text+audio": 1.0})
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=Data())
    assert {"val/image->text+audio/R@1", "val/image->text/R@1"} <= trainer.callback_metrics.keys()


def rows_of(path: Path) -> list[dict[str, str]]:
    names, *lines = (line.split(",") for line in path.read_text().splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def test_the_first_scores_are_of_the_untrained_model(tmp_path):
    logger, losses = CSVLogger(tmp_path, "logs", ""), Losses()
    checkpoints = ModelCheckpoint(tmp_path / "kept", monitor="val/image->text/R@10", mode="max")
    options = {"logger": logger, "enable_checkpointing": True, "log_every_n_steps": 1}
    fit(tmp_path, checkpoints, losses, max_epochs=2, **options)
    rows = rows_of(Path(logger.log_dir) / "metrics.csv")
    scored = [int(row["step"]) for row in rows if row["val/image->text/R@1"]]
    assert scored == [0, 4, 9] and len(losses.values) == 10
    assert Path(checkpoints.best_model_path).is_file()


def test_the_first_validation_changes_no_step(tmp_path, monkeypatch):
    found = []
    for first in (True, False):
        if not first:
            monkeypatch.setattr(validation.HeldOutScores, "on_train_start", lambda *args: None)
        torch.manual_seed(2)
        losses, task = Losses(), make_task(tmp_path, directions=ONE)
        task.step_seed.seed = 5
        torch.manual_seed(3)
        make_trainer(tmp_path, losses, max_epochs=2).fit(task, datamodule=Data())
        assert task.training
        found.append(losses.values)
    assert found[0] == found[1]


def test_a_resumed_run_goes_on_with_its_scores(tmp_path):
    logger = CSVLogger(tmp_path, "logs", "")
    task, trainer, data = fit(tmp_path, logger=logger)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = make_task(tmp_path, lr=0.0, dropout=0.0, directions=ONE)
    again = make_trainer(tmp_path, max_epochs=1, logger=CSVLogger(tmp_path, "again", ""))
    again.fit(resumed, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert resumed.held_out.state_dict() == task.held_out.state_dict()
    assert task.held_out.state_dict()["before"]["image->text"][4] == 32


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"fast_dev_run": True}])
def test_runs_without_or_with_little_validation(tmp_path, options):
    fit(tmp_path, **options)


def test_a_fall_against_a_rise_is_told(tmp_path):
    task = make_task(tmp_path, dropout=0.0)
    for name in NAMES:  # one projection for all: what towers agree on is found
        state = task.model.projection("image").state_dict()
        task.model.projection(name).load_state_dict(state)
        task.model.encoders[name].linear.weight.data = torch.eye(8)
        task.model.encoders[name].linear.bias.data.zero_()
    batches = [make_batch(200, shared=0.8)]
    trainer = make_trainer(tmp_path)

    class Held(Data):
        def val_dataloader(self):
            return Data(batches=batches).val_dataloader()

    told = []
    for image, text in ((0, 1), (0, 1), (1, 0)):
        for name, scale in (("image", image), ("text", text)):
            task.model.encoders[name].linear.weight.data = scale * torch.eye(8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.validate(task, datamodule=Held(), verbose=False)
        told.append([str(w.message) for w in caught if "Some recall fell" in str(w.message)])
    assert told[:2] == [[], []]  # unchanged weights, and nothing to compare with
    ((sentence,),) = told[2:]
    lost, won = sentence.split("; against ")
    assert "text->audio R@10" in lost and "image->audio R@10" in won


def test_a_bad_sample_is_told_and_stops_nothing(tmp_path):
    bad = make_batch(32, shared=0.8)
    bad["inputs"]["image"][3] = torch.nan
    task, trainer = make_task(tmp_path, directions=ONE), make_trainer(tmp_path, max_epochs=1)
    data = Data()
    data.val_dataloader = Data(batches=[bad]).val_dataloader
    with pytest.warns(UserWarning, match="1 held-out samples have .* the first is sample3"):
        trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["val/image->text/R@1"] <= 31 / 32


def test_a_test_writes_the_scorecard(tmp_path, capsys):
    task, trainer, data = fit(tmp_path)
    trainer.test(task, datamodule=data, verbose=False)
    card = make_scorecard(task.model, data.batches[:1])
    assert (tmp_path / "scorecard.json").read_text() == card.to_json()
    assert (tmp_path / "scorecard.html").is_file()
    said = capsys.readouterr().out
    assert "32 held-out samples" in said and "image+audio->text" in said


def test_without_held_out_samples_training_runs_and_a_test_says_so(tmp_path):
    class Nothing(Data):
        def val_dataloader(self):
            return []

        test_dataloader = val_dataloader

    task, trainer = make_task(tmp_path, directions=ONE), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, datamodule=Nothing())
    assert not [name for name in trainer.callback_metrics if name.startswith("val/")]
    with pytest.raises(ValueError, match="no held-out sample to test on"):
        trainer.test(task, datamodule=Nothing(), verbose=False)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """The folder that the driver of two ranks left."""
    folder = tmp_path_factory.mktemp("validation")
    with open(folder / "said.txt", "w") as said:  # no pipe: a rank that hangs would hold it open
        subprocess.run(
            [sys.executable, "-m", "tests.fusion.tasks.validation_driver", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    return folder


@pytest.mark.parametrize("case", ["dealt", "filled"])
def test_two_ranks_score_as_one_process_does(driven, case):
    """To the bit: uneven ranks, one without sound; and ranks that Lightning filled up."""
    whole, *ranks = (
        torch.load(driven / f"{name}.pt", weights_only=True)
        for name in ("whole-0", f"{case}-0", f"{case}-1")
    )
    assert whole["val/image->text+audio/R@10"] > 0 and "val/gap/image-audio" in whole
    assert ranks == [whole, whole]


def test_two_ranks_write_the_scorecard_of_one(driven):
    cards = [(driven / case / "scorecard.json").read_text() for case in ("dealt", "whole")]
    assert cards[0] == cards[1]


def test_split_weights_score_as_whole_ones(driven):
    """One rank has no sound, and fewer samples."""
    cards = [(driven / f"split-{ranks}.json").read_text() for ranks in (1, 2)]
    assert cards[0] == cards[1] and '"image->text+audio"' in cards[0]


def test_samples_that_count_twice_would_show(driven, monkeypatch):
    """The control: the samples that fill up the second rank, scored as if they were more."""
    from tests.fusion.tasks.validation_driver import held_out

    made = held_out()
    task = make_task(driven, dropout=0.0)
    once, twice = (make_scorecard(task.model, [*made, *more]) for more in ([], made[:1]))
    assert once.num_samples == 24 and twice.num_samples == 31
    assert once.recall != twice.recall


def test_fusion_test(runs, tiny_shard, tmp_path, capsys):
    """By the real command line, on a checkpoint of `fusion fit`."""
    args = ["test", "--config", str(CONFIG), f"--data.train=['{tiny_shard}']"]
    args += ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    args += [f"--ckpt_path={runs.contrastive / 'model.ckpt'}", "--trainer.callbacks=null"]
    with working_in(tmp_path):
        assert main(args) == 0
    (page,) = tmp_path.rglob("scorecard.html")
    assert page.with_suffix(".json").is_file()
    assert "image->text" in capsys.readouterr().out
