"""Stamps: pictures and speech, noisy ones too, find captions never trained on.

The sample data's stamps: a picture through its frozen tower, French speech as 160 ms of log-mel
frames to a token, no tower at all. Split by caption and recording. In three of the tests there is
noise that no training showed: on the picture's tokens, of once and twice their own strength, or
white noise as loud as the speech.

Shapes: B batch, S samples, N tokens, F frames, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmarks.ablation.frozen import Towers, fit_space, into
from benchmarks.ablation.fusions import THREE, Part
from benchmarks.ablation.retrieval import Batch, Task, nothing, take
from datamodules.decoding import decode_samples
from datamodules.samples import Sample
from datamodules.shards import read_shards
from encoders import LogMelEncoder
from fusion.alignment import LinearMap

SHARD = Path(__file__).parents[2] / "datamodules/sample_data/stamps-000000.tar.gz"
BATCH, STEPS, SECONDS, FRAMES = 32, 150, 4.0, 8  # frames of 20 ms in a token
HELD_CAPTIONS = 120
NOISES = {"clean": 0.0, "noise 1": 1.0, "noise 2": 2.0}  # on the picture
NOISY_SPEECH = "speech at 0 dB"
TESTS = (*NOISES, NOISY_SPEECH)


def task(shard: Path, tokens: Path, steps: int = STEPS) -> Task:
    """Trained on the stamps that have speech, all captions but 120."""
    samples = [s for s in read_shards(str(shard)) if {"image", "audio"} <= s.inputs.keys()]
    raw: list[Any] = [sample.inputs for sample in decode_samples(samples)]
    captions = [sample.caption for sample in samples]
    towers, names = Towers(tokens), sorted(set(captions))
    image = towers.see([s.key for s in samples], lambda index: raw[index]["image"])
    clips = [sample["audio"] for sample in raw]
    text, clean, noisy = towers.read(names), _sound(clips), _sound(_with_noise(clips))
    which = torch.tensor([names.index(caption) for caption in captions])
    held = torch.zeros(len(names), dtype=torch.bool)
    held[torch.randperm(len(names), generator=Generator().manual_seed(0))[:HELD_CAPTIONS]] = True
    tested = held[which]
    trained = torch.nonzero(~tested & ~shared(samples, tested)).flatten()
    row = torch.cumsum(~held, 0) - 1
    seen = Part(*(column[trained] for column in image))
    known = Part(*(column[~held] for column in text))
    space = fit_space(known, {"image": (seen, row[which[trained]])}, THREE.dim)
    image, text = into(image, space.other["image"]), into(text, space.text)
    onto = _principal(clean.values[trained][clean.mask[trained]], THREE.dim)
    clean, noisy = into(clean, onto), into(noisy, onto)

    def batch(index: Tensor, noise: float, audio: Part = clean) -> Batch:
        empty = nothing(len(index), THREE.dim)
        shown = take(image, index)
        values = torch.randn(shown.values.shape, generator=Generator().manual_seed(1))
        shown = shown._replace(values=shown.values + noise * THREE.dim**-0.5 * values)
        target = [empty, empty, take(text, which[index])]
        return Batch([shown, take(audio, index), empty], target, which[index], which[index])

    def draw(generator: Generator) -> Batch:
        return batch(trained[torch.randperm(len(trained), generator=generator)[:BATCH]], 0.0)

    test = torch.nonzero(tested).flatten()
    tests = {name: batch(test, noise) for name, noise in NOISES.items()}
    tests[NOISY_SPEECH] = batch(test, 0.0, noisy)
    return Task(draw, tests, {0: "image", 1: "speech"}, THREE, steps)


def shared(samples: Sequence[Sample], tested: Tensor) -> Tensor:
    """(S,) bool, whether the words or the recording of a sample are those of one that is tested.

    Some stamps have one recording for two captions, and some captions differ in a mark only.
    """
    words = ["".join(c for c in s.caption.lower() if c.isalnum()) for s in samples]
    sounds = [s.inputs["audio"] for s in samples]
    named = {word for word, is_tested in zip(words, tested.tolist(), strict=True) if is_tested}
    heard = {sound for sound, is_tested in zip(sounds, tested.tolist(), strict=True) if is_tested}
    pairs = zip(words, sounds, strict=True)
    return torch.tensor([word in named or sound in heard for word, sound in pairs])


def _with_noise(clips: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    """White noise of the power of each clip added to it: 0 dB."""
    noise = Generator().manual_seed(2)
    return [
        (clip + clip.square().mean().sqrt() * torch.randn(clip.shape, generator=noise), rate)
        for clip, rate in clips
    ]


def _sound(clips: list[tuple[Tensor, int]]) -> Part:
    """Log-mel frames side by side (S, N, FRAMES * bands)."""
    listen = LogMelEncoder(max_seconds=SECONDS).transform
    tokens = []
    for clip in clips:
        frames = listen(clip)
        frames = F.pad(frames, (0, 0, 0, -len(frames) % FRAMES))
        tokens.append(frames.unflatten(0, (-1, FRAMES)).flatten(1))
    length = torch.tensor([len(token) for token in tokens])
    mask = torch.arange(int(length.max())) < length[:, None]
    position = torch.zeros(*mask.shape, 3)
    position[..., 0] = torch.arange(mask.shape[1]) * FRAMES * 0.02
    return Part(torch.nn.utils.rnn.pad_sequence(tokens, True), mask, position)


def _principal(rows: Tensor, dim: int) -> LinearMap:
    """Onto the principal directions of rows (R, E)."""
    center = rows.mean(0)
    _, _, directions = torch.linalg.svd(rows - center, full_matrices=False)
    return LinearMap(directions[:dim], center, torch.zeros(dim))
