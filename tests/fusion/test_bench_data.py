import json
from pathlib import Path

import pytest

from datamodules.ledger import Ledger
from datamodules.timing import Timing
from fusion.cli.bench_report import Report
from fusion.cli.main import main

SCRATCH = Path(__file__).parents[2] / "configs" / "scratch.yaml"


def bench(capsys, *args: object) -> str:
    capsys.readouterr()
    assert main(["bench-data", *map(str, args)]) == 0
    return capsys.readouterr().out


def error_of(capsys, *args: object) -> str:
    capsys.readouterr()
    assert main(["bench-data", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("fusion: error: ")
    return err.splitlines()[-1]


@pytest.fixture
def config(tiny_shard, tmp_path) -> Path:
    """The smallest config, with shards that are streamed."""
    head, rest = SCRATCH.read_text().split("data:\n")
    data = f"""data:
  class_path: ShardDataModule
  init_args: {{train: ["{tiny_shard}"], batch_size: 4, num_workers: 0}}
"""
    path = tmp_path / "stream.yaml"
    path.write_text(head + data + rest[rest.index("trainer:") :])
    return path


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench-data", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: fusion bench-data" in out
    assert "fusion bench-data --config configs/streaming.yaml" in out and "Args:" not in out


def test_a_table_and_one_line_of_advice(tiny_shard, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = bench(capsys, tiny_shard, "--workers=1", "--batch_size=4", "--num_batches=3")
    for name in ("read", "decode of image", "transform of audio", "collate", "all of them"):
        assert name in out
    assert "Loader with num_workers=1" in out and "Ledger: read " in out and "rejected 0" in out
    advice = out.strip().splitlines()[-1]
    assert advice.startswith("Advice: ") and " bounds: " in advice and "samples/s a core" in advice
    assert "waits" not in out
    assert list(tmp_path.iterdir()) == []


def test_with_a_config_its_model_is_trained_and_nothing_is_kept(
    config, capsys, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = json.loads(bench(capsys, "--config", config, "--num_batches=3", "--json"))
    assert 0 <= found["data_wait"] <= 1 and found["workers"] == 0
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert set(stages) == {
        *("read", "collate", "decode of image", "decode of audio"),
        *(f"transform of {name}" for name in ("image", "text", "audio")),
    }
    assert all(stage["rate"] > 0 for stage in found["stages"])
    assert found["read"] == found["delivered"] == 16 and found["rejected"] == 0
    assert found["loader"]["num_samples"] == 12
    assert list((tmp_path / "here").iterdir()) == []


def test_what_is_given_goes_before_the_config(config, tiny_shard, capsys):
    settings = ("--config", config, "--workers=1", "--batch_size=2", "--num_batches=2", "--json")
    found = json.loads(bench(capsys, tiny_shard, *settings))
    assert found["workers"] == 1 and found["loader"]["num_samples"] == 4


def test_errors_are_one_sentence(config, tmp_path, capsys):
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "bad.yaml").write_text("a: [")
    for args, reason in [
        ([], "There is no shard"),
        (["none.tar"], "no shard matches"),
        ([tmp_path / "cut.tar"], "hold no sample"),
        (["a.tar", "--num_batches=0"], "num_batches=0"),
        (["a.tar", "--batch_size=0"], "batch_size=0"),
        (["--config", SCRATCH], "from MemoryDataModule; wanted a ShardDataModule"),
        (["--config", tmp_path / "none.yaml"], "none.yaml: No such file"),
        (["--config", tmp_path / "list.yaml"], "wanted a ShardDataModule"),
        (["--config", tmp_path / "bad.yaml"], "bad.yaml is not YAML"),
        (["none.tar", "--config", config], "no shard matches"),
    ]:
        assert reason in error_of(capsys, *args)


@pytest.mark.parametrize(
    ("slowest", "workers", "wait", "advice"),
    [
        ("decode of image", 1, None, "bounds: 400 samples/s a core; 4 workers would feed 1,200"),
        ("decode of image", 4, 0.5, "keep all 4 cores busy, so pack smaller or shorter files"),
        ("transform of audio", 1, 0.02, "hardly waits for data, so more workers would not help"),
        ("read", 4, None, "workers beyond the 4 cores may help, or keep the shards on a disk"),
    ],
)
def test_advice(slowest, workers, wait, advice):
    stages = [Timing(slowest, 1.0, 400), Timing("collate", 1 / 3, 400)]
    report = Report(stages, 300.0, Timing("loader", 1, 200), workers, 4, Ledger(), wait)
    assert advice in report.advice
