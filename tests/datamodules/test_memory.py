import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

import datamodules.decoding
from datamodules.decoding import with_digests
from datamodules.memory import MemoryDataModule
from datamodules.reading import Reading
from datamodules.shards import read_shards


def members(key: str, caption: str, png: bytes, **meta) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", png),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps(meta).encode()),
    ]


@pytest.fixture
def shards(make_shard, png) -> list[str]:
    """40 stamps (two of each caption), 5 symbols and 20 clip arts, all with captions 0 to 19."""
    stamps = [
        m for i in range(40) for m in members(f"s{i}", f"thing {i % 20}", png, source="stamps")
    ]
    symbols = [
        m
        for i in range(5)
        for m in members(f"y{i}", f"thing {i}", png, source="stamps", symbol=True)
    ]
    clipart = [m for i in range(20) for m in members(f"c{i}", f" Thing {i}!", png)]
    paths = [make_shard(stamps + symbols, "stamps-0.tar"), make_shard(clipart, "clipart-0.tar.gz")]
    return [str(path) for path in paths]


def prepare(samples):
    """A stand-in for frozen towers: one token for the picture, one for each letter."""
    assert len(samples) <= 256
    return [
        {
            "inputs": {
                "image": s.inputs["image"].float().mean((1, 2))[None].half(),
                "text": torch.tensor(list(s.caption.encode())),
            },
            "positions": {"image": torch.zeros(1, 3)},
        }
        for s in samples
    ]


def ready(*args, **options) -> MemoryDataModule:
    module = MemoryDataModule(*args, **options)
    module.prepare = prepare
    module.setup()
    return module


def keys_of(loader) -> list[list[str]]:
    return [batch["keys"] for batch in loader]


def test_held_out_captions_are_never_trained_on(shards):
    module = ready(shards, held_out=6, held_out_source="stamps", batch_size=8)
    train = {sample["group_id"] for sample in module.train_samples}
    val = {sample["group_id"] for sample in module.val_samples}
    assert len(val) == 6 and len(train) == 14 and not train & val
    assert len(module.val_samples) == 12  # both stamps of a caption, no clip art, no symbol
    assert all(sample["key"].startswith("s") for sample in module.val_samples)
    num_symbols = sum(sample["key"].startswith("y") for sample in module.train_samples)
    assert len(module.train_samples) == 14 * 3 + num_symbols
    assert num_symbols == 5 - len(val & {s["group_id"] for s in symbols_of(shards)})


def symbols_of(shards):
    return [s for s in ready(shards, batch_size=1).train_samples if s["key"].startswith("y")]


def test_without_holding_out_everything_is_trained_on(shards):
    module = ready(shards, batch_size=8)
    assert len(module.train_samples) == 65 and module.val_samples == []
    assert keys_of(module.val_dataloader()) == []


def test_the_split_depends_on_the_seed_only(shards):
    def split(order, seed):
        module = ready(order, held_out=6, held_out_source="stamps", batch_size=8, seed=seed)
        return {sample["key"] for sample in module.val_samples}

    assert split(shards, 0) == split(shards[::-1], 0) != split(shards, 1)


def test_val_shards_keep_their_captions_out_of_training(shards, make_shard, png):
    val = make_shard(members("v", "THING 3", png) + members("w", "new", png), "val.tar")
    module = ready(shards, val=[str(val)], batch_size=8)
    assert [sample["key"] for sample in module.val_samples] == ["v", "w"]
    assert len(module.train_samples) == 65 - 4
    assert not {s["group_id"] for s in module.train_samples} & {
        s["group_id"] for s in module.val_samples
    }


def test_train_batches(shards):
    loader = ready(shards, batch_size=8).train_dataloader()
    first, second = keys_of(loader), keys_of(loader)
    assert sorted(map(len, first)) == [7] * 7 + [8] * 2
    assert len(loader) == 9 and len(set(sum(first, []))) == 65
    assert first != second
    assert keys_of(ready(shards, batch_size=8).train_dataloader()) == first
    assert keys_of(ready(shards, batch_size=8, seed=1).train_dataloader()) != first


def test_val_batches_cover_every_sample_once_in_order(shards):
    module = ready(shards, held_out=5, held_out_source="stamps", batch_size=4)
    batches = keys_of(module.val_dataloader())
    assert [len(keys) for keys in batches] == [3, 3, 4]
    assert sum(batches, []) == [sample["key"] for sample in module.val_samples]


def test_batch_contents(shards):
    module = ready(shards, batch_size=1000, weights={"stamps": 5.0, "clip": 0.5})
    (batch,) = module.train_dataloader()
    expected = [0.5 if key.startswith("c") else 5.0 for key in batch["keys"]]
    assert batch["weight"].tolist() == expected
    counts = Counter(batch["keys"])
    assert all(n == (1 if key.startswith("c") else 5) for key, n in counts.items())
    assert len(counts) == 45 + 10
    total = 45 * 5 + 10
    assert batch["inputs"]["image"].dtype == torch.float32
    assert batch["inputs"]["image"].shape == (total, 1, 3)
    assert batch["positions"]["image"].shape == (total, 1, 3)
    assert batch["masks"]["text"].sum(1).tolist() == [len(c) for c in batch["captions"]]
    assert len(batch["group_id"].unique()) == 20


def test_bad_samples_are_counted_and_the_rest_is_used(make_shard, png):
    good = [m for i in range(8) for m in members(f"k{i}", f"cat {i}", png)]
    bad = [("bad.png", b"hello"), ("worse.txt", b"\xff")]
    path = str(make_shard(good + bad))
    module = ready([path], batch_size=8, reading=Reading(max_rejected=0.2))
    assert len(module.train_samples) == 8
    assert {item.key for item in module.ledger.rejected} == {"bad", "worse"}
    assert str(module.ledger).startswith("read 10 = delivered 8 + rejected 2")
    with pytest.raises(ValueError, match="2 of 10 samples were rejected"):
        ready([path], batch_size=8)


def test_setup_runs_once(shards):
    module = ready(shards, batch_size=8)
    before = module.train_samples
    module.setup("validate")
    assert module.train_samples is before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"val": ["v.tar"], "held_out": 2}, "choose one of the two"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"held_out": -1}, "held_out=-1"),
    ],
)
def test_constructor_refuses(options, reason):
    with pytest.raises(ValueError, match=reason):
        MemoryDataModule(["t.tar"], **options)


def test_setup_and_loaders_name_what_is_wrong(shards):
    with pytest.raises(ValueError, match="set the data module's `prepare`"):
        MemoryDataModule(shards).setup()
    with pytest.raises(ValueError, match="cannot hold out 20 of 20"):
        ready(shards, held_out=20, held_out_source="stamps")
    with pytest.raises(ValueError, match="cannot hold out 1 of 0"):
        ready(shards, held_out=1, held_out_source="nowhere")


class Towers(LightningModule):
    """Prepares samples and learns a scale."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def prepare(self, samples):
        return prepare(samples)

    def training_step(self, batch, index):
        return (batch["inputs"]["image"] * self.scale).square().mean()

    def validation_step(self, batch, index):
        self.seen += batch["keys"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_trains_under_lightning_with_the_prepare_of_the_model(shards, tmp_path):
    module = MemoryDataModule(shards, held_out=5, held_out_source="stamps", batch_size=8)
    towers = Towers()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(towers, module)
    assert trainer.global_step == -(-len(module.train_samples) // 8)
    assert towers.seen == [sample["key"] for sample in module.val_samples]


def test_is_built_from_a_config():
    parser = LightningArgumentParser()
    parser.add_class_arguments(MemoryDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "train": ["a-{000..001}.tar.gz"],
                "held_out": 134,
                "weights": {"stamps": 5, "emoji": 1},
                "reading": {"members": {"image": ["webp"], "text": ["txt"]}},
            }
        }
    )
    module = parser.instantiate(config).data
    assert module.weights == {"stamps": 5.0, "emoji": 1.0} and module.held_out == 134


def test_the_package_does_not_need_lightning():
    program = "import datamodules, sys; print([m for m in sys.modules if 'lightning' in m])"
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"


class Knowing:
    """Prepares like `prepare`, and remembers the pictures of which it made tokens."""

    def __init__(self):
        self.tokens = {}
        self.num_decoded = 0

    def knows(self, modality, content):
        return modality == "image" and content in self.tokens

    def __call__(self, samples):
        fresh = [s for s in samples if s.digests["image"] not in self.tokens]
        self.num_decoded += len(fresh)
        for sample, values in zip(fresh, prepare(fresh), strict=True):
            self.tokens[sample.digests["image"]] = values["inputs"]["image"]
        known = [s for s in samples if s not in fresh]
        assert all(isinstance(s.inputs["image"], bytes) for s in known)
        return [{"inputs": {"image": self.tokens[s.digests["image"]]}} for s in samples]


def test_files_that_are_known_are_not_decoded(shards, monkeypatch):
    knowing, seen = Knowing(), []
    for _ in range(2):
        module = MemoryDataModule(shards)
        module.prepare = knowing
        module.setup()
        seen.append([s["inputs"]["image"] for s in module.train_samples])
        # A decoder that cannot decode: the second time none is asked.
        monkeypatch.setitem(datamodules.decoding.DECODERS, "image", None)
    assert len(seen[0]) == 65 and all(map(torch.equal, *seen))
    assert knowing.num_decoded == 65


def test_other_code_that_decodes_is_other_content(shards, monkeypatch):
    sample = next(read_shards(shards))
    before, again = with_digests(sample).digests, with_digests(sample).digests
    monkeypatch.setattr("datamodules.decoding._code", lambda: b"newer")
    after = with_digests(sample).digests
    assert before == again and set(before) == {"image"} and before["image"] != after["image"]
