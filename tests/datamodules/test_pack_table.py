import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.decoding import decode_samples
from datamodules.manifest import check_pack
from datamodules.pack import BySize, PackError, TableSource, pack
from datamodules.pack.table import MEDIA
from datamodules.samples import MEMBERS
from datamodules.shards import read_shards


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures and a series of values."""
    root = tmp_path / "in"
    root.mkdir()
    for number in range(2):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(root / f"{number}.png")
    buffer = io.BytesIO()
    np.save(buffer, np.ones((5, 2), np.float32))
    (root / "walk.npy").write_bytes(buffer.getvalue())
    return root


def packed(folder: Path, rows: list[dict] | str, name: str = "t.jsonl"):
    """(Samples, rejected) of a table, packed and read back."""
    text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
    (folder / name).write_text(text)
    out = folder.parent / "out"
    result = pack(TableSource(folder / name), out, BySize(2**20), overwrite=True)
    assert check_pack(out)[1] == []
    samples = list(decode_samples(read_shards([out / "*.tar"])))
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert result.num_read == len(samples) + len(rejected)
    return samples, rejected


def test_rows_with_the_same_files_are_one_sample(folder):
    text = (
        "image,caption,by,year\n0.png,one,ann,1999\n1.png,other,bob,\n./0.png,two,cem,1999\n"
        "0.png,one,dan,1999\n0.png,,,\n"
    )
    samples, rejected = packed(folder, text, "t.csv")
    assert [s.captions for s in samples] == [("one", "two"), ("other",)]
    assert samples[0].meta == {"captions": ["one", "two"], "by": ["ann", "cem"], "year": "1999"}
    assert samples[1].meta == {"by": "bob"}
    assert [(r["source"], r["reason"]) for r in rejected] == [
        ("t.csv:5", "its files are in t.csv:2, and it adds no caption"),
        ("t.csv:6", "its files are in t.csv:2, and it adds no caption"),
    ]


def test_a_list_of_captions(folder):
    rows = [
        {"image": "0.png", "captions": ["one", "two", "one"], "weight": 0.5, "tags": ["a"]},
        {"image": "0.png", "captions": ["two", "three"], "weight": 0.5, "id": 7},
        {"captions": ["words", "alone"]},
        {"image": "1.png", "captions": []},
        {"image": "1.png", "captions": "one"},
        {"image": "1.png", "captions": ["fine", " "]},
        {"image": "1.png", "captions": ["fine", 3]},
        {"image": "1.png", "captions": ["half \ud800"]},
        {"image": "1.png", "captions": ["a"], "text": "b"},
    ]
    samples, rejected = packed(folder, rows)
    assert [s.captions for s in samples] == [("one", "two", "three"), ("words", "alone")]
    assert samples[0].inputs["text"] == "one"
    assert samples[0].meta == {
        "captions": ["one", "two", "three"], "weight": 0.5, "tags": [["a"], None], "id": [None, 7]
    }  # fmt: skip
    assert [r["source"] for r in rejected] == [f"t.jsonl:{line}" for line in range(4, 10)]
    assert {r["member"] for r in rejected} == {"captions"}


def test_every_modality_has_a_column(folder):
    assert set(MEDIA) == set(MEMBERS) - {"text"} and {"image", "audio", "video"} < set(MEDIA)
    [sample], rejected = packed(folder, [{"image": "0.png", "sensor": "walk.npy", "text": "w"}])
    assert set(sample.inputs) == {"image", "sensor", "text"} and rejected == []
    assert np.shape(sample.inputs["sensor"]) == (5, 2)
    (folder / "clip.mp4").write_bytes(b"no video")
    rows = [{"video": "clip.mp4", "text": "a"}, {"video": "0.png"}, {"text": "b"}]
    samples, rejected = packed(folder, rows)
    assert len(samples) == 1 and [r["member"] for r in rejected] == ["mp4", "video"]


def test_cells_that_are_not_utf_8_are_refused_wherever_they_are(folder):
    (folder / "t.csv").write_bytes(b"text,by\nfine,ann\nbad,caf\xe9\n")
    source = TableSource(folder / "t.csv")
    assert [type(item).__name__ for item in source.plan().items] == ["Draft", "Refusal"]


def test_a_column_without_a_name_is_left_out(folder):
    samples, _ = packed(folder, ",text,\n0,one,x\n1,two,y\n", "t.csv")
    assert [(s.caption, s.meta) for s in samples] == [("one", {}), ("two", {})]


def test_metadata_with_a_caption_that_is_none_is_refused_when_packed(folder, monkeypatch):
    """What a reader would refuse is not packed; the negative control packs it."""
    (folder / "0.txt").write_text("fine")
    (folder / "0.json").write_text('{"captions": ["fine", ""]}')
    (folder / "1.txt").write_text("fine, too")
    from datamodules.pack import FolderSource

    out = folder.parent / "out"
    pack(FolderSource(folder), out, BySize(2**20))
    assert [r["source"] for r in map(json.loads, (out / "rejected.jsonl").open())] == ["0"]
    monkeypatch.setattr("datamodules.pack.judge.build_sample", lambda *_: None)
    pack(FolderSource(folder), out, BySize(2**20), overwrite=True)
    with pytest.raises(ValueError, match="empty"):
        list(read_shards([out / "*.tar"]))


def test_without_the_look_at_the_header_columns_would_be_lost(folder, monkeypatch):
    """The negative control of the check that each column is there once."""
    (folder / "t.csv").write_text("text,by,By\na,ann,bob\n")
    with pytest.raises(PackError, match="give each once"):
        TableSource(folder / "t.csv").plan()
    monkeypatch.setattr("datamodules.pack.table.csv_header", lambda path: ["text"])
    [draft] = TableSource(folder / "t.csv").plan().items
    assert b"ann" not in draft.members["json"]  # type: ignore[union-attr]
