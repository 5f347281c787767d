import time

import pytest
import torch

from datamodules.decoding import decode_samples
from datamodules.samples import (
    MEMBERS,
    Rejected,
    Sample,
    build_sample,
    collate,
    group_of,
)


def prepared(key: str, inputs: dict, **more) -> dict:
    return {"key": key, "caption": key, "group_id": 1, "weight": 1.0, "inputs": inputs, **more}


@pytest.mark.parametrize(
    "other", ["a  red\tCAR", " A red car.", "“a red car!”", "A RED CAR", "\na red car…"]
)
def test_spellings_share_a_group(other):
    assert group_of(other) == group_of("a red car")


@pytest.mark.parametrize("other", ["a red cart", "red car", "ared car", "a red, car", ""])
def test_other_captions_are_other_groups(other):
    assert group_of(other) != group_of("a red car")


def test_group_of_unusual_texts():
    assert group_of("cafe\u0301") == group_of("café")
    assert group_of("!!!") != group_of("???")
    assert -(2**63) <= group_of("x") < 2**63
    torch.tensor([group_of(str(i)) for i in range(100)], dtype=torch.int64)


def test_group_of_is_the_same_in_every_process():
    assert group_of("A frog.") == -8382663661626619816


def test_a_sample_without_caption_is_a_group_of_its_own():
    groups = {Sample(key, shard, {}).group_id for key in "ab" for shard in ("s", "t")}
    assert len(groups) == 4
    assert Sample("a", "s", {}, ("A cat.",)).group_id == Sample("b", "t", {}, ("a cat",)).group_id


def test_build_sample_prefers_the_first_extension(png):
    fields = {
        "png": png,
        "txt": b" A frog.\n",
        "json": b'{"source": "stamps"}',
        "speech_en.opus": b"english",
        "speech_fr.opus": b"french",
        "speech_es.opus": b"spanish",
    }
    sample = build_sample("frog", "s.tar", fields)
    expected = {"image": png, "text": "A frog.", "audio": b"french"}
    assert sample == Sample("frog", "s.tar", expected, ("A frog.",), {"source": "stamps"})
    english = MEMBERS | {"audio": ("speech_en.opus", "speech_fr.opus")}
    assert build_sample("frog", "s.tar", fields, english).inputs["audio"] == b"english"


def test_build_sample_with_absent_modalities(png):
    assert build_sample("k", "s", {"png": png}) == Sample("k", "s", {"image": png}, (), {})


@pytest.mark.parametrize(
    ("member", "data", "code"),
    [
        ("txt", b"\xff\xfe", "not-utf8"),
        ("txt", b" ", "empty"),
        ("json", b"[]", "not-json"),
        ("json", b'{"captions": "a cat"}', "wrong-format"),
        ("json", b'{"captions": ["a cat", 3]}', "wrong-format"),
        ("json", b'{"captions": ["a cat", ""]}', "empty"),
        ("json", b'{"captions": ["a\\u0000cat"]}', "not-utf8"),
        ("json", b'{"captions": ["\\ud800"]}', "not-utf8"),
        ("json", b'{"captions": ["' + b"x" * 10_001 + b'"]}', "too-large"),
    ],
)
def test_build_sample_rejects(png, member, data, code):
    rejected = build_sample("k", "s", {"png": png, member: data})
    assert isinstance(rejected, Rejected) and rejected[:4] == ("s", "k", member, code)
    assert str(rejected).startswith(f"s: k.{member}: this ")


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({}, ()),
        ({"txt": b"A cat."}, ("A cat.",)),
        ({"json": b'{"captions": [" A cat. ", "Cat", "Cat"]}'}, ("A cat.", "Cat")),
        ({"json": b'{"captions": ["Cat", "A cat."]}', "txt": b"A cat."}, ("A cat.", "Cat")),
        ({"json": b'{"captions": ["Cat"]}', "txt": b"A pet."}, ("A pet.", "Cat")),
        ({"json": b'{"captions": []}', "txt": b"A pet."}, ("A pet.",)),
    ],
)
def test_captions(png, fields, captions):
    sample = build_sample("k", "s", {"png": png, **fields})
    assert isinstance(sample, Sample)
    assert sample.captions == captions and sample.caption == (captions[0] if captions else "")
    assert sample.inputs.get("text", "") == sample.caption
    without = build_sample("k", "s", {"png": png, **fields}, {"image": ("png",)})
    assert isinstance(without, Sample) and set(without.inputs) == {"image"}


def test_metadata_may_name_the_group():
    def group(meta, caption="a cat"):
        return Sample("k", "s", {}, (caption,), meta).group_id

    assert group({"group_id": 7}) == group({"group_id": "7"}, "another")
    assert group({"group_id": 7}) != group({}, "7")  # a caption is no group's name
    assert group({"group_id": 7}) != group({"group_id": -7})
    assert group({"group_id": "\ud800"}) != group({"group_id": "\ud801"})
    for none in (True, None, 1.5, [7]):
        assert group({"group_id": none}) == group_of("a cat")


HOSTILE = {
    "one letter": "a",
    "entities": "&amp;",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "accents out of order": "\u0315\u0301\u0327\u0334",
    "zalgo": "e\u0489\u0300\u0323",
    "right to left": "\u202e\u05d0",
    "punctuation": "!?",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("length", [1_000, 10_000, 100_000, 1_000_000])
def test_no_caption_is_expensive(name, length):
    data = (HOSTILE[name] * length)[:length].encode()
    costs = []
    for _ in range(3):
        start = time.perf_counter()
        sample = build_sample("k", "s", {"txt": data})
        if isinstance(sample, Sample):
            assert isinstance(sample.group_id, int)
        costs.append(time.perf_counter() - start)
    assert isinstance(sample, Sample) == (length <= 10_000)
    assert min(costs) < 0.05


def test_normalising_all_of_a_caption_would_be_expensive(monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr("datamodules.groups._LONGEST_WORD", 10**9)
    start = time.perf_counter()
    group_of(HOSTILE["accents out of order"] * 2_500)
    assert time.perf_counter() - start > 0.05


def test_decode_samples(png, wav):
    bad = Sample("bad", "s", {"image": b"hello", "text": "x"}, ("x",))
    good = Sample("good", "s", {"image": png, "text": "x", "audio": wav}, ("x",))
    rejected: list[Rejected] = []
    (sample,) = decode_samples([bad, good], rejected)
    assert sample.inputs["image"].shape == (3, 4, 6) and sample.inputs["text"] == "x"
    assert sample.inputs["audio"][0].shape == (2, 800) and sample.inputs["audio"][1] == 8000
    assert [item[:3] for item in rejected] == [("s", "bad", "image")]
    assert list(decode_samples([sample])) == [sample]
    with pytest.raises(ValueError, match="s: bad.image: this file is text, not a picture"):
        list(decode_samples([good, bad]))


def test_collate_pads_and_masks():
    batch = collate(
        [
            prepared("a", {"text": torch.tensor([1, 2]), "image": torch.ones(1, 3, 2, 2)}),
            prepared("b", {"text": torch.tensor([3, 4, 5]), "audio": torch.ones(4, 8)}),
            prepared("c", {"text": torch.tensor([6])}) | {"group_id": 2**62, "weight": 5},
        ]
    )
    assert batch["keys"] == batch["captions"] == ["a", "b", "c"]
    assert batch["group_id"].tolist() == [1, 1, 2**62] and batch["weight"].tolist() == [1, 1, 5]
    assert batch["inputs"]["text"].tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    assert batch["inputs"]["text"].dtype == torch.int64
    assert batch["masks"]["text"].sum(1).tolist() == [2, 3, 1]
    assert batch["inputs"]["image"].shape == (3, 1, 3, 2, 2)
    assert batch["masks"]["image"].tolist() == [[True], [False], [False]]
    assert batch["inputs"]["image"][1:].eq(0).all() and batch["inputs"]["audio"].shape == (3, 4, 8)
    assert batch["masks"]["audio"].any(1).tolist() == [False, True, False]
    assert batch["positions"] == {}


def test_collate_of_cached_tokens():
    tokens, places = torch.randn(3, 4).half(), torch.rand(3, 3)
    rows = [
        prepared("a", {"image": tokens}, positions={"image": places}),
        prepared("b", {"image": tokens[:1]}, positions={"image": places[:1]}),
        prepared("c", {}),
    ]
    batch = collate(rows)
    assert batch["inputs"]["image"].dtype == torch.float32
    assert torch.equal(batch["inputs"]["image"][0], tokens.float())
    assert torch.equal(batch["positions"]["image"][0], places)
    assert batch["positions"]["image"].shape == (3, 3, 3)
    assert batch["masks"]["image"].sum(1).tolist() == [3, 1, 0]


@pytest.mark.parametrize("short", [{}, {"image": torch.rand(1, 3)}])
def test_collate_wants_a_position_for_each_token(short):
    whole = prepared("a", {"image": torch.rand(2, 4)}, positions={"image": torch.rand(2, 3)})
    with pytest.raises(ValueError, match="one position for each token"):
        collate([whole, prepared("b", {"image": torch.rand(2, 4)}, positions=short)])


def test_collate_leaves_out_empty_modalities():
    batch = collate([prepared("a", {"text": torch.tensor([1]), "audio": torch.empty(0, 8)})])
    assert set(batch["inputs"]) == set(batch["masks"]) == {"text"}


def test_collate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no sample"):
        collate([])
    rows = [prepared("a", {"audio": torch.rand(2, 4)}), prepared("b", {"audio": torch.rand(2, 5)})]
    with pytest.raises(ValueError, match="audio: samples have different shapes"):
        collate(rows)
    rows[1] = prepared("b", {"audio": torch.ones(2, 4, dtype=torch.int64)})
    with pytest.raises(ValueError, match="different shapes"):
        collate(rows)


def test_collate_does_not_depend_on_neighbours():
    row = prepared("a", {"audio": torch.randn(3, 8)})
    alone = collate([row])["inputs"]["audio"][0]
    beside = collate([prepared("b", {"audio": torch.randn(7, 8)}), row])
    assert torch.equal(beside["inputs"]["audio"][1, :3], alone)
    assert torch.equal(beside["inputs"]["audio"][1][beside["masks"]["audio"][1]], alone)
