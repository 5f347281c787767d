"""Shards of made-up pictures, recordings and videos, about as large as real ones.

Letters: H height, W width, T samples or frames.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from datamodules.manifest import describe_shard, write_manifest
from datamodules.writer import write_shard

PHOTO, SMALL, FRAME = (480, 640), (128, 128), (360, 640)  # H, W
SECONDS, RATE, FPS = 10, 48_000, 30
CAPTION = "two small dogs in an old street under a red tree"
Member = tuple[str, bytes]


def write_shards(
    folder: Path, make: Callable[[np.random.Generator], Member], sizes: tuple[int, int, int]
) -> list[str]:
    """Writes shards with captions and a manifest.

    Args:
        folder: for the files.
        make: one member other than the caption: extension and bytes.
        sizes: number of shards, of samples in each, and of different members in all.

    Returns:
        Paths of the shards.
    """
    draw, (num_shards, num_samples, num_different) = np.random.default_rng(0), sizes
    members = [make(draw) for _ in range(num_different)]
    paths = []
    for shard in range(num_shards):
        samples = []
        for row in range(num_samples):
            extension, data = members[(shard * num_samples + row) % num_different]
            caption = f"{CAPTION} {shard} {row}".encode()
            samples.append((f"s{shard:03d}{row:04d}", {extension: data, "txt": caption}))
        paths.append(folder / f"{shard:04d}.tar")
        write_shard(samples, paths[-1])
    write_manifest([describe_shard(path)[0] for path in paths], folder / "manifest.json")
    return [str(path) for path in paths]


def photo(draw: np.random.Generator) -> Member:
    """A picture of 640 x 480 pixels, some 80 kB of JPEG."""
    return "jpg", _encoded(_scene(draw, PHOTO, 5), "JPEG", quality=90)


def small_picture(draw: np.random.Generator) -> Member:
    """A picture of 128 x 128 pixels."""
    return "webp", _encoded(_scene(draw, SMALL, 2), "WEBP", quality=90)


def opus(draw: np.random.Generator) -> Member:
    """Ten seconds of noise and tones in mono."""
    return "opus", _sound(draw, 1, "OGG", "OPUS")


def flac(draw: np.random.Generator) -> Member:
    """Ten seconds of noise and tones in stereo."""
    return "flac", _sound(draw, 2, "FLAC", "PCM_16")


def video(draw: np.random.Generator) -> Member:
    """Ten seconds of H.264, 640 x 360 at 30 frames a second: a camera that moves over a scene."""
    import av

    height, width = FRAME
    scene = _scene(draw, (height + 300, width + 300), 5)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", FPS, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for at in range(SECONDS * FPS):
            frame = np.ascontiguousarray(scene[at : at + height, at : at + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return "mp4", buffer.getvalue()


def _scene(draw: np.random.Generator, size: Sequence[int], noise: float) -> np.ndarray:
    """Smooth random fields of three scales, and noise: (H, W, 3) uint8."""
    height, width = size
    scene = draw.normal(0, noise, (height, width, 3))
    for scale, share in ((4, 0.5), (16, 0.3), (64, 0.2)):
        grid = draw.integers(0, 256, (scale * 3 // 4, scale, 3), dtype=np.uint8)
        field = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        scene += share * np.asarray(field)
    return scene.clip(0, 255).astype(np.uint8)


def _encoded(scene: np.ndarray, form: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, form, quality=quality)
    return buffer.getvalue()


def _sound(draw: np.random.Generator, num_channels: int, form: str, subtype: str) -> bytes:
    time = np.arange(SECONDS * RATE) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * time) for hertz in draw.uniform(80, 4000, 5))
    noise = draw.normal(0, 0.3, (len(time), num_channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * (np.asarray(tones)[:, None] + noise), RATE, subtype, format=form)
    return buffer.getvalue()
