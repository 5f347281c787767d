"""The streaming data module over real shards, alone and under Lightning."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image

from datamodules.manifest import describe_shard, write_manifest
from datamodules.module import ShardDataModule
from datamodules.reading import Reading
from datamodules.writer import write_shard


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path) -> list[str]:
    """Four shards, 3 to 12 samples: grey pictures, each with two captions that name its level."""
    level = 0
    for number, size in enumerate((3, 12, 5, 10)):
        samples = []
        for _ in range(size):
            captions = {"captions": [f"level {level}", f"grey {level}"]}
            members = {"png": picture(level), "txt": f"level {level}".encode()}
            samples.append((f"s{level:02d}", {**members, "json": json.dumps(captions).encode()}))
            level += 1
        write_shard(samples, tmp_path / f"{'ab'[number % 2]}{number}.tar")
    return [str(path) for path in sorted(tmp_path.glob("*.tar"))]


def values(sample) -> dict:
    """The grey level of a picture, if there is one."""
    return {name: v[None, 0, 0, :1] for name, v in sample.inputs.items() if name == "image"}


def transform(samples):
    return [{"inputs": values(sample)} for sample in samples]


def augment(samples):
    return [
        {"inputs": {name: value + torch.rand(1) for name, value in values(sample).items()}}
        for sample in samples
    ]


def ready(*args, **options) -> ShardDataModule:
    options.setdefault("num_workers", 0)
    module = ShardDataModule(*args, **options)
    module.transform, module.augment = transform, augment
    module.setup()
    return module


def keys_of(loader) -> list[list[str]]:
    return [batch["keys"] for batch in loader]


def test_batches_are_samples_that_belong_together(shards):
    module = ready(shards, batch_size=8)
    seen = Counter()
    for batch in module.train_dataloader():
        for key, caption, value in zip(
            batch["keys"], batch["captions"], batch["inputs"]["image"].flatten(), strict=True
        ):
            level = int(key[1:])
            assert caption in (f"level {level}", f"grey {level}")
            assert level <= value < level + 1
            seen[key] += 1
    assert set(seen.values()) == {1} and len(seen) == 30


def test_captions_are_drawn_in_training_and_first_in_validation(shards):
    module = ready(shards, val=shards, batch_size=8)
    loader = module.train_dataloader()
    epochs = [
        {k: c for b in loader for k, c in zip(b["keys"], b["captions"], strict=True)}
        for _ in range(2)
    ]
    kinds = Counter(caption.split()[0] for epoch in epochs for caption in epoch.values())
    assert 15 < kinds["grey"] < 45 and epochs[0] != epochs[1]
    first = [caption for batch in module.val_dataloader() for caption in batch["captions"]]
    assert first == [f"level {int(k[1:])}" for k in sum(keys_of(module.val_dataloader()), [])]
    assert sorted(module.captions()) == sorted(
        f"{w} {i}" for i in range(30) for w in ("level", "grey")
    )


def test_groups_are_those_of_the_first_caption_whichever_is_drawn(shards):
    module = ready(shards, val=shards, batch_size=30)
    (train,), (val,) = module.train_dataloader(), module.val_dataloader()
    groups = dict(zip(val["keys"], val["group_id"].tolist(), strict=True))
    assert len(set(groups.values())) == 30
    assert [groups[key] for key in train["keys"]] == train["group_id"].tolist()


def test_validation_is_every_sample_once_in_order_on_any_ranks(shards):
    module = ready(shards, val=shards, batch_size=8)
    in_order = [f"s{i:02d}" for i in (*range(3), *range(15, 20), *range(3, 15), *range(20, 30))]
    assert sum(keys_of(module.val_dataloader()), []) == in_order


def test_weights_by_the_name_of_the_shard(shards):
    module = ready(shards, batch_size=8, weights={"a": 2.0, "b": 0.5})
    counts = Counter(sum(keys_of(module.train_dataloader()), []))
    often = {f"s{i:02d}" for i in (*range(3), *range(15, 20))}
    assert all(counts[key] == 2 for key in often)
    assert len(counts) - len(often) == 6 + 5 and max(counts[k] for k in counts.keys() - often) == 1


def test_missing_modalities_are_allowed_unless_required(shards, tmp_path):
    write_shard([("only", {"txt": b"no picture"})], tmp_path / "c.tar")
    every = [*shards, str(tmp_path / "c.tar")]
    assert sum(map(len, keys_of(ready(every).train_dataloader()))) == 31
    reading = Reading(required=["image", "text"])
    loader = ready(every, reading=reading).train_dataloader()
    assert sum(map(len, keys_of(loader))) == 30
    (item,) = loader.ledger.rejected
    assert (item.key, item.code, item.reason) == ("only", "missing-modality", "it has no image")


def test_damage_is_rejected_and_counted(shards, tmp_path):
    broken = Path(shards[0]).read_bytes()
    Path(shards[0]).write_bytes(broken[: len(broken) // 2])
    bad = [("bad", {"png": b"hello", "txt": b"x"}), ("good", {"png": picture(9), "txt": b"y"})]
    write_shard(bad, tmp_path / "c.tar")
    module = ready(
        [*shards, str(tmp_path / "c.tar")], batch_size=8, reading=Reading(max_rejected=0.2)
    )
    loader = module.train_dataloader()
    assert sum(map(len, keys_of(loader))) == 28
    assert {(Path(i.shard).name, i.key, str(i.code)) for i in loader.ledger.rejected} == {
        ("a0.tar", "", "damaged-shard"),
        ("c.tar", "bad", "wrong-format"),
    }
    with pytest.raises(ValueError, match="more than max_rejected=0.01"):
        list(
            ready(
                [*shards, str(tmp_path / "c.tar")], reading=Reading(max_rejected=0.01)
            ).train_dataloader()
        )


def test_what_a_transform_cannot_use_is_rejected(shards):
    module = ready(shards, batch_size=30)

    def picky(samples):
        if "7" in samples[0].key:
            raise ValueError("got a seven; wanted none")
        return transform(samples)

    module.augment = picky
    module.reading = Reading(max_rejected=0.5)
    loader = module.train_dataloader()
    assert sum(map(len, keys_of(loader))) == 27
    assert {str(item.code) for item in loader.ledger.rejected} == {"unfit"}


def test_a_manifest_spares_the_count_and_finds_another_shard(shards, tmp_path):
    entries = [describe_shard(Path(shard))[0] for shard in shards]
    write_manifest(entries, tmp_path / "manifest.json")
    assert sum(map(len, keys_of(ready(shards, batch_size=8).train_dataloader()))) == 30

    data = bytearray(Path(shards[1]).read_bytes())  # of the same size, with one header broken
    data[10] ^= 1
    Path(shards[1]).write_bytes(data)
    module = ready(shards, batch_size=8, reading=Reading(max_rejected=0.9))
    loader = module.train_dataloader()
    list(loader)
    assert loader.ledger.num_rejected == 5  # all of a2.tar, found when it was opened
    (item,) = loader.ledger.rejected
    assert item.key == "" and item.code == "damaged-shard"

    Path(shards[1]).write_bytes(data[:-512])
    loader = ready(shards, batch_size=8, reading=Reading(max_rejected=0.9)).train_dataloader()
    assert [str(item.code) for item in loader.ledger.rejected] == ["changed-shard"]


def test_shards_that_are_mixed_stay_open(shards, monkeypatch):
    """A reader that holds fewer walks through the same headers again and again."""
    from datamodules import module as streaming
    from datamodules import reader

    walks = Counter()
    walk = reader.find_samples
    monkeypatch.setattr(
        reader, "find_samples", lambda f, w, name: walks.update([name]) or walk(f, w, name)
    )
    monkeypatch.setattr(streaming, "NUM_OPEN", 1)
    module = ready(shards, batch_size=2, window=4)
    walks.clear()  # of the count
    list(module.train_dataloader())
    assert set(walks.values()) == {1} and len(walks) == 4
    loader = module.train_dataloader()
    loader.fetch.reader.num_open = 1  # the guard off
    walks.clear()
    list(loader)
    assert max(walks.values()) > 1


def test_shards_of_a_server(shards, server, tmp_path):
    for shard in shards:
        server.files[Path(shard).name] = Path(shard).read_bytes()
    urls = [f"{server.url}/plain/{Path(shard).name}" for shard in shards]
    module = ready(
        urls, batch_size=8, num_workers=2, reading=Reading(cache=str(tmp_path / "cache"))
    )
    remote = keys_of(module.train_dataloader())
    assert remote == keys_of(ready(shards, batch_size=8).train_dataloader())
    asked = dict(server.asked)
    again = ready(urls, batch_size=8, reading=Reading(cache=str(tmp_path / "cache")))
    assert keys_of(again.train_dataloader()) == remote
    fetched = [path for path in asked if path.endswith(".tar")]
    assert all(server.asked[path] == asked[path] for path in fetched)


def test_a_packed_shard_gives_the_same(shards, tmp_path):
    packed = [f"{shard}.gz" for shard in shards]
    for shard, name in zip(shards, packed, strict=True):
        Path(name).write_bytes(gzip.compress(Path(shard).read_bytes()))
    module = ready(packed, batch_size=8, reading=Reading(cache=str(tmp_path / "cache")))
    plain = ready(shards, batch_size=8).train_dataloader()
    assert keys_of(module.train_dataloader()) == keys_of(plain)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"window": 0}, "window of 0"),
        ({"weights": {"a": -1}}, "weight -1"),
    ],
)
def test_refuses(shards, options, reason):
    with pytest.raises(ValueError, match=reason):
        ready(shards, **options).train_dataloader()


def test_says_what_is_missing(shards, tmp_path):
    module = ShardDataModule(shards)
    module.setup()
    with pytest.raises(ValueError, match="set the data module's `augment`"):
        module.train_dataloader()
    with pytest.raises(ValueError, match="no shard matches"):
        ready([str(tmp_path / "none-*.tar")])
    Path(shards[2]).unlink()
    gone = ready([s for s in shards if s != shards[2]])
    Path(shards[3]).unlink()
    with pytest.raises(ValueError, match=r"b3.tar: No such file or directory"):
        list(gone.train_dataloader())


class Net(LightningModule):
    """Remembers what it trained on."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.trained, self.validated = [], []
        self.transform, self.augment = transform, augment

    def training_step(self, batch, index):
        self.trained += batch["keys"]
        return (batch["inputs"]["image"].float() * self.scale).square().mean()

    def validation_step(self, batch, index):
        self.validated += batch["keys"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_trains_under_lightning_with_the_transforms_of_the_model(shards, tmp_path):
    write_shard([("bad", {"png": b"hello"})], tmp_path / "c.tar")
    every = [*shards, str(tmp_path / "c.tar")]
    module = ShardDataModule(every, val=shards[:1], batch_size=8, num_workers=1)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path / "run",
    )
    net = Net()
    trainer.fit(net, module)
    assert trainer.global_step == 2 * 4
    assert set(Counter(net.trained).values()) == {2} and len(set(net.trained)) == 30
    assert Counter(net.validated) == {f"s{i:02d}": 3 for i in range(3)}  # one is the sanity check
    (line,) = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "bad"


def test_is_built_from_a_config():
    parser = LightningArgumentParser()
    parser.add_class_arguments(ShardDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "train": ["a-{000..001}.tar"],
                "weights": {"a": 5},
                "reading": {"members": {"image": ["webp"]}, "required": ["image"]},
            }
        }
    )
    module = parser.instantiate(config).data
    assert module.weights == {"a": 5.0} and module.reading.required == ["image"]
