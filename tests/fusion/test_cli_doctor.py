"""`fusion doctor` on real shards: what it prints, its exit codes, and that it leaves nothing."""

import json
from pathlib import Path

import pytest

from datamodules.writer import write_shard
from fusion.cli.main import main
from fusion.model import FusionModel

SCRATCH = Path(__file__).parents[2] / "configs" / "scratch.yaml"


def doctor(capsys, *args: object) -> tuple[int, str]:
    capsys.readouterr()
    try:
        code = main(["doctor", *map(str, args)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out + err


@pytest.fixture
def quick(monkeypatch):
    """A busy machine must not change what is found."""
    monkeypatch.setattr("fusion.doctor.learning.MAX_SECONDS", 120.0)


@pytest.fixture
def streaming(tiny_shard, tmp_path) -> Path:
    """The smallest config, with shards that are streamed."""
    head, rest = SCRATCH.read_text().split("data:\n")
    data = f"""data:
  class_path: ShardDataModule
  init_args: {{train: ["{tiny_shard}"], batch_size: 16, num_workers: 0}}
"""
    path = tmp_path / "stream.yaml"
    path.write_text(head + data + rest[rest.index("trainer:") :])
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_a_run_that_is_well(tiny_shard, capsys, here, quick):
    data = f"--data.train=['{tiny_shard}']"
    code, said = doctor(capsys, SCRATCH, data, "--report", "found.json")
    assert code == 0, said
    assert "15 checks in " in said and " 0 failed" in said
    found = json.loads((here / "found.json").read_text())
    assert len(found) == 15 and [path.name for path in here.iterdir()] == ["found.json"]
    told = {entry["check"]: entry for entry in found}
    assert told["modalities present"]["what"] == "image 100%, text 100%, audio 50%"
    assert told["learns one batch by heart"]["state"] == "ok"
    assert told["a batch in parts is the whole batch"]["what"].endswith("in float64")


@pytest.mark.slow
def test_a_leak_fails_and_leaves_nothing(streaming, capsys, here, monkeypatch):
    encode = FusionModel.encode

    def leaky(self, batch, modalities):
        tokens = encode(self, batch, modalities)
        if {"image", "text"} <= set(tokens):
            seen = tokens["text"].values.sum(1, keepdim=True)
            tokens["image"] = tokens["image"]._replace(values=tokens["image"].values + seen)
        return tokens

    monkeypatch.setattr("fusion.doctor.learning.NUM_STEPS", 2)
    monkeypatch.setattr(FusionModel, "encode", leaky)
    code, said = doctor(capsys, "--config", streaming)
    assert code == 1
    assert "FAIL" in said and "The query changes with its target" in " ".join(said.split())
    assert list(here.iterdir()) == []


def test_samples_that_cannot_be_read(streaming, capsys, here, tmp_path):
    path = tmp_path / "bad-000000.tar"
    write_shard([(f"s{i}", {"png": b"no", "txt": b"a ball"}) for i in range(4)], path)
    code, said = doctor(capsys, streaming, f"--data.train=['{path}']")
    assert code == 2 and "None of 4 samples can be trained on: " in said
    assert ": s" in said and said.count("fusion: error") == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "give a configuration"),
        (["none.yaml"], "none.yaml"),
        ([SCRATCH, "--data.train=['none.tar']"], "none.tar"),
        ([SCRATCH, "--model=CaptionTask"], "examines a ContrastiveTask"),
        ([SCRATCH, "--model.no_such=1"], "no_such"),
    ],
)
def test_wrong_input(args, expected, capsys, here):
    code, said = doctor(capsys, *args)
    assert code == 2 and expected in said


def test_help(capsys):
    code, said = doctor(capsys, "--help")
    assert code == 0 and "usage: fusion doctor CONFIG" in said and "--report" in said
    assert "about a minute" in said and "Raises" not in said
