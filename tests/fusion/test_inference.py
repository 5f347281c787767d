import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from datamodules.decode import decode_audio, decode_image
from fusion import Pipeline
from fusion.checkpoint import restore


@pytest.fixture(scope="module")
def pipeline(runs) -> Pipeline:
    return Pipeline.from_run(runs.contrastive)


@pytest.fixture(scope="module")
def describer(runs) -> Pipeline:
    return Pipeline.from_run(runs.captioning)


def items_of(media: Path) -> list[dict]:
    return [
        {"image": str(media / "a.png")},
        {"text": "a cat"},
        {"image": media / "b.jpg", "audio": str(media / "sounds" / "d.wav")},
        {"audio": str(media / "sounds" / "e.ogg"), "text": "a long sentence about some red boat"},
        {"image": media / "c.webp", "audio": media / "sounds" / "f.flac", "text": "x"},
        {"text": "another cat", "image": None},
    ]


def test_rows_are_unit_and_do_not_depend_on_neighbours(pipeline, media):
    items = items_of(media)
    rows = pipeline.encode(items)
    assert rows.shape == (6, pipeline.model.dim) and not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(6), atol=1e-5, rtol=0)
    alone = torch.cat([pipeline.encode([item]) for item in items])
    torch.testing.assert_close(rows, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipeline.encode(items[::-1]).flip(0), rows, atol=1e-5, rtol=0)
    assert (rows @ rows.T - torch.eye(6)).max() < 0.999  # they are not all the same


def test_many_items_of_few_batches(pipeline):
    words = [f"thing {index}" for index in range(70)]
    rows = pipeline.encode([{"text": word} for word in words])
    alone = pipeline.encode([{"text": words[-1]}])
    torch.testing.assert_close(rows[-1:], alone, atol=1e-5, rtol=0)
    assert pipeline.encode([]).shape == (0, pipeline.model.dim)


def test_paths_bytes_and_raw_values_are_the_same(pipeline, media):
    picture, sound = media / "a.png", media / "sounds" / "d.wav"
    by_path = {"image": str(picture), "audio": sound}
    by_bytes = {"image": picture.read_bytes(), "audio": sound.read_bytes()}
    raw = {"image": decode_image(picture.read_bytes()), "audio": decode_audio(sound.read_bytes())}
    rows = pipeline.encode([by_path, by_bytes, raw])
    assert rows[0].equal(rows[1]) and rows[0].equal(rows[2])


def test_a_run_may_be_moved_and_its_sources_removed(runs, tmp_path, monkeypatch, media):
    expected = Pipeline.from_run(runs.contrastive)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(runs.contrastive / "model.ckpt", moved / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    for path in ("elsewhere", moved / "last.ckpt"):
        pipeline = Pipeline.from_run(path)
        assert pipeline.fingerprint == expected.fingerprint
        items = items_of(media)
        assert pipeline.encode(items).equal(expected.encode(items))
    assert not pipeline.model.training


def test_a_decoder_leaves_the_embedding_space_as_it_was(pipeline, describer):
    assert describer.fingerprint == pipeline.fingerprint
    query = [{"text": "a red ball"}]
    assert describer.encode(query).equal(pipeline.encode(query))


def test_another_model_has_another_fingerprint(runs, pipeline, tmp_path):
    content = torch.load(runs.contrastive / "model.ckpt", weights_only=True)
    variants = {"settings": dict(content), "weights": dict(content), "copy": dict(content)}
    settings = content["hyper_parameters"]
    variants["settings"]["hyper_parameters"] = settings | {
        "model": settings["model"] | {"dropout": 0.2}
    }
    name, value = next((n, v) for n, v in content["state_dict"].items() if n.endswith("weight"))
    variants["weights"]["state_dict"] = content["state_dict"] | {name: value + 1e-3}
    found = {}
    for variant, changed in variants.items():
        torch.save(changed, tmp_path / variant)
        found[variant] = restore(tmp_path / variant).fingerprint
    assert found["copy"] == pipeline.fingerprint
    assert len(set(found.values())) == 3


def test_pretrained_towers_are_built_bare(tmp_path):
    """Weights and tokenizer come from the file; the package they once came from is not read."""
    from encoders import MiniLM
    from encoders.base import bare
    from fusion.model import FusionModel

    with bare():
        model = FusionModel({"text": MiniLM()}, dim=16, hidden=8)
    model.encoders["text"].transform.set_extra_state(
        torch.tensor(list(TOKENIZER), dtype=torch.uint8)
    )
    settings = {
        "encoders": {"text": {"class_path": "encoders.MiniLM", "init_args": {"train": "full"}}},
        "dim": 16,
        "hidden": 8,
    }
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"hyper_parameters": {"model": settings}, "state_dict": state}, tmp_path / "m.ckpt")
    pipeline = Pipeline.from_run(tmp_path / "m.ckpt")
    expected = Pipeline(model).encode([{"text": "a cat"}])
    assert pipeline.encode([{"text": "a cat"}]).equal(expected)


TOKENIZER = (
    b'{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
    b'"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,'
    b'"model":{"type":"WordLevel","vocab":{"[UNK]":0,"a":1,"cat":2},"unk_token":"[UNK]"}}'
)


def test_captions(describer, media):
    paths = [media / "a.png", str(media / "b.jpg"), {"image": str(media / "c.webp")}]
    captions = describer.caption(paths, num_beams=2)
    assert len(captions) == 3 and all(isinstance(text, str) and text for text in captions)
    assert describer.caption(paths[1:2], num_beams=2) == captions[1:2]
    extra = {"image": media / "a.png", "text": "not looked at"}
    assert describer.caption([extra], num_beams=2) == captions[:1]


def test_what_cannot_be_described(pipeline, describer, media):
    with pytest.raises(ValueError, match=r"no caption decoder.*configs/captioning.yaml"):
        pipeline.caption([media / "a.png"])
    with pytest.raises(ValueError, match="describes image together"):
        describer.caption([{"text": "a cat"}])
    with pytest.raises(ValueError, match="num_beams=0"):
        describer.caption([media / "a.png"], num_beams=0)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({}, "Got an item of nothing; this model embeds any of image, text, audio"),
        ({"image": None}, "Got an item of nothing"),
        ({"video": "a.mp4"}, "Got an item of video; this model embeds any of image, text, audio"),
        ({"text": "a cat", "video": "a.mp4"}, "Got an item of text, video"),
        ({"text": "  "}, "Got an empty text"),
        ({"text": 3}, "Got int for text; give a path or a str"),
        ({"audio": torch.zeros(1, 100)}, "Got Tensor for audio; give a path or"),
        ({"image": torch.zeros(3, 4, 4)}, "must be uint8 RGB"),
        ("a.jpg", "Got 'a.jpg' as an item; give a dict"),
    ],
)
def test_items_that_are_refused(pipeline, item, reason):
    with pytest.raises(ValueError, match=reason):
        pipeline.encode([{"text": "fine"}, item])


def test_files_that_are_refused(pipeline, tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    (tmp_path / "a.wav").write_bytes(b"")
    soundfile.write(tmp_path / "b.wav", torch.zeros(0).numpy(), 16000)
    for name, value, reason in [
        ("image", "a.jpg", "a.jpg: this file is text, not a picture"),
        ("audio", "a.wav", "a.wav: this file is empty, not a recording"),
        ("audio", "b.wav", "b.wav: this recording holds no sample"),
    ]:
        with pytest.raises(ValueError, match=reason):
            pipeline.encode([{name: tmp_path / value}])
    for missing in ("b.jpg", "."):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            pipeline.encode([{"image": tmp_path / missing}])


def test_runs_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run"):
        Pipeline.from_run(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no model.ckpt or last.ckpt"):
        Pipeline.from_run(tmp_path)


def test_damaged_checkpoints(runs, tmp_path):
    whole = (runs.contrastive / "model.ckpt").read_bytes()
    path = tmp_path / "model.ckpt"
    for damaged in (whole[: len(whole) // 2], whole[:-100], b"text", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a checkpoint, or it is cut off"):
            Pipeline.from_run(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ValueError, match="is damaged at"):
        Pipeline.from_run(path)


class Custom:
    """Any class: its instances are pickled."""


def changed(content: dict, *keys: str, value: object) -> dict:
    """A checkpoint with one setting of its model changed."""
    if not keys:
        return value  # pyright: ignore
    return content | {keys[0]: changed(content.get(keys[0], {}), *keys[1:], value=value)}


def test_checkpoints_of_something_else(runs, tmp_path):
    content = torch.load(runs.contrastive / "model.ckpt", weights_only=True)
    model = ("hyper_parameters", "model")
    image = (*model, "encoders", "image")
    part = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "x")]}}
    for other, reason in [
        ({"a": torch.zeros(3)}, "checkpoint of something else"),
        ([torch.zeros(3)], "checkpoint of something else"),
        (changed(content, "state_dict", value={}), "checkpoint of something else"),
        (changed(content, "hyper_parameters", value={}), "checkpoint of something else"),
        ({"hyper_parameters": {"model": Custom()}}, "not a checkpoint that `fusion fit` wrote"),
        (changed(content, *model, "dim", value=128), "does not fit this version"),
        (changed(content, *model, "unheard_of", value=1), "unexpected keyword"),
        # A stranger's file must not choose what is run, however deep it hides it.
        (changed(content, *image, value=part), "subprocess.Popen is not a part of a model"),
        (changed(content, *image, "init_args", "config", "vision_cfg", value=part), "not a part"),
        (changed(content, *model, "block", value=part), "not a part of a model"),
        (changed(content, *image, "class_path", value="fusion.model.FusionModel"), "not a part"),
    ]:
        torch.save(other, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match=reason):
            Pipeline.from_run(tmp_path)
    assert not (tmp_path / "x").exists()
    torch.save(content, tmp_path / "model.ckpt")
    Pipeline.from_run(tmp_path)
