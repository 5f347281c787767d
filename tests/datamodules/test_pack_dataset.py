import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image
from torchaudio.datasets import LIBRISPEECH, YESNO
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import ToTensor

from datamodules.decode import decode_image
from datamodules.manifest import check_pack
from datamodules.pack import (
    BySize,
    DatasetSource,
    PackError,
    members_of_picture,
    members_of_recording,
    pack,
)
from datamodules.pack.encode import EncodeError, encode_captions, encode_picture, encode_recording
from datamodules.pack.stage import Stage
from datamodules.shards import read_shards
from fusion.cli.main import main

SIZE = BySize(2**20)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """The layout of `ImageFolder`: two classes with three pictures each."""
    noise = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "pictures" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (5, 7, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def load(monkeypatch):
    """torchaudio 2.11 loads by another package; here by soundfile."""

    def load(path, *_, **__):
        data, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(data.T), rate

    monkeypatch.setattr(torchaudio, "load", load)


def write_sound(path: Path, number: int, rate: int = 8000) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(number).integers(-(2**15), 2**15, 800).astype(np.int16)
    soundfile.write(path, data, rate, subtype="PCM_16")
    return data


def samples_of(out: Path):
    return list(read_shards([out / "*.tar"]))


@pytest.mark.parametrize("transform", [None, ToTensor()])
def test_pictures_of_torchvision_are_packed_without_loss(tmp_path, pictures, transform):
    dataset = ImageFolder(str(pictures), transform)
    source = DatasetSource(dataset, lambda item: members_of_picture(item, dataset.classes))
    packed = pack(source, tmp_path / "out", SIZE)
    assert (packed.num_samples, packed.num_rejected) == (6, 0)
    assert check_pack(tmp_path / "out")[1] == []
    for index, sample in enumerate(samples_of(tmp_path / "out")):
        path, number = dataset.samples[index]
        data = sample.inputs["image"]
        assert isinstance(data, bytes)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(path)).transpose(2, 0, 1))
        assert (sample.key, sample.caption) == (f"item_{index}", ("cat", "dog")[number])


def test_fake_data_is_packed(tmp_path):
    source = DatasetSource(FakeData(12, (3, 8, 8), 4), members_of_picture, "fake")
    assert pack(source, tmp_path / "out", SIZE).num_samples == 12
    samples = samples_of(tmp_path / "out")
    assert [s.key for s in samples] == [f"fake_{i:02d}" for i in range(12)]
    assert {s.caption for s in samples} <= set("0123")


def test_recordings_of_torchaudio_are_packed_without_loss(tmp_path):
    names = ["0_1_0_1_0_1_0_1", "1_1_0_0_0_0_1_1"]
    waves = [write_sound(tmp_path / "waves_yesno" / f"{n}.wav", i) for i, n in enumerate(names)]
    source = DatasetSource(YESNO(tmp_path), members_of_recording, "yesno")
    assert pack(source, tmp_path / "out", SIZE).num_samples == 2
    for sample, name, wave in zip(samples_of(tmp_path / "out"), names, waves, strict=True):
        data = sample.inputs["audio"]
        assert isinstance(data, bytes)
        assert np.array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], wave)
        assert sample.caption == name.replace("_", " ")


def test_librispeech_is_packed(tmp_path):
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    for number in range(2):
        write_sound(chapter / f"84-121123-000{number}.flac", number, 16_000)
    lines = "84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n"
    (chapter / "84-121123.trans.txt").write_text(lines)
    source = DatasetSource(LIBRISPEECH(tmp_path, "dev-clean"), members_of_recording)
    assert pack(source, tmp_path / "out", SIZE).num_samples == 2
    assert [s.caption for s in samples_of(tmp_path / "out")] == [
        line.partition(" ")[2] for line in lines.splitlines()
    ]


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    dataset = FakeData(40, (3, 8, 8), 4)
    pack(DatasetSource(dataset, members_of_picture), tmp_path / "whole", BySize(12_000))
    finish = Stage.finish_shard

    def finish_until(self, entry, mark):
        finish(self, entry, mark)
        if entry.name.endswith("2.tar"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stage, "finish_shard", finish_until)
        pack(DatasetSource(dataset, members_of_picture), tmp_path / "out", BySize(12_000))
    packed = pack(DatasetSource(dataset, members_of_picture), tmp_path / "out", BySize(12_000))
    assert packed.num_resumed == 3
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


class Fragile:
    """Item 1 cannot be loaded, 2 is no picture, 3 is of a mode that a PNG has not."""

    def __len__(self):
        return 5

    def __getitem__(self, index, /):
        if index == 1:
            raise OSError("the disk\nhas a scratch")
        if index == 2:
            return torch.zeros(7, 4, 4, dtype=torch.uint8), "seven channels"
        return Image.new("CMYK" if index == 3 else "RGB", (4, 4), (index,) * 3), f"number {index}"


def test_items_that_fail_are_rejected_one_by_one(tmp_path):
    packed = pack(DatasetSource(Fragile(), members_of_picture), tmp_path / "out", SIZE)
    assert (packed.num_read, packed.num_samples, packed.num_rejected) == (5, 2, 3)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert [r["source"] for r in rejected] == ["item:1", "item:2", "item:3"]
    assert rejected[0]["reason"] == "OSError (the disk has a scratch)"
    assert "shape (7, 4, 4)" in rejected[1]["reason"] and "mode CMYK" in rejected[2]["reason"]


def test_a_missing_package_ends_the_run(tmp_path, monkeypatch):
    write_sound(tmp_path / "waves_yesno" / "0_1_0_1_0_1_0_1.wav", 0)

    def missing(*_, **__):
        raise ImportError("TorchCodec is required for load.")

    monkeypatch.setattr(torchaudio, "load", missing)
    with pytest.raises(PackError, match="needs a package that is missing: TorchCodec"):
        pack(DatasetSource(YESNO(tmp_path), members_of_recording), tmp_path / "out", SIZE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_a_png_comes_back(mode):
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8) * 5
    image = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(pixels.astype(np.uint8))
    image = image if mode in ("I;16", "L") else image.convert(mode)
    back = Image.open(io.BytesIO(encode_picture(image)["png"]))
    assert back.mode == mode and np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (4, 5, 7)])
def test_every_shape_of_a_picture_comes_back(shape):
    picture = torch.randint(0, 256, shape, dtype=torch.uint8)
    back = np.asarray(Image.open(io.BytesIO(encode_picture(picture)["png"])))
    pixels = picture.movedim(0, -1) if len(shape) == 3 else picture
    assert np.array_equal(back.reshape(pixels.shape), pixels.numpy())


@pytest.mark.parametrize(
    ("bits", "extension"), [(16, "flac"), (24, "flac"), (32, "wav"), (64, "wav")]
)
def test_every_recording_comes_back(bits, extension):
    draw = torch.Generator().manual_seed(0)
    if bits < 32:
        levels = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 500), generator=draw)
        levels[0, :2] = torch.tensor([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
        wave = levels.float() / 2 ** (bits - 1)
    else:
        wave = torch.randn(2, 500, generator=draw, dtype=getattr(torch, f"float{bits}"))
    [(name, data)] = encode_recording(wave, 8000).items()
    back, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    assert (name, rate) == (extension, 8000)
    assert np.array_equal(back.T, wave.double().numpy())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: encode_picture(torch.full((3, 2, 2), 0.3)), "255ths"),
        (lambda: encode_picture(torch.full((3, 2, 2), 2.0)), "between 0 and 1"),
        (lambda: encode_picture(torch.zeros(2, 2, 2, dtype=torch.uint8)), "is no picture"),
        (lambda: encode_recording(torch.zeros(0), 8000), "of shape"),
        (lambda: encode_recording(torch.zeros(2, 2, dtype=torch.int64), 8000), "wanted floats"),
        (lambda: encode_recording(torch.zeros(9, 20), 8000), "FLAC takes no such recording"),
        (lambda: members_of_recording((torch.zeros(1, 9),)), "does not begin with a waveform"),
        (lambda: members_of_picture((Image.new("L", (1, 1)), 2.5)), "its target is a float"),
    ],
)
def test_what_has_no_lossless_file_is_refused(call, reason):
    with pytest.raises(EncodeError, match=reason):
        call()


def test_captions():
    assert encode_captions([]) == {}
    assert encode_captions(["a"]) == {"txt": b"a"}
    assert encode_captions(["a", "b"]) == {"txt": b"a", "json": b'{"captions": ["a", "b"]}'}
    picture = Image.new("RGB", (2, 2))
    assert set(members_of_picture((picture, ["a", "b"]))) == {"png", "txt", "json"}
    assert set(members_of_picture((picture, None))) == set(members_of_picture(picture)) == {"png"}


def test_the_command_packs_a_named_dataset(tmp_path, pictures, capsys):
    out = str(tmp_path / "out")
    command = ["pack", "torchvision:ImageFolder", "--root", str(pictures), "--out", out]
    assert main(command) == 0
    assert "Read 6 = packed 6 + rejected 0" in capsys.readouterr().out
    assert {s.caption for s in samples_of(tmp_path / "out")} == {"cat", "dog"}
    write_sound(tmp_path / "waves_yesno" / "0_1_0_1_0_1_0_1.wav", 0)
    command = ["pack", "torchaudio:YESNO", "--root", str(tmp_path), "--out", f"{out}2"]
    assert main(command) == 0 and len(samples_of(tmp_path / "out2")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:Nothing", "--root", "{}"], "torchvision has no dataset Nothing"),
        (["torchvision:os", "--root", "{}"], "torchvision has no dataset os"),
        (["torchvision:CIFAR10"], "give --root"),
        (["torchvision:CIFAR10", "--root", "{}"], "cannot be opened in {}: Dataset not found"),
        (["torchvision:CIFAR10", "--root", "{}", "--split", "odd"], "no split odd"),
        (["torchvision:SVHN", "--root", "{}", "--split", "odd"], "cannot be opened"),
        (["torchaudio:LIBRISPEECH", "--root", "{}", "--split", "odd"], "Invalid url 'odd'"),
        (["torchvision:ImageFolder", "--root", "{}", "--download"], "cannot download ImageFolder"),
        (["torchvision:ImageFolder", "--root", "{}/none"], "cannot be opened"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, capsys, arguments, message):
    """Nothing is downloaded: the sets are not there, and that is what is said."""
    arguments = [text.format(tmp_path) for text in arguments]
    assert main(["pack", *arguments, "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(tmp_path) in line and not (tmp_path / "out").exists()
