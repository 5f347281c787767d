"""Recipes on small real source trees; the packages themselves are not fetched."""

import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

import datamodules
from datamodules.manifest import ManifestError, check_pack
from datamodules.recipes import RECIPES, RecipeError, build
from datamodules.recipes.emoji import concept_of
from datamodules.recipes.raster import frame, render_svg
from datamodules.recipes.sound import SAMPLE_RATE
from datamodules.recipes.stamps import read_captions
from fusion.cli.main import main

SVG = '<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>'
DISC = '<circle cx="40" cy="40" r="30" fill="{colour}"/>'
RDF = """<metadata xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:c="http://web.resource.org/cc/"><r:RDF><c:Work>
 <d:title>{title}</d:title><d:creator><c:Agent><d:title>Ann Bee</d:title></c:Agent></d:creator>
 <d:subject><r:Bag><r:li>{word}</r:li><r:li>unsorted</r:li></r:Bag></d:subject>
 </c:Work></r:RDF></metadata>"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")


def disc(colour, size="width='80mm' height='80mm' viewBox='0 0 80 80'", extra=""):
    return SVG.format(size=size, body=extra + DISC.format(colour=colour))


def tone(path, rate=44_100, gain=0.5):
    wave = gain * np.sin(np.arange(rate // 2) * 0.06)
    soundfile.write(path, np.stack([wave, wave], axis=1), rate)


def stamps_tree(root):
    stamps = root / "usr/share/tuxpaint/stamps"
    write(stamps / "animals/cat.txt", "A cat.\nde.utf8=Eine Katze.\nfr.utf8=Un chat. \n")
    picture = Image.new("RGBA", (60, 40))
    ImageDraw.Draw(picture).ellipse((5, 5, 50, 35), fill=(200, 90, 10, 255))
    picture.save(stamps / "animals/cat.png")
    tone(stamps / "animals/cat_desc_fr.ogg")
    tone(stamps / "animals/cat_desc.wav", rate=22_050)
    tone(stamps / "animals/cat.ogg", gain=0.0)
    write(stamps / "symbols/dot.v2.txt", "A dot.")
    write(stamps / "symbols/dot.v2.svg", disc("black", size="width='80mm' height='80mm'"))
    write(stamps / "weather/flash.txt", "Lightning.")
    write(stamps / "weather/flash.svg", disc("white"))
    write(stamps / "weather/broken.txt", "Broken.")
    write(stamps / "weather/broken.svg", "<svg")
    write(stamps / "weather/mute.svg", disc("blue"))
    return root


def clipart_tree(root):
    svg = root / "usr/share/openclipart/svg"
    cherry = disc("red", extra=RDF.format(title="Big Cherry", word="Fruit"))
    write(svg / "food/cherry_ann_bee_01.svg", cherry)
    write(svg / "food/same.svg", cherry)
    theme = disc("green", extra=RDF.format(title="Gnome icon theme", word="icon"))
    write(svg / "food/lime+.svg", theme)
    bar = SVG.format(size="width='80' height='20'", body="<path d='M0 0h80v9H0z'/>")
    write(svg / "food/lime-.svg", bar)
    write(svg / "food/0001.svg", disc("navy"))
    write(svg / "food/white.svg", disc("white"))
    write(svg / "food/duplicates/plum.svg", disc("purple"))
    write(svg / "shapes/stars/star_5.svg", disc("gold"))
    (svg / "food/link.svg").symlink_to("same.svg")
    return root


def emoji_tree(root):
    names = [
        {"hexcode": "2764-FE0F", "label": "red heart", "tags": ["love", "<3"]},
        {"hexcode": "1F525", "label": "fire"},
        {"hexcode": "1F3FB", "label": "light skin", "group": 2},
    ]
    write(root / "emojibase-data/en/data.json", json.dumps(names))
    body = DISC.format(colour="red")
    icons = {"width": 80, "height": 80, "icons": {"red-heart": {"body": body}}}
    fire = {"fire": {"body": body, "width": 100}, "skin": {"body": body}}
    for vendor, drawn in (("twemoji", {**icons["icons"], **fire}), ("noto", icons["icons"])):
        write(root / f"@iconify-json/{vendor}/icons.json", json.dumps(icons | {"icons": drawn}))
        codes = {"2764": "red-heart", "1f525": "fire", "1f3fb": "skin"}
        write(root / f"@iconify-json/{vendor}/chars.json", json.dumps(codes))
    return root


def emoji_all_tree(root):
    emoji_tree(root)
    body = DISC.format(colour="blue")
    for vendor in ("openmoji", "fluent-emoji-flat", "noto-v1", "fluent-emoji", "fxemoji"):
        icons = {"width": 80, "height": 80, "icons": {"fire": {"body": body}, "what": {}}}
        write(root / f"@iconify-json/{vendor}/icons.json", json.dumps(icons))
        write(root / f"@iconify-json/{vendor}/chars.json", "{}")
    for vendor in ("emojione", "emojione-v1"):
        write(root / f"@iconify-json/{vendor}/icons.json", '{"icons": {}}')
        write(root / f"@iconify-json/{vendor}/chars.json", "{}")
    assets = root / "@lobehub/fluent-emoji-3d/assets"
    assets.mkdir(parents=True)
    picture = Image.new("RGBA", (256, 200))
    ImageDraw.Draw(picture).ellipse((20, 20, 200, 180), fill=(200, 90, 10, 255))
    picture.save(assets / "2764-fe0f.webp")
    picture.save(assets / "1f9d7-1f3fd.webp")
    (assets / "1f525.webp").write_bytes(b"no picture")
    return root


def asterisk_tree(root):
    sounds = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    (sounds / "digits").mkdir(parents=True)
    for name in ("agent-pass", "digits/0", "beep", "unheard"):
        wave = (1000 * np.sin(np.arange(4000) * 0.1 * len(name))).astype(np.int16)
        soundfile.write(sounds / f"{name}.wav", wave, 8000, subtype="PCM_16")
    (sounds / "broken.wav").write_bytes(b"RIFF")
    lines = "; Sounds\n\nagent-pass: Enter: the key.\ndigits/0: zero\nbeep: [a tone]\nbroken: x\n"
    path = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(lines.encode()))
    return root


TREES = {
    "stamps": stamps_tree,
    "clipart": clipart_tree,
    "emoji": emoji_tree,
    "emoji-all": emoji_all_tree,
    "asterisk": asterisk_tree,
}
SHIPPED = ("stamps", "clipart", "emoji")


def built(name, tmp_path, num_workers=0):
    source = TREES[name](tmp_path / "source")
    shard = build(name, tmp_path / f"out{num_workers}", source, num_workers)
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            samples.setdefault(key, {})[extension] = content.read()
    lines = (shard.parent / f"{name}.rejected.jsonl").read_text("utf-8").splitlines()
    return samples, {item["source"]: item["reason"] for item in map(json.loads, lines)}


def test_every_recipe_has_a_tree():
    assert set(TREES) == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_a_file_a_caption_and_metadata(name, tmp_path):
    samples, rejected = built(name, tmp_path)
    assert samples and rejected
    for sample in samples.values():
        if name == "asterisk":
            assert soundfile.info(io.BytesIO(sample["flac"])).samplerate == 8000
        else:
            picture = Image.open(io.BytesIO(sample["webp"]))
            assert picture.format == "WEBP" and picture.width == picture.height
        assert sample["txt"].decode().strip()
        meta = json.loads(sample["json"])
        assert meta["source"] == name and meta["licence"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_when_its_source_is_not_there(name, tmp_path):
    with pytest.raises(RecipeError, match=f"in {tmp_path}"):
        build(name, tmp_path / "out", tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_every_plan_is_the_same_twice(name, tmp_path):
    source = TREES[name](tmp_path)
    plans = [[(type(item), item[0]) for item in RECIPES[name]().plan(source)] for _ in range(2)]
    assert plans[0] == plans[1]


def test_worker_processes_give_the_same_bytes(tmp_path):
    source = stamps_tree(tmp_path / "source")
    shards = [build("stamps", tmp_path / f"out{n}", source, num_workers=n) for n in (0, 2)]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="'photos'; choose one of stamps, clipart, emoji,"):
        build("photos", tmp_path)


def test_a_missing_library_is_named_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lxml", None)
    with pytest.raises(RecipeError, match=r"'lxml' is not installed; run `pip install 'assim"):
        build("clipart", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recipes_that_share_a_folder_share_its_manifest(tmp_path, capsys):
    sources = {name: TREES[name](tmp_path / name) for name in ("asterisk", "emoji")}
    for name in ("asterisk", "emoji", "asterisk"):
        build(name, tmp_path / "out", sources[name], num_workers=0)
    shards, damaged = check_pack(tmp_path / "out")
    assert [(shard.name, shard.samples) for shard in shards] == [
        ("asterisk-000000.tar.gz", 2),
        ("emoji-000000.tar.gz", 3),
    ]
    assert not damaged and {m for shard in shards for m in shard.modalities} >= {"audio", "image"}
    assert main(["pack", "--check", str(tmp_path / "out")]) == 0
    (tmp_path / "out/emoji-000000.tar.gz").write_bytes(b"other")
    with pytest.raises(SystemExit):
        main(["pack", "--check", str(tmp_path / "out")])
    assert "emoji-000000.tar.gz: " in capsys.readouterr().out


def test_a_damaged_manifest_is_told_before_the_work(tmp_path):
    source = asterisk_tree(tmp_path / "source")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="not JSON"):
        build("asterisk", tmp_path, source, num_workers=0)
    assert not list(tmp_path.glob("*.tar.gz"))


def test_stamps_carry_captions_and_sounds(tmp_path):
    samples, rejected = built("stamps", tmp_path)
    assert set(samples) == {"animals_cat", "symbols_dot_v2", "weather_flash"}
    cat = samples["animals_cat"]
    assert cat["txt"] == b"A cat."
    meta = json.loads(cat["json"])
    assert meta["caption"] == {"en": "A cat.", "fr": "Un chat."}
    assert (meta["path"], meta["category"], meta["symbol"]) == ("animals/cat", "animals", False)
    assert json.loads(samples["symbols_dot_v2"]["json"])["symbol"] is True
    for member in ("speech_fr.opus", "speech_en.opus"):
        wave, rate = soundfile.read(io.BytesIO(cat[member]))
        assert (rate, wave.ndim, len(wave)) == (SAMPLE_RATE, 1, SAMPLE_RATE // 2)
    assert "sfx.opus" not in cat and "silent" in rejected["animals/cat.ogg"]
    assert rejected["weather/mute"] == "no English caption"
    assert set(rejected) == {"animals/cat.ogg", "weather/mute", "weather/broken"}


def test_a_white_stamp_stays_visible_on_grey(tmp_path):
    samples, _ = built("stamps", tmp_path)
    flash = Image.open(io.BytesIO(samples["weather_flash"]["webp"])).convert("L")
    assert flash.getextrema()[1] - flash.getextrema()[0] > 100
    with pytest.raises(ValueError, match="blank"):
        frame(render_svg(disc("white"), 64), 64)


def test_captions_without_english_are_no_captions(tmp_path):
    write(tmp_path / "a.txt", "\nfr.utf8=Un chat.\n")
    assert read_captions(tmp_path / "a.txt") == {"fr": "Un chat."}
    assert read_captions(tmp_path / "b.txt") == {}


def test_clipart_keeps_one_of_each_drawing(tmp_path):
    samples, rejected = built("clipart", tmp_path)
    captions = {key: sample["txt"].decode() for key, sample in samples.items()}
    # Two files meet in one key, so the second is numbered.
    assert captions == {
        "food_cherry_ann_bee_01": "big cherry : fruit",
        "food_lime_": "lime+",
        "food_lime__2": "lime",
    }
    assert rejected["food/same.svg"] == "same picture as food/cherry_ann_bee_01.svg"
    reasons = {place: rejected[f"{place}.svg"] for place in ("food/link", "food/white")}
    assert reasons == {"food/link": "link to another file", "food/white": "blank picture"}
    assert {"food/0001.svg", "food/duplicates/plum.svg", "shapes/stars/star_5.svg"} <= set(rejected)


def test_emoji_give_one_sample_for_each_concept_and_vendor(tmp_path):
    samples, rejected = built("emoji", tmp_path)
    assert set(samples) == {"2764_twemoji", "2764_noto", "1f525_twemoji"}
    assert samples["2764_noto"]["txt"] == b"red heart : love, <3"
    assert samples["1f525_twemoji"]["txt"] == b"fire"
    assert json.loads(samples["2764_noto"]["json"])["tags"] == ["love", "<3"]
    assert rejected == {"noto/1f525": "not drawn by this vendor"}
    assert concept_of("1F468-200D-2764-FE0F-200D-1F468") == "1f468-2764-1f468"


def test_emoji_of_all_vendors_are_matched_by_code_points_or_by_name(tmp_path):
    samples, rejected = built("emoji-all", tmp_path)
    by_name = ("openmoji", "fluent-emoji-flat", "noto-v1", "fluent-emoji", "fxemoji")
    assert set(samples) == {
        *("2764_twemoji", "2764_noto", "1f525_twemoji", "2764_fluent-3d"),
        *(f"1f525_{vendor}" for vendor in by_name),
    }
    metas = {key: json.loads(sample["json"]) for key, sample in samples.items()}
    assert metas["1f525_noto-v1"]["family"] == metas["2764_noto"]["family"] == "noto"
    assert metas["2764_fluent-3d"]["licence"] == metas["1f525_fluent-emoji"]["licence"] == "MIT"
    picture = Image.open(io.BytesIO(samples["2764_fluent-3d"]["webp"])).convert("L")
    assert picture.size == (72, 72)
    assert picture.getpixel((0, 0)) > 250 and picture.getpixel((34, 34)) < 200  # type: ignore
    assert "cannot identify" in rejected["fluent-3d/1f525"]
    assert rejected["emojione/2764"] == "not drawn by this vendor"


def test_asterisk_keeps_the_samples_and_leaves_out_what_is_no_speech(tmp_path):
    samples, rejected = built("asterisk", tmp_path)
    assert {key: sample["txt"].decode() for key, sample in samples.items()} == {
        "agent_pass": "Enter: the key.",
        "digits_0": "zero",
    }
    folder = tmp_path / "source/usr/share/asterisk/sounds/en_US_f_Allison"
    before, _ = soundfile.read(folder / "digits/0.wav", dtype="int16")
    after, rate = soundfile.read(io.BytesIO(samples["digits_0"]["flac"]), dtype="int16")
    np.testing.assert_array_equal(before, after)
    assert rate == 8000
    assert rejected["beep"] == "no speech: [a tone]" and rejected["unheard"] == "no transcript"
    assert set(rejected) == {"beep", "unheard", "broken"}
    (tmp_path / "source/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz").write_text(
        "x"
    )
    with pytest.raises(RecipeError, match="is damaged"):
        build("asterisk", tmp_path / "out", tmp_path / "source", num_workers=0)


def test_the_shipped_shards_are_those_of_their_readme():
    folder = Path(datamodules.__file__).parent / "sample_data"
    readme = (folder / "README.md").read_text("utf-8")
    for name in SHIPPED:
        shard = folder / f"{name}-000000.tar.gz"
        assert hashlib.sha256(shard.read_bytes()).hexdigest() in readme
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 23e6
