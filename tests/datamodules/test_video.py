import io
import struct

import av
import numpy as np
import pytest
import torch

from datamodules.decode import DecodeError, decode_video
from datamodules.decode import video as module
from datamodules.reasons import Reason

FORMATS = {  # name -> (codec, container, options of the container)
    "h264": ("libx264", "mp4", {}),
    "fragments": ("libx264", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "mpeg4": ("mpeg4", "mp4", {}),
    "vp8": ("libvpx", "webm", {}),
    "vp9": ("libvpx-vp9", "webm", {}),
}
WIDTH, HEIGHT, RATE = 96, 64, 10


def film(num_frames=40, name="h264", gop=12, width=WIDTH, height=HEIGHT, coder=None) -> bytes:
    """Frame i is grey 40 + 5 i on the left and black on the right, at 10 frames a second."""
    step = min(5, 200 // num_frames)
    codec, kind, options = FORMATS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=RATE, options=coder or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 4_000_000
        for index in range(num_frames):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:, : width // 2] = 40 + step * index
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def numbers(frames: torch.Tensor) -> list[int]:
    """Which frames of a `film` these are."""
    grey = frames[:, :, 8:-8, 8 : frames.shape[-1] // 2 - 8].float().mean((1, 2, 3))
    return ((grey - 40) / 5).round().int().tolist()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("gop", [1, 5, 100])
def test_frames_are_evenly_spaced(name, gop):
    frames, times = decode_video(film(name=name, gop=gop), num_frames=8)
    assert frames.shape == (8, 3, HEIGHT, WIDTH) and frames.dtype == torch.uint8
    assert frames.is_contiguous() and times.dtype == torch.float32
    expected = [2, 7, 12, 17, 22, 27, 32, 37]  # the middles of 5 frames each
    assert numbers(frames) == expected
    assert torch.allclose(times, torch.tensor(expected) / RATE, atol=2e-3)
    assert frames[..., WIDTH // 2 + 8 :].float().mean() < 20


@pytest.mark.parametrize("num_frames", [1, 3, 16])
def test_a_short_video_gives_each_frame_once(num_frames):
    frames, times = decode_video(film(num_frames))
    assert numbers(frames) == list(range(num_frames))
    assert times.tolist() == pytest.approx([i / RATE for i in range(num_frames)], abs=1e-4)
    assert numbers(decode_video(film(30), num_frames=1)[0]) == [15]


@pytest.mark.parametrize(
    "coder",
    [
        {},
        {"bf": "3", "flags": "-cgop"},
        {"x264-params": "open-gop=1"},
        {"x264-params": "bframes=8:b-pyramid=2"},
    ],
)
@pytest.mark.parametrize("name", ["h264", "vp9"])
def test_skipping_frames_changes_nothing(name, coder, monkeypatch):
    data = film(200, name, gop=10, coder=coder if name == "h264" else {})
    skipped = decode_video(data, num_frames=4)
    original = module._frames
    monkeypatch.setattr(module, "_runs", lambda packets, chosen: [[p for _, p in packets]])
    monkeypatch.setattr(  # every frame counts as chosen
        module, "_frames", lambda stream, run, chosen: original(stream, run, {p.pts for p in run})
    )
    whole = decode_video(data, num_frames=4)
    assert torch.equal(skipped[0], whole[0]) and torch.equal(skipped[1], whole[1])


def test_only_groups_with_a_chosen_frame_are_decoded(monkeypatch):
    counted = []
    original = module._frames
    monkeypatch.setattr(
        module,
        "_frames",
        lambda stream, run, chosen: counted.append(len(run)) or original(stream, run, chosen),
    )
    decode_video(film(200, gop=10), num_frames=4)
    assert 4 <= sum(counted) <= 80


@pytest.mark.parametrize(("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1))])
def test_a_rotation_is_applied(degrees, matrix):
    data = film(4)
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 44
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frames, _ = decode_video(data[:at] + turned + data[at + 36 :])
    upright = decode_video(data)[0]
    clockwise = degrees // 90
    assert torch.equal(frames, upright.rot90(-clockwise, (2, 3)))


@pytest.mark.parametrize("name", ["h264", "vp9"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_video_is_refused(name, share):
    data = film(name=name)
    with pytest.raises(DecodeError, match="truncated") as caught:
        decode_video(data[: int(share * len(data))])
    assert caught.value.reason is Reason.DAMAGED


@pytest.mark.parametrize("name", ["h264", "vp8", "mpeg4"])
def test_only_our_error_escapes_mutated_videos(name):
    random = np.random.default_rng(0)
    data = np.frombuffer(film(20, name=name), np.uint8)
    outcomes = {"decoded": 0, "refused": 0}
    for _ in range(60):
        mutated = data.copy()
        mutated[random.integers(12, len(data), size=8)] = random.integers(0, 256, size=8)
        try:
            decode_video(mutated.tobytes())
            outcomes["decoded"] += 1
        except DecodeError as error:
            assert "_io" not in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20


def test_limits_are_what_refuses():
    data = film(40)
    size = 16 * 3 * WIDTH * HEIGHT
    assert len(decode_video(data, max_pixels=WIDTH * HEIGHT, max_seconds=4.0, max_bytes=size)[0])
    for limits, reason in (
        ({"max_pixels": WIDTH * HEIGHT - 1}, Reason.TOO_MANY_PIXELS),
        ({"max_seconds": 3.9}, Reason.TOO_LONG),
        ({"max_bytes": size - 1}, Reason.TOO_LARGE),
    ):
        with pytest.raises(DecodeError, match="limit") as caught:
            decode_video(data, **limits)
        assert caught.value.reason is reason


def test_a_header_that_lies_of_its_size_and_length():
    """The claims of the header are small; what is in the video is not."""
    data = bytearray(film(40))
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    assert struct.unpack(">HH", data[at : at + 4]) == (WIDTH, HEIGHT)
    data[at : at + 4] = struct.pack(">HH", 16, 16)
    with pytest.raises(DecodeError):
        decode_video(bytes(data), max_pixels=WIDTH * HEIGHT - 1)
    data = bytearray(film(40))
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = data.index(box) + offset
        data[at : at + 4] = struct.pack(">I", 1)
    with pytest.raises(DecodeError, match="lasts 4 s"):
        decode_video(bytes(data), max_seconds=3.0)


@pytest.mark.parametrize(
    ("name", "before", "forged"),
    [
        ("h264", b"stts" + bytes(7) + b"\1" + struct.pack(">I", 4), b"\x3f\xff\xff\xff"),
        ("vp9", b"\x44\x89\x88", struct.pack(">d", 1e12)),  # EBML: Duration, 8 bytes
    ],
)
def test_an_absurd_duration_is_refused(name, before, forged):
    data = bytearray(film(4, name=name))
    at = data.index(before) + len(before)
    data[at : at + len(forged)] = forged
    with pytest.raises(DecodeError, match="s, more than the limit of 600"):
        decode_video(bytes(data))


def test_work_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_DECODED", WIDTH * HEIGHT * 30)
    with pytest.raises(DecodeError, match="have to be decoded"):
        decode_video(film(40, gop=100))
    assert len(decode_video(film(40, gop=2), num_frames=4)[0]) == 4


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def other_codec() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "reason", "message"),
    [
        (lambda: b"", Reason.EMPTY, "this file is empty, not a video"),
        (lambda: b"hello", Reason.WRONG_FORMAT, "this file is text"),
        (lambda: b"\0\0\0\x20ftypavif" + bytes(64), Reason.WRONG_FORMAT, "AVIF"),
        (lambda: b"#EXTM3U\nfile:///etc/passwd", Reason.WRONG_FORMAT, "this file is text"),
        (lambda: b"\0\0\0\x10ftypisom" + bytes(4), Reason.DAMAGED, "damaged"),
        (lambda: b"\x1aE\xdf\xa3" + bytes(64), Reason.DAMAGED, "damaged"),
        (sound_only, Reason.WRONG_FORMAT, "holds no video"),
        (other_codec, Reason.WRONG_FORMAT, "coded as mjpeg"),
    ],
)
def test_other_files_are_refused(make, reason, message):
    with pytest.raises(DecodeError, match=message) as caught:
        decode_video(make())
    assert caught.value.reason is reason
