import shutil

import pytest
import torch
from torch.nn import functional as F

from fusion.inference import Pipeline
from fusion.retrieval import Entry, Hit, LanceIndex, add_entries, find


@pytest.fixture
def index(tmp_path) -> LanceIndex:
    return LanceIndex(tmp_path / "index", dim=8, fingerprint="model a")


def unit_rows(num: int, dim: int = 8) -> torch.Tensor:
    return F.normalize(torch.randn(num, dim), dim=1)


def fill(index: LanceIndex, keys: str, rows: torch.Tensor) -> None:
    index.add(list(keys), rows, [{"caption": f"entry {key}"} for key in keys])


def test_search_is_exact(index):
    rows, queries = unit_rows(300), unit_rows(5)
    keys = [f"k{number:03}" for number in range(300)]
    index.add(keys, rows, [{"number": number} for number in range(300)])
    values, places = (queries @ rows.T).topk(7)
    for hits, similarities, expected in zip(index.search(queries, 7), values, places, strict=True):
        assert [hit.key for hit in hits] == [keys[place] for place in expected]
        assert [hit.similarity for hit in hits] == pytest.approx(similarities.tolist(), abs=1e-5)
        assert hits[0].metadata == {"number": int(expected[0])}


def test_an_empty_index_finds_nothing_and_writes_nothing(index):
    assert len(index) == 0 and index.keys() == []
    assert index.search(unit_rows(2), 3) == [[], []]
    index.add([], unit_rows(0), [])
    index.delete(["a"])
    assert not index.folder.exists()


def test_adding_again_replaces(index):
    rows = unit_rows(4)
    fill(index, "abc", rows[:3])
    index.add(["b", "d"], rows[[3, 1]], [{"caption": "new é"}, {}])
    assert sorted(index.keys()) == ["a", "b", "c", "d"] and len(index) == 4
    (hit,) = index.search(rows[3:], 1)[0]
    assert hit == Hit("b", pytest.approx(1), {"caption": "new é"})


def test_deleting(index):
    keys = ["it's", "x' OR '1'='1", "/a b/ü", *(f"n{number}" for number in range(3000))]
    index.add(keys, unit_rows(len(keys)), [{}] * len(keys))
    index.delete([*keys[1:], "not there"])
    assert index.keys() == ["it's"]


def test_it_outlives_the_process_and_moves(index, tmp_path):
    rows = unit_rows(3)
    fill(index, "abc", rows)
    moved = tmp_path / "other" / "place"
    shutil.move(index.folder, moved)
    again = LanceIndex(moved, dim=8, fingerprint="model a")
    assert [hit.key for hit in again.search(rows[1:2], 5)[0]][0] == "b" and len(again) == 3


def test_it_is_bound_to_its_model(index):
    fill(index, "ab", unit_rows(2))
    for dim, fingerprint in [(8, "model b"), (16, "model a")]:
        with pytest.raises(ValueError, match="was made by another model"):
            LanceIndex(index.folder, dim, fingerprint)
    assert len(LanceIndex(index.folder, 8, "model a")) == 2


def test_what_is_refused(index):
    rows = unit_rows(2)
    for keys, given, metadata, reason in [
        (["a", "a"], rows, [{}, {}], "no key twice"),
        (["a"], rows, [{}, {}], "as many of each"),
        (["a", "b"], unit_rows(2, 9), [{}, {}], "holds rows of width 8"),
        (["a", "b"], 2 * rows, [{}, {}], "not of unit length"),
        (["a", "b"], rows * torch.nan, [{}, {}], "not of unit length"),
    ]:
        with pytest.raises(ValueError, match=reason):
            index.add(keys, given, metadata)
    assert not index.folder.exists()
    with pytest.raises(ValueError, match="k=0"):
        index.search(rows, 0)
    with pytest.raises(ValueError, match="width 8"):
        index.search(rows[0], 1)


def test_a_damaged_index_is_one_sentence(index):
    fill(index, "abc", unit_rows(3))
    for path in (index.folder / "samples.lance" / "data").iterdir():
        path.write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot be read .* delete this folder and index again"):
        LanceIndex(index.folder, 8, "model a").search(unit_rows(1), 1)
    for path in (index.folder / "samples.lance" / "_versions").iterdir():
        path.unlink()
    with pytest.raises(OSError, match="cannot be read"):
        LanceIndex(index.folder, 8, "model a")


def test_entries_are_embedded_by_what_they_have(runs, index, media):
    pipeline = Pipeline.from_run(runs.contrastive)
    index = LanceIndex(index.folder, pipeline.model.dim, pipeline.fingerprint)
    items = {f"word {number}": {"text": f"word {number}"} for number in range(70)}
    items |= {"png": {"image": (media / "a.png").read_bytes()}, "bad": {"image": b"text"}}
    items |= {"both": {"image": media / "b.jpg", "audio": media / "sounds" / "d.wav"}}
    refused, steps = [], []
    keys = add_entries(
        pipeline,
        index,
        [Entry(key, item, {"name": key}) for key, item in items.items()],
        lambda entry, reason: refused.append((entry.key, reason)),
        lambda: steps.append(1),
    )
    assert set(keys) == set(index.keys()) == set(items) - {"bad"} and len(steps) == len(items)
    assert refused == [
        ("bad", "this file is text, not a picture (JPEG, PNG, WEBP, GIF, BMP are read)")
    ]
    for key in ("word 69", "png", "both"):
        hit = find(pipeline, index, items[key], 1)[0]
        assert hit == Hit(key, pytest.approx(1, abs=1e-5), {"name": key})


def test_a_missing_file_stops_before_anything_is_stored(runs, index):
    pipeline = Pipeline.from_run(runs.contrastive)
    index = LanceIndex(index.folder, pipeline.model.dim, pipeline.fingerprint)
    entries = [Entry("a", {"text": "a"}, {}), Entry("b", {"image": "missing.png"}, {})]
    with pytest.raises(FileNotFoundError):
        add_entries(pipeline, index, entries, lambda entry, reason: None)
    assert not index.folder.exists()
