"""Video, its sound and a sensor beside it, from files to a trained model, in one config."""

import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from datamodules.decode import decode_audio, decode_video
from datamodules.writer import write_shard
from encoders import FrameEncoder, LogMelEncoder, ViT
from fusion import Pipeline
from fusion.cli.main import main

ROOT = Path(__file__).parent.parent
RATE, FPS, SECONDS = 16_000, 10, 2
ENCODERS = """
video:
  class_path: FrameEncoder
  init_args: {fps: 2.0, image: {class_path: ViT, init_args: {dim: 32, num_heads: 2, size: 32}}}
audio: {class_path: AudioTransformer, init_args: {dim: 32, depth: 1}}
sensor: {class_path: SensorEncoder, init_args: {num_channels: 3, dim: 32, depth: 1}}
text: {class_path: TextTransformer, init_args: {dim: 32, num_layers: 1, num_heads: 2}}
"""


def mp4(flash: float) -> bytes:
    """A black picture, which turns white at `flash` seconds."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(FPS * SECONDS):
            bright = 255 * (index / FPS >= flash)
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), bright, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav(clap: float) -> bytes:
    """Silence, and noise from `clap` seconds on."""
    wave = np.random.default_rng(0).normal(size=RATE * SECONDS) * 0.2
    wave[: int(clap * RATE)] = 0
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV")
    return file.getvalue()


def npy(index: int) -> bytes:
    values = np.random.default_rng(index).normal(size=(90 + index, 3)).astype(np.float32)
    values[5:20, 1] = math.nan
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("media") / "media-000000.tar"
    samples = []
    for index in range(12):
        when = 0.5 + index % 3 / 2
        members = {"txt": f"It happens after {when} s.".encode(), "mp4": mp4(when)}
        if index % 2:
            members["wav"] = wav(when)
        if index % 3:
            members["npy"] = npy(index)
        samples.append((f"m{index:02d}", members))
    write_shard(samples, path)
    return path


def test_a_config_trains_on_all_of_them(shard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs/scratch.yaml").read_text())
    config["model"]["init_args"]["model"]["encoders"] = yaml.safe_load(ENCODERS)
    (tmp_path / "media.yaml").write_text(yaml.safe_dump(config))
    args = [f"--data.train=['{shard}']", "--trainer.max_epochs=1", "--data.held_out=2"]
    assert main(["fit", "--config", "media.yaml", *args]) == 0
    pipeline = Pipeline.from_run(tmp_path / "runs/scratch")
    video, sound = decode_video(mp4(1.0)), decode_audio(wav(1.0))
    rows = pipeline.encode([{"video": video, "audio": sound}, {"video": video}, {"text": "It."}])
    assert rows.shape == (3, 64) and rows.isfinite().all()
    assert (rows[0] - rows[1]).norm() > 1e-3


def test_a_flash_and_its_clap_have_one_time():
    """From real files: the tokens of both tracks change at one second of one clock."""
    (frames, times), sound = decode_video(mp4(1.2), num_frames=100), decode_audio(wav(1.2))
    seen = FrameEncoder(ViT(32, 1, 2, 32), fps=FPS).eval()
    heard = LogMelEncoder(dim=32, num_blocks=0).eval()
    for encoder, raw, width in ((seen, (frames, times), 4), (heard, sound, 1)):
        inputs = encoder.transform(raw)[None]
        out = encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))
        assert len(inputs[0]) in (FPS * SECONDS, 50 * SECONDS + 1)
        steps = out.values[0].unflatten(0, (-1, width)).flatten(1)
        change = int(steps[2:-2].diff(dim=0).norm(dim=1).argmax()) + 3
        assert float(out.position[0, change * width, 0]) == pytest.approx(1.2, abs=0.17)
