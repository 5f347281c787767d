import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from encoders import Encoder, EncoderOutput, LogMelEncoder, TokenCache
from encoders.picture import FitPicture


class Scale(Encoder):
    """A frozen toy: each input row times a weight, with positions that differ."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__("toy", 3, FitPicture((1, 1)))
        self.weight = nn.Parameter(torch.tensor(weight))
        self.num_runs = 0
        self.freeze()

    def forward(self, inputs: Tensor, mask: Tensor) -> EncoderOutput:
        self.num_runs += 1
        position = torch.zeros(*mask.shape, 3)
        position[..., 0] = torch.arange(mask.shape[1]) / 7
        return EncoderOutput(inputs * self.weight * mask.unsqueeze(-1), mask, position)


KEYS = [f"sample/{index}" for index in range(10)]


def load(index: int) -> Tensor:
    return torch.full((1 + index % 3, 3), float(index))  # ragged lengths


def check(result: list[tuple[Tensor, Tensor]], weight: float = 2.0) -> None:
    assert len(result) == len(KEYS)
    for index, (values, position) in enumerate(result):
        assert values.dtype == torch.float16 and position.dtype == torch.float32
        assert torch.equal(values.float(), load(index) * weight)
        assert torch.equal(position[:, 0], torch.arange(len(values)) / 7)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_second_run_reads_and_does_not_encode(tmp_path: Path):
    encoder, cache = Scale(), TokenCache(tmp_path)
    check(cache.encode(encoder, KEYS, load, batch_size=3))
    assert encoder.num_runs == 4
    assert not list(tmp_path.rglob("*.part"))
    again = Scale()
    check(TokenCache(tmp_path).encode(again, KEYS, lambda index: pytest.fail("was on disk")))
    assert again.num_runs == 0


def test_a_cache_reads_and_hashes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder, cache = Scale(), TokenCache(tmp_path)
    check(cache.encode(encoder, KEYS, load))
    monkeypatch.setattr(Scale, "fingerprint", lambda self: pytest.fail("was known"))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("was in memory"))
    check(cache.encode(encoder, KEYS, lambda index: pytest.fail("was in memory")))


def test_only_missing_samples_are_encoded(tmp_path: Path):
    cache, loaded = TokenCache(tmp_path), []
    cache.encode(Scale(), KEYS[:4], load)

    def note(index: int) -> Tensor:
        loaded.append(index)
        return load(index)

    check(cache.encode(Scale(), KEYS, note))
    assert loaded == list(range(4, 10))


def test_order_and_repeats_of_keys_are_kept(tmp_path: Path):
    cache = TokenCache(tmp_path)
    first, second, third = cache.encode(Scale(), ["b", "a", "b"], load)
    assert torch.equal(first[0], third[0]) and first[0].sum() == 0 and second[0].sum() == 12
    swapped = cache.encode(Scale(), ["a", "b"], load)
    assert torch.equal(swapped[0][0], second[0])


def test_other_weights_have_their_own_tokens(tmp_path: Path):
    cache = TokenCache(tmp_path)
    check(cache.encode(Scale(2.0), KEYS, load), 2.0)
    check(cache.encode(Scale(3.0), KEYS, load), 3.0)
    assert len(list(tmp_path.iterdir())) == 2


def test_progress_counts_up_to_all_keys(tmp_path: Path):
    cache, seen = TokenCache(tmp_path), []
    cache.encode(Scale(), KEYS[:4], load)
    cache.encode(Scale(), [*KEYS, KEYS[9]], load, batch_size=4, progress=seen.append)
    assert seen == [5, 9, 11]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 1000),
    ],
    ids=["bit flipped", "cut short", "empty", "rubbish"],
)
def test_damage_is_reported_once_and_mended(tmp_path: Path, damage):
    TokenCache(tmp_path).encode(Scale(), KEYS, load)
    damage(files(tmp_path)[0])
    with pytest.warns(UserWarning, match="Dropped 1 damaged file") as caught:
        check(TokenCache(tmp_path).encode(Scale(), KEYS, load))
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():  # the control: an undamaged cache says nothing
        warnings.simplefilter("error")
        check(TokenCache(tmp_path).encode(Scale(), KEYS, lambda index: pytest.fail("was mended")))


def test_leftovers_of_a_killed_run_are_ignored(tmp_path: Path):
    script = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "import encoders.cache as cache_module; from test_cache import *\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "TokenCache(sys.argv[1]).encode(Scale(), KEYS, load)\n"
    )
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path), *places])
    assert killed.returncode == 9
    assert len(list(tmp_path.rglob("*.part"))) == 1 and not files(tmp_path)
    check(TokenCache(tmp_path).encode(Scale(), KEYS, load))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        TokenCache(tmp_path).encode(Scale(), KEYS, load)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", [40_000.0, float("nan")])
def test_values_beyond_float16_are_refused(tmp_path: Path, value: float):
    bad = torch.full((1, 3), value)
    with pytest.raises(ValueError, match=r"sample sample/7 .* not finite in float16"):
        TokenCache(tmp_path).encode(Scale(), KEYS, lambda index: bad if index == 7 else load(index))
    assert not files(tmp_path)


def test_an_encoder_that_learns_is_refused(tmp_path: Path):
    encoder = Scale()
    encoder.frozen = False
    with pytest.raises(ValueError, match=r"call freeze\(\) first"):
        TokenCache(tmp_path).encode(encoder, KEYS, load)


def test_cached_tokens_are_those_of_the_encoder(tmp_path: Path):
    encoder = LogMelEncoder(dim=16)
    encoder.freeze()
    clips = [torch.randn(num_frames, 64) for num_frames in (40, 3, 100)]
    cached = TokenCache(tmp_path).encode(encoder, ["a", "b", "c"], clips.__getitem__)
    for clip, (values, position) in zip(clips, cached, strict=True):
        out = encoder(clip[None], torch.ones(1, len(clip), dtype=torch.bool))
        torch.testing.assert_close(values.float(), out.values[0], atol=1e-2, rtol=1e-2)
        assert torch.equal(position, out.position[0])


def test_tokens_can_take_part_in_training(tmp_path: Path):
    (values, _), *_ = TokenCache(tmp_path).encode(Scale(), KEYS, load)
    weight = torch.ones(3, requires_grad=True)
    (values.float() * weight).sum().backward()
    assert weight.grad is not None
