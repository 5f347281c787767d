import pytest
import torch
from torch import Tensor

from encoders import EfficientNetLite, LogMelEncoder, OpenClipImage
from encoders.picture import FitPicture, RandomCrop
from encoders.video import EachFrame, FrameEncoder, Video, sample_frames, stamp, unstamp

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8},
}


def video(*times: float, size: tuple[int, int] = (20, 30)) -> Video:
    frames = torch.arange(len(times), dtype=torch.uint8).view(-1, 1, 1, 1)
    return frames.expand(-1, 3, *size).contiguous(), torch.tensor(times)


def encode(encoder, raw: Video):
    inputs = encoder.transform(raw)[None]
    return encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))


def test_a_frame_is_kept_of_each_period():
    frames, times = sample_frames(video(*[i / 30 for i in range(60)]), fps=5, max_seconds=10)
    torch.testing.assert_close(times, torch.arange(10) / 5)
    assert frames[:, 0, 0, 0].tolist() == list(range(0, 60, 6))


def test_uneven_and_sparse_frames_keep_their_times():
    times = [0.5, 0.52, 0.9, 4.0, 4.1, 9.0]
    kept = sample_frames(video(*times), fps=2, max_seconds=100)[1]
    assert kept.tolist() == pytest.approx([0.5, 4.0, 9.0])
    assert len(sample_frames(video(*times), fps=100, max_seconds=100)[1]) == 6
    assert sample_frames(video(*times), fps=100, max_seconds=3.6)[1].max() == pytest.approx(4.0)


def test_the_same_rate_keeps_every_frame():
    for fps in (24.0, 25.0, 29.97, 30.0, 60.0):
        times = [i / fps for i in range(500)]
        assert len(sample_frames(video(*times, size=(1, 1)), fps, max_seconds=1e3)[1]) == 500


def test_a_random_start_is_on_the_same_clock():
    raw, starts = video(*[i / 10 for i in range(100)]), set()
    for _ in range(20):
        frames, times = sample_frames(raw, fps=10, max_seconds=2.0, random_start=True)
        torch.testing.assert_close(times, frames[:, 0, 0, 0] / 10)
        assert 19 <= len(times) <= 20
        starts.add(float(times[0]))
    assert len(starts) > 5
    short = sample_frames(video(0.0, 0.1), fps=10, max_seconds=2.0, random_start=True)
    assert short[1].tolist() == pytest.approx([0.0, 0.1])


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (torch.zeros(2, 3, 4, 4), [0.0, 1.0], "uint8 RGB"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), [0.0, 1.0], "uint8 RGB"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), [], "uint8 RGB"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0.0], "as many times"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [1.0, 1.0], "rising"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [-1.0, 1.0], "0 or later"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [float("nan")], "rising"),
    ],
)
def test_what_is_no_video_is_refused(frames: Tensor, times: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        sample_frames((frames, torch.tensor(times)), fps=1, max_seconds=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_stamps_bring_values_and_times_back(dtype: torch.dtype):
    values, seconds = (9 * torch.randn(4, 3, 5)).to(dtype), torch.rand(4) * 1e4
    stamped = stamp(values, seconds)
    assert stamped.dtype == torch.uint8 and stamped.ndim == 2
    body, times = unstamp(stamped)
    assert torch.equal(times, seconds)
    assert torch.equal(body.view(dtype).view(4, 3, 5), values)


def test_tokens_are_those_of_the_image_tower_at_the_times_of_the_frames():
    image = OpenClipImage(TINY_CLIP, train="scratch").eval()
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 3, 40, 50), dtype=torch.uint8, generator=draw)
    times = torch.tensor([0.25, 1.0, 1.75, 6.5])
    out = encode(FrameEncoder(image, fps=10.0).eval(), (frames, times))
    tokens = out.values.unflatten(1, (4, -1))
    for index, frame in enumerate(frames):
        alone = image(image.transform(frame)[None], torch.ones(1, 1, dtype=torch.bool))
        torch.testing.assert_close(tokens[0, index], alone.values[0], atol=1e-5, rtol=1e-5)
        place = out.position.unflatten(1, (4, -1))[0, index]
        assert (place[:, 0] == times[index]).all()
        assert torch.equal(place[:, 1:], alone.position[0, :, 1:])


def test_it_trains_as_the_tower_does():
    frozen = FrameEncoder(EfficientNetLite(size=64, grid=1))
    assert frozen.frozen and not any(p.requires_grad for p in frozen.parameters())
    free = FrameEncoder(EfficientNetLite(size=64, grid=1, train="scratch"))
    assert not free.frozen and all(p.requires_grad for p in free.parameters())


def test_all_frames_are_cropped_alike_in_training():
    encoder = FrameEncoder(OpenClipImage(TINY_CLIP, train="scratch"), fps=10.0)
    draw = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=draw)
    still = frame.expand(3, -1, -1, -1), torch.tensor([0.0, 0.5, 1.0])
    crop = EachFrame(RandomCrop((32, 32)), 10.0, 10.0)
    for transform in (encoder.augment, crop):
        bodies, _ = unstamp(transform(still))
        assert (bodies == bodies[:1]).all()
    assert not torch.equal(crop(still), crop(still))  # but anew for each video
    assert torch.equal(encoder.transform(still), encoder.transform(still))


def test_a_tower_that_makes_several_pictures_is_refused():
    def two(frame: Tensor) -> Tensor:
        return FitPicture((8, 8))(frame).repeat(2, 1, 1, 1)

    with pytest.raises(ValueError, match="makes 2 pictures"):
        EachFrame(two, 1.0, 1.0)(video(0.0))
    with pytest.raises(ValueError, match="above 0"):
        FrameEncoder(EfficientNetLite(size=64, grid=1), fps=0)


def test_the_sound_of_a_video_shares_its_clock():
    """A flash and a clap at 1.6 s: the tokens that first know of them have one time."""
    frames, times = video(*[i / 20 for i in range(60)])
    frames = torch.where(times < 1.6 - 1e-3, 0, 255).to(torch.uint8).view(-1, 1, 1, 1) + 0 * frames
    waveform = torch.zeros(1, 3 * 16_000)
    waveform[:, int(1.6 * 16_000) :] = 0.5 * torch.randn(int(1.4 * 16_000))
    seen = encode(
        FrameEncoder(OpenClipImage(TINY_CLIP, train="scratch").eval(), fps=20.0), (frames, times)
    )
    heard = encode(LogMelEncoder(dim=16, num_blocks=0).eval(), (waveform, 16_000))
    pictures = seen.values[0].unflatten(0, (60, -1)).flatten(1)
    flash = int(pictures.diff(dim=0).norm(dim=1).argmax()) + 1
    assert float(seen.position[0].unflatten(0, (60, -1))[flash, 0, 0]) == pytest.approx(1.6)
    inside = slice(2, -2)  # the ends of a recording are changes, too
    clap = int(heard.values[0, inside].diff(dim=0).norm(dim=1).argmax()) + 3
    assert float(heard.position[0, clap, 0]) == pytest.approx(1.6, abs=0.17)  # a token is 160 ms
