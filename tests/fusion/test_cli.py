import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from fusion.cli import caption as caption_module
from fusion.cli.display import printable
from fusion.cli.main import main
from fusion.cli.table import COMMANDS

ROOT = Path(__file__).parents[2]


def fusion(*args: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """The real command line, from another folder."""
    return subprocess.run(
        [sys.executable, "-m", "fusion", *map(str, args)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A run of its own, moved from where it was trained."""
    return Path(shutil.copytree(runs.captioning, tmp_path / "my run"))


def search(capsys, *args: object) -> list[dict]:
    """Hits of a search, as JSON."""
    capsys.readouterr()
    assert main(["search", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys, *args: object) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fusion: error: ") and err.count("\n") == 1
    return err.removeprefix("fusion: error: ").strip()


def test_help_and_version(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("assim ")


@pytest.mark.parametrize("name", ["index", "search", "caption", "data", "quickstart"])
def test_each_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: fusion {name}" in out and "Example" in out and f"fusion {name} " in out
    assert "Args:" not in out and "Raises:" not in out


def test_index_then_search_from_another_folder(run, media, tmp_path, capsys, monkeypatch):
    (media / "bad.jpg").write_text("not a picture")
    (media / "sounds" / "bad.wav").write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["index", "../my run", "../media", "--modalities=image+audio"]) == 0
    out, err = capsys.readouterr()
    assert "Indexed 6 entries by image+audio" in out and "2 refused" in out
    assert sorted(err.splitlines()) == [
        f"refused: {media}/bad.jpg: this file is text, not a picture "
        "(JPEG, PNG, WEBP, GIF, BMP are read)",
        f"refused: {media}/sounds/bad.wav: this file is empty, not a recording "
        "(WAV, FLAC, OGG, MP3 are read)",
    ]

    found = fusion("search", "../my run", "--image", media / "a.png", "--k=2", cwd=elsewhere)
    assert found.returncode == 0 and found.stderr == ""
    assert "1.000" in found.stdout and "A [bold]red [31m ball." in found.stdout

    moved = Path(shutil.move(run, tmp_path / "moved"))
    for file, option in [(f, "--image") for f in ("a.png", "b.jpg", "c.webp")] + [
        (f"sounds/{f}", "--audio") for f in ("d.wav", "e.ogg", "f.flac")
    ]:
        (hit,) = search(capsys, moved, option, media / file, "--k=1")
        assert hit["similarity"] == pytest.approx(1, abs=1e-4)
        assert Path(hit["source"], hit["files"][option[2:]]) == media / file


def test_a_query_of_several_modalities_is_fused(run, tiny_shard, media, capsys):
    assert main(["index", str(run), str(tiny_shard), "--modalities", "image+audio"]) == 0
    assert "Indexed 16 entries" in capsys.readouterr().out
    sound = ("--audio", media / "sounds" / "d.wav")
    queries = [("a", "red", "ball"), sound, ("a red ball", *sound)]
    queries.append(("a red ball", *sound, "--image", media / "a.png"))
    hits = [search(capsys, run, *query, "--k=16") for query in queries]
    ranked = [tuple(hit["key"] for hit in found) for found in hits]
    assert all(sorted(keys) == [f"s{n:02}" for n in range(16)] for keys in ranked)
    similarities = {tuple(hit["similarity"] for hit in found) for found in hits}
    assert len(similarities) == 4
    assert hits[0] == search(capsys, run, "a red ball", "--k=16")
    first = hits[0][0]
    assert first["rank"] == 1 and first["source"] == str(tiny_shard) and first["caption"]
    assert {hit["modalities"] for hit in hits[0]} == {"image", "image+audio"}


def test_indexing_again_follows_the_source(run, media, capsys):
    other = media.parent / "other"
    shutil.copytree(media, other)
    assert main(["index", str(run), str(media), str(other)]) == 0
    (media / "a.png").unlink()
    shutil.copy(media / "b.jpg", media / "new.jpg")
    assert main(["index", str(run), str(media)]) == 0
    out = capsys.readouterr().out
    assert "Indexed 3 entries by image" in out and "1 removed, 6 in all" in out
    hits = search(capsys, run, "x", "--k=9")
    assert {Path(hit["source"], hit["files"]["image"]).name for hit in hits} == {
        *("a.png", "b.jpg", "c.webp", "new.jpg")
    }


def test_another_place_for_the_index(run, media, tmp_path, capsys):
    place = tmp_path / "place"
    assert main(["index", str(run), str(media), "--out", str(place)]) == 0
    assert not (run / "index").exists()
    assert len(search(capsys, run, "x", "--index", place)) == 3


def test_captions(run, media, capsys):
    files = [str(media / name) for name in ("a.png", "b.jpg", "c.webp")]
    assert main(["caption", str(run), *files, "--num_beams", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == files and all(len(line) == 2 for line in lines)


def test_errors_of_runs(run, runs, media, tmp_path, capsys):
    assert "There is no run" in error_of(capsys, "search", tmp_path / "none", "x")
    assert "holds no model.ckpt" in error_of(capsys, "search", tmp_path, "x")
    advice = f"run: fusion index {run} SOURCE"
    assert advice in error_of(capsys, "search", run, "x")
    assert "configs/captioning.yaml" in error_of(capsys, "caption", runs.contrastive, "a.png")
    assert main(["index", str(run), str(media)]) == 0

    content = torch.load(run / "model.ckpt", weights_only=True)
    name = next(name for name in content["state_dict"] if "model.blocks" in name)
    content["state_dict"][name] = content["state_dict"][name] + 1
    torch.save(content, run / "model.ckpt")
    for args in (["search", run, "x"], ["index", run, media]):
        assert "was made by another model" in error_of(capsys, *args)
    (run / "model.ckpt").write_bytes((run / "model.ckpt").read_bytes()[:5000])
    for args in (["search", run, "x"], ["index", run, media], ["caption", run, media / "a.png"]):
        assert "is not a checkpoint, or it is cut off" in error_of(capsys, *args)


def test_errors_of_queries(run, media, tmp_path, capsys):
    assert main(["index", str(run), str(media)]) == 0
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", torch.zeros(0).numpy(), 16000)
    for args, reason in [
        ([], "There is no query"),
        ([" "], "empty text"),
        (["--image", tmp_path / "none.jpg"], "There is no file"),
        (["--image", tmp_path / "text.jpg"], "text.jpg: this file is text, not a picture"),
        (["--audio", tmp_path / "empty.wav"], "empty.wav: this file is empty"),
        (["--audio", tmp_path / "silent.wav"], "silent.wav: this recording holds no sample"),
        (["x", "--k", "0"], "k=0"),
    ]:
        assert reason in error_of(capsys, "search", run, *args)
    assert "no file to describe" in error_of(capsys, "caption", run)
    assert "this file is text" in error_of(capsys, "caption", run, tmp_path / "text.jpg")
    assert "There is no command 'serch'; did you mean search?" in error_of(capsys, "serch")


def test_errors_of_sources(run, media, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    for args, reason in [
        ([], "There is no source"),
        ([tmp_path / "none"], "none is missing"),
        ([tmp_path / "none.tar"], "no shard matches"),
        ([media / "a.png"], "is neither a folder nor a shard"),
        ([empty], "holds no file that fits"),
        ([media, "--modalities", "video"], "choose from image, text, audio"),
    ]:
        assert reason in error_of(capsys, "index", run, *args)
    assert main(["index", str(run), str(tmp_path / "cut.tar")]) == 2
    err = capsys.readouterr().err
    assert "refused:" in err and "damaged" in err and "could be indexed by image" in err
    assert not (run / "index").exists()


def test_what_strangers_wrote_is_shown_harmless():
    assert printable("a\x1b[31m b\nc\u2028d é 猫") == "a [31m b c d é 猫"


def test_data_never_overwrites_unless_told(tmp_path, capsys):
    (tmp_path / "stamps-000000.tar.gz").write_bytes(b"mine")
    reason = error_of(capsys, "data", "stamps", "--out", tmp_path, "--source", tmp_path)
    assert "--overwrite" in reason
    args = ["data", "stamps", "--out", tmp_path, "--source", tmp_path, "--overwrite"]
    assert "--overwrite" not in error_of(capsys, *args)  # there are no packages in that folder
    assert (tmp_path / "stamps-000000.tar.gz").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "args",
    [
        ["search"],
        ["search", "run", "x", "--k", "many"],
        ["search", "run", "x", "--unheard-of"],
        ["data", "flowers", "--out", "x"],
        ["data", "stamps"],
        ["fit", "--config", "none.yaml"],
    ],
)
def test_usage_errors(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_real_failure_has_no_traceback_unless_asked(tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    failed = fusion("caption", "none", "text.jpg", cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith("fusion: error: ") and failed.stderr.count("\n") == 1


def test_debugging_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSION_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["caption", str(tmp_path), "a.jpg"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/disk/x"), 2, "/disk/x: No space left on device"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ModuleNotFoundError("This needs\n transformers."), 2, "This needs transformers."),
        (ValueError(), 2, "ValueError"),
    ],
)
def test_errors_become_one_line(error, code, message, monkeypatch, capsys):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(caption_module.Pipeline, "from_run", fail)
    assert main(["caption", "run", "a.jpg"]) == code
    assert capsys.readouterr().err == f"fusion: error: {message}\n"


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(caption_module.Pipeline, "from_run", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["caption", "run", "a.jpg"])
