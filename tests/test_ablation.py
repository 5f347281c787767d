"""The ablation runs, compares like with like, and tests on nothing that was trained on."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F

from benchmarks.ablation import (
    __main__,
    changed,
    drawings,
    film,
    frozen,
    occluded,
    pointing,
    retrieval,
    stamps,
    table,
)
from benchmarks.ablation.costs import count_flops
from benchmarks.ablation.fusions import FROZEN, FUSIONS, LIGHT, SCRATCH, THREE, Part, build
from benchmarks.media import small_picture
from fusion.metrics import retrieval_scores

LABELS = [
    f"{first} {second}"
    for first in ("man", "woman", "red", "blue")
    for second in ("cook", "judge", "heart", "circle")
]
HELD = torch.tensor([False] * 10 + [True] * 6)


def parts(samples: int, tokens: int, generator: Generator, dim: int = FROZEN.dim) -> Part:
    values = torch.randn(samples, tokens, dim, generator=generator)
    mask = torch.ones(samples, tokens, dtype=torch.bool)
    return Part(values, mask, torch.zeros(samples, tokens, 3))


@pytest.fixture
def data() -> drawings.Drawings:
    """Random tokens of 16 concepts, each drawn by all vendors; vendor v draws c as 5 c + v."""
    generator, vendors = Generator().manual_seed(0), len(drawings.VENDORS)
    num = len(LABELS) * vendors
    vocabulary = sorted({word for label in LABELS for word in label.split()})
    return drawings.Drawings(
        whole=parts(num, 4, generator),
        windows=parts(num * drawings.NUM_WINDOWS, 4, generator),
        halves=parts(len(LABELS) * drawings.NUM_HALVES, 5, generator),
        changes=parts(len(vocabulary), 3, generator),
        places=parts(4, 4, generator),
        vocabulary=vocabulary,
        labels=[label.split() for label in LABELS],
        of=torch.arange(num).view(len(LABELS), vendors),
        held=HELD,
    )


@pytest.mark.parametrize("size", [SCRATCH, FROZEN, THREE])
@pytest.mark.parametrize("name", FUSIONS)
def test_every_way_of_fusing_has_the_same_number_of_parameters(name, size) -> None:
    budget = size.budget * (size.light if name in LIGHT else 1)
    assert abs(count(build(name, size)) - budget) < 0.002 * budget


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("size", "tokens"), [(SCRATCH, (10, 3)), (FROZEN, (4, 4))])
def test_lighter_blocks_take_no_more_flops_than_the_transformer(size, tokens) -> None:
    query = [parts(256, length, Generator(), size.dim) for length in tokens]
    most = count_flops(build("transformer", size), query)
    assert count_flops(build("gated + slots, 1 round", size), query) > most  # the control
    for name in LIGHT:
        assert 0.9 * most < count_flops(build(name, size), query) <= most


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, pointing) for name in FUSIONS),
        ("transformer", occluded),
        ("anchored + slots, converged", changed),
    ],
)
def test_retrieval_runs(name, task, data, monkeypatch) -> None:
    monkeypatch.setattr(task, "SCENES" if task is pointing else "BATCH", 4)
    found = retrieval.run(name, 0, task.task(data, steps=2))
    assert found["mflop"] > 0 and 0 <= found["held vendor"]["fused"] <= 1
    key = task.__name__.rpartition(".")[2]
    runs = [{"task": key, "variant": name, "seed": 0, "hardware": "a", **found}]
    assert f"| {name} |" in table.table(runs, key)


@pytest.mark.parametrize("task", [occluded, changed, pointing])
def test_what_is_held_out_is_never_drawn(task, data, monkeypatch) -> None:
    trained = seen_in(task, data, monkeypatch)
    assert trained and all(drawing // 5 < 10 for drawing in trained)
    assert drawings.HELD_VENDOR not in {drawing % 5 for drawing in trained}
    other = data._replace(held=~HELD)  # the control: with others held out these are trained on
    assert any(drawing // 5 >= 10 for drawing in seen_in(task, other, monkeypatch))


def seen_in(task, data: drawings.Drawings, monkeypatch) -> set[int]:
    """Drawings that are targets of training; each one's tokens carry its number."""
    monkeypatch.setattr(task, "SCENES" if task is pointing else "BATCH", 4)
    monkeypatch.setattr(pointing, "unit_tokens", lambda part: part.values[:, 0])
    number = torch.arange(len(data.whole.values), dtype=torch.float32)
    whole = data.whole._replace(values=number[:, None, None].expand_as(data.whole.values))
    made, generator = task.task(data._replace(whole=whole), 1), Generator().manual_seed(0)
    batches = [made.draw(generator) for _ in range(30)]
    return {int(n) for batch in batches for n in batch.target[0].values[:, 0, 0]}


def test_a_change_names_the_target_by_the_one_word_that_differs(data) -> None:
    pairs = changed.changes(data)
    assert len(pairs.source) == 2 * 16 * 3  # each name differs from three in either word
    for source, word, target in zip(*(c.tolist() for c in pairs[:3]), strict=True):
        new = {*data.labels[target]} - {*data.labels[source]}
        assert new == {data.vocabulary[word]}
    assert torch.zeros(16).index_add(0, pairs.source, pairs.weight).allclose(torch.ones(16))


def test_adding_up_picture_and_words_cannot_point(data) -> None:
    """A perfect bag of what a scene shows, plus words: no better than one in four."""
    batch = pointing.task(data).tests["held vendor"]
    target = F.normalize(batch.target[0].values[:, 0], dim=-1)
    bag = target.view(-1, 4, FROZEN.dim).sum(1).repeat_interleave(4, 0)
    right = batch.wanted[:, None] == batch.found
    added = F.normalize(bag + batch.query[1].values.mean(1), dim=-1)
    assert retrieval_scores(added, target, right).recall_at_1 <= 0.3
    assert retrieval_scores(target, target, right).recall_at_1 > 0.5  # the control: what is there


def test_what_a_window_hides_is_gone() -> None:
    picture = torch.arange(3 * 40 * 40, dtype=torch.uint8).view(3, 40, 40) % 200
    seen = frozen.window(picture, Generator().manual_seed(0))
    shown = (seen == picture).all(0)
    assert (seen[:, ~shown] == 255).all()
    assert abs(float(shown.float().mean()) - frozen.WINDOW) < 0.03


def test_flops_of_a_product_are_counted() -> None:
    fuse = build("mean of unit embeddings", FROZEN._replace(budget=40_000))
    query = [parts(4, 3, Generator()), retrieval.nothing(4, FROZEN.dim)]
    hidden = next(p for p in fuse.parameters() if p.dim() == 2).shape[0]
    assert count_flops(fuse, query) == 4 * 4 * FROZEN.dim * hidden  # 3 + 1 tokens


@pytest.mark.parametrize("variant", film.VARIANTS)
def test_film_runs(variant, data, monkeypatch) -> None:
    monkeypatch.setattr(film, "TESTED_ON", (film.TRAINED_ON,))
    monkeypatch.setattr(film, "POOL", 8)
    found = film.run(variant, 0, data, steps=2)
    assert 0 <= found["32 frames, 0.12"] <= 1


def test_a_table_has_mean_spread_and_costs() -> None:
    runs = [
        {
            "task": "pointing",
            "variant": "transformer",
            "hardware": "a machine",
            "mflop": 2.0,
            "held vendor": {"fused": share},
        }
        for share in (0.1, 0.3)
    ]
    text = table.table(runs, "pointing")
    assert "Ran on a machine." in text
    assert "| variant | held vendor: fused | MFLOP a query | seeds |" in text
    assert "| transformer | 20.0 ± 10.0 | 2.0 | 2 |" in text


@pytest.mark.slow
def test_a_tiny_run_from_files(tmp_path, monkeypatch, capsys) -> None:
    """Real shards, towers and cache: one line of JSON for each task."""
    shard, out = tmp_path / "emoji.tar", tmp_path / "runs.jsonl"
    write_emoji(shard)
    few = tmp_path / "stamps.tar"
    copy_some(stamps.SHARD, few, 24)
    monkeypatch.setattr(stamps, "SHARD", few)
    monkeypatch.setattr(stamps, "HELD_CAPTIONS", 6)
    monkeypatch.setattr(drawings, "HELD_CONCEPTS", 0.5)
    monkeypatch.setattr(__main__, "SEEDS", (0,))
    for module, name in ((occluded, "BATCH"), (changed, "BATCH"), (pointing, "SCENES")):
        monkeypatch.setattr(module, name, 4)
    tasks = ["pointing", "changed", "occluded", "stamps"]
    options = ["--shard", shard, "--tokens", tmp_path / "tokens", "--out", out]
    for _ in range(2):  # the second time all is there
        only = ["--tiny", "--variants", "mean of unit embeddings"]
        __main__.main([*tasks, *map(str, options), *only])
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["task"] for run in runs] == tasks
    monkeypatch.setattr("sys.argv", ["table", str(out), "--out", str(tmp_path / "runs.md")])
    table.main()
    assert (tmp_path / "runs.md").read_text().count("## ") == len(tasks)


def write_emoji(path) -> None:
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for concept, label in enumerate(LABELS):
            for vendor in drawings.VENDORS:
                key = f"{concept:02d}_{vendor}"
                meta = {"vendor": vendor, "label": label, "tags": ["a"], "concept": str(concept)}
                _, picture = small_picture(generator)
                add(archive, f"{key}.json", json.dumps(meta).encode())
                add(archive, f"{key}.webp", picture)


def copy_some(source, path, count: int) -> None:
    """The first samples that have speech, of a shard."""
    with tarfile.open(source) as archive, tarfile.open(path, "w") as few:
        names = archive.getnames()
        keys = sorted({n.partition(".")[0] for n in names if n.endswith(".speech_fr.opus")})
        for name in names:
            if name.partition(".")[0] in keys[:count]:
                add(few, name, archive.extractfile(name).read())  # type: ignore[union-attr]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
