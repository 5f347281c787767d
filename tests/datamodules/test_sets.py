"""Public sets on tiny fakes in the published layout, with real pictures, sounds and videos."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_args

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from datamodules.manifest import check_pack
from datamodules.pack import BySize, PackError, pack
from datamodules.pack.source import Draft, File, Refusal
from datamodules.recipes import RECIPES
from datamodules.sets import SETS, SetSource
from datamodules.shards import read_shards
from fusion.cli import data as command
from fusion.cli.main import main

Rows = dict[str, list[str]]  # stem of a file -> what it is annotated with
ONE_SHARD = BySize(2**24)


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_csv(path: Path, header: str, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def coco(root: Path, rows: Rows) -> Path:
    images = [
        {"license": 1 + n % 2, "file_name": f"{stem}.jpg", "height": 4, "width": 6, "id": n}
        for n, stem in enumerate(rows)
    ]
    annotations = [  # the captions of a picture do not lie side by side
        {"image_id": n, "id": 10 * n + place, "caption": captions[place]}
        for place in range(5)
        for n, captions in enumerate(rows.values())
        if place < len(captions)
    ]
    licences = [{"url": "http://c", "id": 1, "name": "Attribution License"}]
    value = {"info": {}, "licenses": licences, "images": images, "annotations": annotations}
    write_json(root / "annotations/captions_train2017.json", value)
    return root / "train2017"


def karpathy(rows: Rows, **more) -> dict:
    images = [
        {
            "sentids": list(range(len(captions))),
            "imgid": n,
            "sentences": [{"tokens": [], "raw": c, "imgid": n, "sentid": 0} for c in captions],
            "split": "test",
            "filename": f"{stem}.jpg",
            **more,
        }
        for n, (stem, captions) in enumerate(rows.items())
    ]
    other = images[0] | {"split": "restval", "filename": "other.jpg"}
    return {"images": [*images, other], "dataset": "x"}


def coco_karpathy(root: Path, rows: Rows) -> Path:
    write_json(root / "dataset_coco.json", karpathy(rows, filepath="val2014", cocoid=7))
    return root / "val2014"


def flickr30k(root: Path, rows: Rows) -> Path:
    lines = [f"{stem}.jpg#{n}\t{c}\n" for stem, found in rows.items() for n, c in enumerate(found)]
    text = "".join(lines).encode("utf-8", "surrogatepass")
    (root / "results_20130124.token").write_bytes(text)
    return root / "flickr30k-images"


def flickr30k_karpathy(root: Path, rows: Rows) -> Path:
    write_json(root / "dataset_flickr30k.json", karpathy(rows))
    return root / "flickr30k-images"


def audiocaps(root: Path, rows: Rows) -> Path:
    lines = [
        [n, *stem.rsplit("_", 1), c] for stem, found in rows.items() for n, c in enumerate(found)
    ]
    write_csv(root / "dataset/train.csv", "audiocap_id,youtube_id,start_time,caption", lines)
    return root / "train"


def clotho(root: Path, rows: Rows) -> Path:
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    lines = [[f"{stem}.wav", *found, *[""] * (5 - len(found))] for stem, found in rows.items()]
    write_csv(root / "clotho_captions_development.csv", header, lines)
    return root / "development"


def librispeech(root: Path, rows: Rows) -> Path:
    chapter = root / "LibriSpeech/train-clean-100/103/1240"
    chapter.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{stem} {' '.join(found)}\n" for stem, found in rows.items())
    (chapter / "103-1240.trans.txt").write_bytes(lines.encode("utf-8", "surrogatepass"))
    return chapter


def esc50(root: Path, rows: Rows) -> Path:
    lines = [
        [f"{stem}.wav", n % 5 + 1, n, "_".join(found), n == 0, "100032", "A"]
        for n, (stem, found) in enumerate(rows.items())
    ]
    header = "filename,fold,target,category,esc10,src_file,take"
    write_csv(root / "ESC-50-master/meta/esc50.csv", header, lines)
    return root / "ESC-50-master/audio"


def msrvtt(root: Path, rows: Rows) -> Path:
    videos = [
        {"category": 9, "url": "https://y", "video_id": stem, "start time": 1.5, "end time": 9.0}
        | {"split": "train", "id": n}
        for n, stem in enumerate(rows)
    ]
    sentences = [
        {"caption": c, "video_id": s, "sen_id": 0} for s, found in rows.items() for c in found
    ]
    value = {"info": {}, "videos": videos, "sentences": sentences}
    write_json(root / "train_val_videodatainfo.json", value)
    return root / "TrainValVideo"


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (40 * number, 7, 99)).save(out, "JPEG")
    return out.getvalue()


def sound(number: int, kind: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(number).normal(size=800) * 0.1, 8000, format=kind)
    return out.getvalue()


def video(number: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            pixels = np.full((32, 32, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return out.getvalue()


MEDIA = {
    "jpg": picture,
    "wav": lambda number: sound(number, "WAV"),
    "flac": lambda number: sound(number, "FLAC"),
    "mp4": video,
}


class Fake(NamedTuple):
    """A set in small: its annotations are written by `annotate`, which gives the files' folder."""

    annotate: Callable[[Path, Rows], Path]
    name: str
    split: str | None
    extension: str
    stems: tuple[str, ...]
    many: bool = True  # several captions of a file
    caption: str = "{}"

    def rows(self) -> Rows:
        count = 5 if self.many else 1
        return {s: [f"{s} is shown, said {n}" for n in range(count)] for s in self.stems}

    def make(self, root: Path, rows: Rows | None = None) -> tuple[SetSource, Path]:
        """Writes the set with real files for `stems`; gives it and the folder of the files."""
        root.mkdir(exist_ok=True)
        folder = self.annotate(root, rows or self.rows())
        folder.mkdir(parents=True, exist_ok=True)
        for number, stem in enumerate(self.stems):
            content = MEDIA[self.extension](number)
            (folder / f"{stem}.{self.extension}").write_bytes(content)
        return SetSource(SETS[self.name](), root, self.split), folder


_IDS = ("vfY_TJq7n_U_130", "-dWhHV3X25Q_60", "tw76HGONaKg_570")
_UTTERANCES = ("103-1240-0000", "103-1240-0001", "103-1240-0002")
_CLIPS = ("1-100032-A-0", "1-100038-A-14", "5-9032-A-0")
_NUMBERS = ("000000000009", "000000000025", "000000000030")
FAKES = {
    "coco": Fake(coco, "coco", None, "jpg", _NUMBERS),
    "coco-karpathy": Fake(coco_karpathy, "coco", "test", "jpg", ("COCO_val2014_01", "a", "b")),
    "flickr30k": Fake(flickr30k, "flickr30k", "all", "jpg", ("1000092795", "36979", "7")),
    "flickr30k-karpathy": Fake(flickr30k_karpathy, "flickr30k", "test", "jpg", ("1", "2", "3")),
    "audiocaps": Fake(audiocaps, "audiocaps", None, "wav", _IDS),
    "clotho": Fake(clotho, "clotho", None, "wav", ("Rain on Roof (2)", "a.b", "été")),
    "librispeech": Fake(librispeech, "librispeech", None, "flac", _UTTERANCES, many=False),
    "esc50": Fake(esc50, "esc50", None, "wav", _CLIPS, many=False, caption="the sound of {}"),
    "msrvtt": Fake(msrvtt, "msrvtt", None, "mp4", ("video0", "video1", "video2")),
}
every_set = pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES)


def rejected_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_every_name_is_offered_tested_and_documented():
    assert {fake.name for fake in FAKES.values()} == set(SETS)
    assert set(get_args(command.Packaged)) == set(RECIPES)
    assert set(get_args(command.Published)) == set(SETS)
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for name in (*RECIPES, *SETS):
        assert re.search(rf"^ +{name}  +\w", command.data.__doc__ or "", re.MULTILINE), name
        assert f"`{name}`" in page, name
    for captions in SETS.values():
        assert "Layout: " in (captions.__doc__ or "") and "https://" in captions.origin


@every_set
def test_the_plan_is_the_same_twice_and_its_files_are_there(fake, tmp_path):
    source, folder = fake.make(tmp_path)
    plans = [source.plan() for _ in range(2)]
    first, second = ([item.stamp() for item in plan.items] for plan in plans)  # type: ignore[union-attr]
    assert first == second and plans[0].num_drafts == len(first) == 3
    for draft in source.plan().items:
        assert isinstance(draft, Draft) and set(draft.members) == {fake.extension, "txt", "json"}
        file = draft.members[fake.extension]
        assert isinstance(file, File) and file.path.is_file() and folder in file.path.parents


@every_set
def test_a_pack_gives_each_sample_once_with_all_its_captions(fake, tmp_path):
    source, folder = fake.make(tmp_path / "in")
    packed = pack(source, tmp_path / "out", ONE_SHARD)
    assert (packed.num_read, packed.num_samples, packed.num_rejected) == (3, 3, 0)
    assert check_pack(tmp_path / "out") == (list(packed.shards), [])
    samples = {
        sample.meta["captions"][0]: sample for sample in read_shards([tmp_path / "out/*.tar"])
    }
    assert len(samples) == 3
    for stem, said in fake.rows().items():
        captions = [fake.caption.format(caption) for caption in said]
        sample = samples[captions[0]]
        assert sample.meta["captions"] == captions and sample.caption == captions[0]
        assert sample.meta["source"] == fake.name and sample.meta["licence"]
        assert sample.meta["split"] == (fake.split or SETS[fake.name].splits[0])
        content = (folder / f"{stem}.{fake.extension}").read_bytes()
        assert [value for value in sample.inputs.values() if value == content]


@every_set
def test_a_missing_file_is_rejected_and_the_rest_is_packed(fake, tmp_path):
    source, folder = fake.make(tmp_path / "in")
    (folder / f"{fake.stems[1]}.{fake.extension}").unlink()
    packed = pack(source, tmp_path / "out", ONE_SHARD)
    assert (packed.num_read, packed.num_samples, packed.num_rejected) == (3, 2, 1)
    (item,) = rejected_of(tmp_path / "out")
    assert fake.stems[1] in item["source"] and "No such file" in item["reason"]


@every_set
def test_missing_annotations_and_folders_are_one_sentence_that_says_where_to_get_them(
    fake, tmp_path
):
    source, folder = fake.make(tmp_path)
    if fake.name == "librispeech":  # its annotations lie among the files
        folder = folder.parents[1]
    else:
        annotations = annotations_of(tmp_path, folder)
        annotations.rename(tmp_path / "elsewhere")
        with pytest.raises(PackError, match=f"has no .*{annotations.name}") as error:
            source.plan()
        assert "https://" in str(error.value) and "\n" not in str(error.value)
        (tmp_path / "elsewhere").rename(annotations)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(PackError, match=f"has no .*{folder.name}.*; .*https://") as error:
        source.plan()
    assert "\n" not in str(error.value)


def annotations_of(root: Path, folder: Path) -> Path:
    """The one file that is not among the files of the set."""
    (path,) = (path for path in root.rglob("*.*") if path.is_file() and path.parent != folder)
    return path


@every_set
def test_an_annotation_cannot_name_a_file_outside(fake, tmp_path):
    source, folder = fake.make(tmp_path / "in", _escaping(fake))
    (folder.parent / f"outside_1.{fake.extension}").write_bytes(MEDIA[fake.extension](5))
    packed = pack(source, tmp_path / "out", ONE_SHARD)
    assert (packed.num_samples, packed.num_rejected) == (3, 2)
    reasons = {item["reason"] for item in rejected_of(tmp_path / "out")}
    assert reasons <= {"its name holds '..'", "its name is an absolute path"}
    assert b"outside" not in b"".join(p.read_bytes() for p in (tmp_path / "out").glob("*.tar"))


def test_without_the_guard_a_file_outside_would_be_packed(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.pack.folder.against_name", lambda name: "")
    monkeypatch.setattr("datamodules.pack.folder.within", lambda path, root: True)
    fake = FAKES["coco"]
    source, folder = fake.make(tmp_path / "in", _escaping(fake))
    (folder.parent / "outside_1.jpg").write_bytes(picture(5))
    assert pack(source, tmp_path / "out", ONE_SHARD).num_samples == 4


def _escaping(fake: Fake) -> Rows:
    """The rows and two of files outside; the name ends as a clip of AudioCaps does."""
    outside = {"../outside_1": ["outside"], "../../../../../../etc/passwd_1": ["outside"]}
    return fake.rows() | outside


def test_a_link_that_leaves_is_refused_but_the_folder_may_be_a_link(tmp_path):
    source, folder = FAKES["coco"].make(tmp_path / "in")
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    (tmp_path / "secret.jpg").write_bytes(picture(9))
    linked = folder / "000000000025.jpg"
    linked.unlink()
    linked.symlink_to(tmp_path / "secret.jpg")
    items = list(source.plan().items)
    assert [type(item) for item in items] == [Draft, Refusal, Draft]
    assert "leaves the source" in items[1].reason  # type: ignore[union-attr]


@every_set
def test_an_annotation_file_of_another_form_is_one_sentence(fake, tmp_path):
    source, folder = fake.make(tmp_path)
    if fake.annotate in (librispeech, flickr30k):
        pytest.skip("lines, which are refused one by one")
    path = annotations_of(tmp_path, folder)
    for text in ("", "[]", '{"images": 3, "videos": 3}', "[" * 100_000, "a,b\n1,2\n", "{"):
        path.write_text(text)
        with pytest.raises(PackError, match=re.escape(path.name)) as error:
            source.plan()
        assert "\n" not in str(error.value)


@every_set
def test_odd_captions_are_refused_one_by_one(fake, tmp_path):
    first, second, third = fake.stems
    rows = {first: [" "], second: ["half \udc80 a letter"], third: ["words " * 10]}
    source, _ = fake.make(tmp_path / "in", rows)
    packed = pack(source, tmp_path / "out", ONE_SHARD)
    # The caption of ESC-50 is never blank: it is made of the class.
    assert (packed.num_read, packed.num_samples) == (3, 2 if fake.name == "esc50" else 1)
    assert all(item["member"] == "json" for item in rejected_of(tmp_path / "out"))


def test_odd_rows_of_json_are_refused_one_by_one(tmp_path):
    source, _ = FAKES["coco"].make(tmp_path)
    path = tmp_path / "annotations/captions_train2017.json"
    value = json.loads(path.read_text())
    value["images"] += [
        {},
        {"id": [1], "file_name": 3},
        {"id": 90, "file_name": "x.png"},
        {"id": 91, "file_name": "a\ud800b.jpg"},
        {"id": 92, "file_name": "l" * 10_000 + ".jpg"},
    ]
    value["annotations"] += [{"image_id": 77, "caption": "of no picture"}, {"caption": 4}]
    write_json(path, value)
    packed = pack(source, tmp_path / "out", ONE_SHARD)
    assert (packed.num_samples, packed.num_rejected) == (3, 6)
    reasons = " ".join(item["reason"] for item in rejected_of(tmp_path / "out"))
    for word in ("names no file", "extension", "UTF-8", "limit of 512", "no such image"):
        assert word in reasons, reasons


def test_ids_that_are_not_utf8_are_refused(tmp_path):
    source, _ = FAKES["msrvtt"].make(tmp_path)
    path = tmp_path / "train_val_videodatainfo.json"
    path.write_text(path.read_text().replace("https://y", "\\ud800", 1))
    assert [type(item) for item in source.plan().items] == [Refusal, Draft, Draft]


def test_a_huge_annotation_file_is_not_read(tmp_path):
    source, folder = FAKES["coco"].make(tmp_path)
    with annotations_of(tmp_path, folder).open("r+b") as file:
        file.truncate(2**30 + 1)  # sparse: it takes no room
    with pytest.raises(PackError, match="more than 1073741824 bytes"):
        source.plan()


def test_bad_rows_of_tables_are_refused_one_by_one(tmp_path):
    source, _ = FAKES["clotho"].make(tmp_path)
    path = tmp_path / "clotho_captions_development.csv"
    path.write_bytes(
        path.read_bytes() + b"too,few\n\n" + b"x" * 200_000 + b"\n\xe9.wav,a,b,c,d,e\n"
    )
    reasons = [item.reason for item in source.plan().items if isinstance(item, Refusal)]
    assert [reason.split(" (")[0] for reason in reasons] == [
        "the row has 2 cells, the header 6",
        "the row is not CSV",
        "its name holds control characters, a backslash or bytes that are not UTF-8",
    ]


def test_lines_that_are_no_caption_are_refused(tmp_path):
    source, folder = FAKES["flickr30k"].make(tmp_path / "flickr")
    with (tmp_path / "flickr/results_20130124.token").open("a") as file:
        file.write("\nno tab\nno mark\tx\n")
    refused = [item for item in source.plan().items if isinstance(item, Refusal)]
    assert [item.source for item in refused] == [f"results_20130124.token:{n}" for n in (17, 18)]
    source, folder = FAKES["librispeech"].make(tmp_path / "libri")
    with (folder / "103-1240.trans.txt").open("a") as file:
        file.write("\n \n")  # torchaudio's reader ends here with an error
    (folder / "103-1240-0009.flac").write_bytes(sound(9, "FLAC"))
    (folder.parent / "55").mkdir()
    (folder.parent / "55/103-55-0000.flac").write_bytes(sound(8, "FLAC"))
    refused = [item for item in source.plan().items if isinstance(item, Refusal)]
    assert [item.source.rpartition("/")[2] for item in refused] == [
        "103-1240-0009.flac",
        "103-55-0000.flac",
    ]


def test_splits(tmp_path):
    with pytest.raises(PackError, match="no split 'dev'; choose one of train, val, test"):
        SetSource(SETS["coco"](), tmp_path, "dev")
    coco_karpathy(tmp_path, FAKES["coco-karpathy"].rows())
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/other.jpg").write_bytes(picture(1))
    (item,) = SetSource(SETS["coco"](), tmp_path, "train").plan().items  # restval
    assert isinstance(item, Draft) and item.name == "other"
    with pytest.raises(PackError, match="list nothing for the split val"):
        SetSource(SETS["coco"](), tmp_path, "val").plan()
    esc50(tmp_path, FAKES["esc50"].rows())
    (tmp_path / "ESC-50-master/audio").mkdir()
    assert len(list(SetSource(SETS["esc50"](), tmp_path, "fold2").plan().items)) == 1


def test_licences_of_single_files_are_kept(tmp_path):
    def licences(name: str) -> list[str]:
        source, _ = FAKES[name].make(tmp_path)
        metas = [json.loads(item.members["json"]) for item in source.plan().items]  # type: ignore
        return [meta["licence"] for meta in metas]

    pictures = licences("coco")
    assert "picture: Attribution License" in pictures[0] and "Flickr" in pictures[1]
    assert licences("esc50") == ["CC-BY-3.0", "CC-BY-NC-3.0", "CC-BY-NC-3.0"]
    header = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    row = ["a.b.wav", "rain;roof", "12", "https://f", "[0, 9]", "ann", "http://cc/by/3.0/"]
    write_csv(tmp_path / "clotho_metadata_development.csv", header, [row])
    assert [found.count("http://cc/by/3.0/") for found in licences("clotho")] == [0, 1, 0]


def test_sounds_of_audiocaps_are_found_under_the_names_that_downloaders_give(tmp_path):
    fake = FAKES["audiocaps"]
    source, folder = fake.make(tmp_path)
    (folder / f"{_IDS[0]}.wav").rename(folder / "vfY_TJq7n_U.WAV")
    write_csv(
        tmp_path / "dataset/train.csv",
        "audiocap_id,youtube_id,start_time,caption",
        [
            [97151, "vfY_TJq7n_U", 130, "a"],
            [8, "-dWhHV3X25Q", 60, "b"],
            [9, "tw76HGONaKg", 570, "c"],
        ],
    )
    (folder / f"{_IDS[1]}.wav").rename(folder / "8.wav")
    names = [item.name for item in source.plan().items if isinstance(item, Draft)]
    assert names == ["vfY_TJq7n_U", "8", "tw76HGONaKg_570"]


def test_a_killed_pack_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from datamodules.pack import run

    source, _ = FAKES["coco"].make(tmp_path / "in")
    pack(source, tmp_path / "whole", BySize(1))
    write, calls = run.write_shard, []

    def killed(samples, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(samples, path)

    monkeypatch.setattr(run, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", BySize(1))
    assert pack(source, tmp_path / "out", BySize(1)).num_resumed == 1
    whole, out = (
        {p.name: p.read_bytes() for p in (tmp_path / d).iterdir()} for d in ("whole", "out")
    )
    assert whole == out


def captions_by_file(source: SetSource) -> dict[str, list[str]]:
    drafts = [item for item in source.plan().items if isinstance(item, Draft)]
    return {d.source: json.loads(d.members["json"])["captions"] for d in drafts}  # type: ignore


def test_torchvision_and_torchaudio_read_the_same(tmp_path):
    """The fakes have the layout that the readers others use expect, and say the same to them."""
    pytest.importorskip("pycocotools")
    from torchaudio.datasets import LIBRISPEECH
    from torchvision.datasets import CocoCaptions, Flickr30k

    source, folder = FAKES["coco"].make(tmp_path)
    theirs = CocoCaptions(folder, str(tmp_path / "annotations/captions_train2017.json"))
    read = [(theirs.coco.imgs[i]["file_name"], theirs._load_target(i)) for i in theirs.ids]
    assert captions_by_file(source) == {f"train2017/{name}": found for name, found in read}

    source, folder = FAKES["flickr30k"].make(tmp_path)
    theirs = Flickr30k(str(folder), str(tmp_path / "results_20130124.token"))
    read = theirs.annotations.items()
    assert captions_by_file(source) == {f"flickr30k-images/{name}": found for name, found in read}

    source, folder = FAKES["librispeech"].make(tmp_path)
    theirs = LIBRISPEECH(tmp_path)
    read = [theirs.get_metadata(n) for n in range(len(theirs))]
    assert captions_by_file(source) == {row[0]: [row[2]] for row in read}


def test_the_command_packs_a_set(tmp_path, capsys):
    FAKES["esc50"].make(tmp_path / "in")
    args = ["data", "esc50", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main([*args, "--workers", "1"]) == 0
    assert "Read 3 = packed 3 + rejected 0; 1 shards of esc50, split all" in capsys.readouterr().out
    assert main(["pack", "--check", str(tmp_path / "out")]) == 0
    assert main(args) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["coco"], "give --source FOLDER and extract annotations_trainval2017.zip"),
        (["coco", "--source", "none"], "none has no annotations/captions_train2017.json"),
        (["esc50", "--source", ".", "--split", "x"], "no split 'x'"),
        (["stamps", "--split", "x"], "stamps has no splits"),
        (["stamps", "--workers", "0"], "give at least 1"),
    ],
)
def test_the_command_tells_what_is_wrong(args, reason, tmp_path, capsys):
    assert main(["data", *args, "--out", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
