"""Everything here needs a CUDA GPU, and is skipped without one."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from datamodules.writer import write_shard

# What is judged on the CPU as well.
pytest.register_assert_rewrite(
    "tests.fusion.test_parity", "tests.fusion.tasks.test_ranks", "tests.fusion.tasks.test_sharding"
)

NUM_SAMPLES = 96


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(autouse=True)
def _float32_in_full(monkeypatch):
    """Convolutions as exact as products of matrices are by default: no TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def shard(tmp_path_factory) -> str:
    """Pictures, captions and sounds that tell of the same: a colour, a place and a note."""
    samples = []
    for index in range(NUM_SAMPLES):
        red, place, note = index % 6, index // 6 % 4, index // 24
        words = [("dark", "dim", "pale", "clear", "bright", "white")[red], "square"]
        words += [("left", "right", "above", "below")[place], f"note {note}"]
        members = {
            "png": _picture(40 * red + 40, place, note),
            "wav": _tone(200 * 2 ** (note + red / 6), 0.5 + 0.5 * place),
            "txt": " ".join(words).encode(),
        }
        samples.append((f"s{index:02d}", members))
    path = tmp_path_factory.mktemp("shards") / "notes-000000.tar"
    write_shard(samples, path)
    return str(path)


def _picture(level: int, place: int, note: int) -> bytes:
    picture = Image.new("RGB", (32, 32), (0, 60 * note, 60))
    left, top = 16 * (place % 2), 16 * (place // 2)
    picture.paste((level, 40, 255 - level), (left, top, left + 16, top + 16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _tone(hertz: float, seconds: float) -> bytes:
    buffer = io.BytesIO()
    time = np.arange(int(8000 * seconds)) / 8000
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * hertz * time), 8000, format="WAV")
    return buffer.getvalue()
