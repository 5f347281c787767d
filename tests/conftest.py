"""What all tests share: one thread, no network, the same random numbers."""

import os

# Before torch is imported, here and in the processes that tests start: the suite runs two workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from datamodules.writer import write_shard

torch.set_num_threads(1)

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "grey": (128,) * 3}
THINGS = ("ball", "boat", "tree", "house")


@pytest.fixture(autouse=True)
def _seeded(request):
    """A seed for each test, so that none depends on those before it, nor repeats their draws."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def tiny_shard(tmp_path_factory) -> Path:
    """16 pictures with captions, the first 8 with half a second of sound too."""
    samples = []
    for index, (colour, thing) in enumerate((c, t) for t in THINGS for c in COLOURS):
        members = {
            "png": _picture(COLOURS[colour], index),
            "txt": f"A {colour} {thing}.".encode(),
            "json": json.dumps({"source": "tiny"}).encode(),
        }
        if index < 8:
            members["wav"] = _tone(220 * 2 ** (index / 12))
        samples.append((f"s{index:02d}", members))
    path = tmp_path_factory.mktemp("shards") / "tiny-000000.tar"
    write_shard(samples, path)
    return path


def _picture(colour: tuple[int, ...], index: int) -> bytes:
    picture = Image.new("RGB", (32, 32), (255, 255, 255))
    picture.paste(colour, (2 + index % 4, 4, 20 + index % 7, 28))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _tone(hertz: float) -> bytes:
    buffer = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(8000) / 16000)
    soundfile.write(buffer, wave, 16000, format="WAV")
    return buffer.getvalue()
