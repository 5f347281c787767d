import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image


@pytest.fixture
def make_shard(tmp_path):
    """Write (member name, bytes) pairs to a real shard, in order; `.gz` names are packed."""

    def make(members, name="a.tar") -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz" if name.endswith(".gz") else "w") as archive:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 6 x 4 picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def wav() -> bytes:
    """0.1 s of stereo noise at 8 kHz."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=(800, 2)) * 0.1
    soundfile.write(buffer, noise, 8000, format="WAV")
    return buffer.getvalue()
