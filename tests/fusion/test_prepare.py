from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from encoders.base import Encoder, EncoderOutput
from encoders.cache import TokenCache
from fusion.prepare import Preparation, content_key


@dataclass
class Doubled:
    """A transform that states its settings, of none."""

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        return 2 * raw


class Toy(Encoder):
    def __init__(self, modality: str, frozen: bool) -> None:
        super().__init__(modality, 3, Doubled())
        self.linear = nn.Linear(3, 3)
        self.num_samples = 0
        if frozen:
            self.freeze()

    def forward(self, inputs, mask):
        self.num_samples += len(inputs)
        return EncoderOutput(self.linear(inputs), mask, torch.ones(*mask.shape, 3))


@pytest.fixture
def encoders() -> nn.ModuleDict:
    return nn.ModuleDict({"image": Toy("image", True), "audio": Toy("audio", False)})


def make_samples() -> list[SimpleNamespace]:
    values = [{"image": torch.randn(2, 3), "audio": torch.randn(4, 3)} for _ in range(3)]
    del values[1]["image"], values[2]["audio"]
    values[2]["depth"] = torch.randn(1)
    return [SimpleNamespace(inputs=inputs, digests={}) for inputs in values]


def test_frozen_ones_are_encoded_and_others_transformed(encoders, tmp_path):
    samples = make_samples()
    prepared = Preparation(encoders, TokenCache(tmp_path))(samples)
    assert [set(p["inputs"]) for p in prepared] == [{"image", "audio"}, {"audio"}, {"image"}]
    assert [set(p["positions"]) for p in prepared] == [{"image"}, set(), {"image"}]
    for sample, got in zip(samples, prepared, strict=True):
        if "audio" in got["inputs"]:
            assert got["inputs"]["audio"].equal(2 * sample.inputs["audio"])
        if "image" in got["inputs"]:
            tokens = encoders["image"].linear(2 * sample.inputs["image"])
            torch.testing.assert_close(got["inputs"]["image"], tokens.half())
            assert got["positions"]["image"].equal(torch.ones(2, 3))
    assert encoders["audio"].num_samples == 0


def test_a_frozen_encoder_runs_once_for_each_sample(encoders, tmp_path):
    samples = make_samples()
    prepare = Preparation(encoders, TokenCache(tmp_path))
    first, again = prepare(samples), prepare(samples[::-1])[::-1]
    later = Preparation(encoders, TokenCache(tmp_path))(samples)  # another run, from disk
    assert encoders["image"].num_samples == 2
    for other in (again, later):
        for got, expected in zip(other, first, strict=True):
            assert all(got["inputs"][n].equal(t) for n, t in expected["inputs"].items())
    prepare(make_samples())
    assert encoders["image"].num_samples == 4  # other content


def test_other_weights_are_another_cache(encoders, tmp_path):
    samples = make_samples()
    Preparation(encoders, TokenCache(tmp_path))(samples)
    with torch.no_grad():
        encoders["image"].linear.weight.mul_(2)
    Preparation(encoders, TokenCache(tmp_path))(samples)
    assert encoders["image"].num_samples == 4


def test_no_samples(encoders, tmp_path):
    assert Preparation(encoders, TokenCache(tmp_path))([]) == []


def test_content_key_differs_by_all_that_matters():
    wave = torch.zeros(1, 4)
    raws = [
        wave,
        wave + 1,
        wave.view(4),
        wave.view(2, 2),
        wave.to(torch.int32),
        torch.zeros(1, 16, dtype=torch.uint8),
        torch.zeros(1, 2, dtype=torch.float64),
        torch.zeros(0, 4),
        (wave, 16000),
        (wave, 8000),
        (wave + 1, 8000),
        "a cat",
        "A cat",
        "",
    ]
    keys = [content_key(raw) for raw in raws]
    assert len(set(keys)) == len(raws) and all(len(key) == 64 for key in keys)


def test_content_key_is_the_same_for_the_same_content():
    wide = torch.arange(6.0).view(2, 3)
    assert content_key(wide.T) == content_key(wide.T.contiguous()) != content_key(wide)
    assert content_key((wide, 8000)) == content_key((wide.clone(), 8000))
    assert content_key("ä") == content_key("ä")


def test_content_that_has_a_name_is_known_by_it_once_it_is_encoded(encoders, tmp_path):
    named = [SimpleNamespace(inputs={"image": torch.randn(2, 3)}, digests={"image": "a name"})]
    prepare = Preparation(encoders, TokenCache(tmp_path))
    assert not prepare.knows("image", "a name")
    first = prepare(named)
    assert prepare.knows("image", "a name") and not prepare.knows("image", "another")
    later = Preparation(encoders, TokenCache(tmp_path))
    assert later.knows("image", "a name")
    unread = [SimpleNamespace(inputs={"image": b"not decoded"}, digests={"image": "a name"})]
    assert later(unread)[0]["inputs"]["image"].equal(first[0]["inputs"]["image"])


def test_what_trains_needs_its_raw_values_and_what_nothing_takes_does_not(encoders, tmp_path):
    prepare = Preparation(encoders, TokenCache(tmp_path))
    assert not prepare.knows("audio", "any name") and prepare.knows("depth", "any name")
