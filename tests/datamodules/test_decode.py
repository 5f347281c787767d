import io
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms, ImageOps

from datamodules.decode import (
    DECODERS,
    DecodeError,
    decode_audio,
    decode_image,
    decode_metadata,
    decode_text,
)
from datamodules.reasons import Reason


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def record(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", subtype=None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def claiming(width: int, height: int, depth=1, colour=0, rows: bytes = bytes(100)) -> bytes:
    """A PNG of any header and data, which need not fit together."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A smooth 48 x 32 picture without symmetry."""
    y, x = np.mgrid[0:32, 0:48]
    return Image.fromarray(np.stack([5 * x, 7 * y, 3 * x + 3 * y], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def tone() -> np.ndarray:
    time = np.arange(16000) / 16000
    return np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time)], -1) * 0.5


@pytest.mark.parametrize(
    ("kind", "options", "largest"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 20),
        ("JPEG", {"quality": 95}, 20),
    ],
)
def test_image_formats(scene, kind, options, largest):
    pixels = decode_image(encode(scene, kind, **options))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 48)
    assert (pixels.int() - pixels_of(scene).int()).abs().max() <= largest


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(scene, kind, orientation):
    data = encode(scene, kind, exif=turned(orientation))
    with Image.open(io.BytesIO(data)) as stored:
        upright = pixels_of(ImageOps.exif_transpose(stored))
        assert (orientation == 1) == torch.equal(upright, pixels_of(stored))
    assert (decode_image(data).int() - upright.int()).abs().max() <= 3


def test_sixteen_bits_become_eight():
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = decode_image(encode(Image.fromarray(ramp), "PNG"))
    assert abs(pixels.float().mean() - 127.5) < 1 and len(pixels.unique()) == 256


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_become_eight(colour, channels):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1).repeat(channels, 2)
    ramp[..., 3:] = 65535
    ramp[..., 1::channels] = 65535 if channels == 2 else ramp[..., 1::channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    pixels = decode_image(claiming(64, 64, 16, colour, rows))
    assert pixels.dtype == torch.uint8 and abs(pixels[0].float().mean() - 127.5) < 1
    assert len(pixels[0].unique()) == 256


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode):
    red = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    red.paste((0, 0, 0, 255), (0, 0, 4, 4))
    options = {"transparency": 0} if mode == "P" else {}
    image = red.convert(mode)
    if mode == "P":
        image = Image.new("P", (8, 4), 0)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.paste(1, (0, 0, 4, 4))
    pixels = decode_image(encode(image, "PNG", **options))
    assert (pixels[:, :, :4] == 0).all() and (pixels[:, :, 4:] == 255).all()


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (255, 0, 0)), ("L", 76)])
def test_a_transparent_colour_is_white(mode, clear):
    image = Image.new(mode, (8, 4), clear)
    assert (decode_image(encode(image, "PNG", transparency=clear)) == 255).all()
    assert not (decode_image(encode(image, "PNG")) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_modes_become_rgb(scene, mode):
    image = scene.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    options = {"quality": 95} if kind == "JPEG" else {}
    difference = decode_image(encode(image, kind, **options)).float() - pixels_of(image)
    assert difference.abs().mean() < 2


def test_cmyk_is_what_pillow_makes_of_it(scene):
    data = encode(scene.convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK"
        assert torch.equal(decode_image(data), pixels_of(stored))
    assert (decode_image(data).float() - pixels_of(scene).float()).abs().mean() < 4


def test_a_colour_profile_is_ignored(scene):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = encode(scene, "PNG", icc_profile=profile)
    assert b"iCCP" in with_profile
    assert torch.equal(decode_image(with_profile), decode_image(encode(scene, "PNG")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_single_pixel_is_refused(kind):
    with pytest.raises(DecodeError, match="single pixel") as caught:
        decode_image(encode(Image.new("RGB", (1, 1)), kind))
    assert caught.value.reason is Reason.TOO_FEW_PIXELS
    assert decode_image(encode(Image.new("RGB", (2, 1)), kind)).shape == (3, 1, 2)


def test_a_picture_of_scans_without_end_is_refused(scene):
    data = encode(scene, "JPEG", progressive=True)
    assert decode_image(data).shape == (3, 32, 48)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(DecodeError, match="more than 100 scans"):
        decode_image(data[:-2] + data[scan:-2] * 100 + data[-2:])


def test_animation_gives_its_first_frame(scene):
    other = ImageOps.mirror(scene)
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        data = encode(scene, kind, save_all=True, append_images=[other], **options)
        distances = [
            (decode_image(data).float() - pixels_of(i)).abs().mean() for i in (scene, other)
        ]
        assert distances[0] < 10 < distances[1]


@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(size):
    tracemalloc.start()
    with pytest.raises(DecodeError, match="claims"):
        decode_image(claiming(*size))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_pixel_limit_is_what_refuses(scene):
    data = encode(scene, "PNG")
    assert decode_image(data, max_pixels=32 * 48).shape == (3, 32, 48)
    with pytest.raises(DecodeError, match="claims 48 x 32 pixels, more than the limit of 1535"):
        decode_image(data, max_pixels=32 * 48 - 1)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": turned(3)}])
def test_webp_size_is_read_without_opening(scene, options):
    with pytest.raises(DecodeError, match="claims 48 x 32"):
        decode_image(encode(scene, "WEBP", **options), max_pixels=100)


def test_a_webp_canvas_is_not_allocated_before_its_check(scene):
    data = bytearray(encode(scene, "WEBP", exif=turned(1)))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\xff\0\xff\x3f\0"
    with pytest.raises(DecodeError, match="claims 65536 x 16384 pixels"):
        decode_image(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pillow_tries_the_sniffed_format_only(scene, kind, monkeypatch):
    tried = []
    original = Image.open

    def spy(file, mode="r", formats=None):
        tried.append(formats)
        return original(file, mode, formats)

    monkeypatch.setattr(Image, "open", spy)
    decode_image(encode(scene, kind))
    assert tried == [[kind]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_truncated_picture_is_refused(scene, kind):
    data = encode(scene, kind)
    whole, num_read = decode_image(data), 0
    for cut in range(12, len(data)):
        try:
            assert torch.equal(decode_image(data[:cut]), whole)  # only check sums are missing
            num_read += 1
        except DecodeError as error:
            assert str(error).startswith(f"this {kind} picture is damaged")
            assert "0x" not in str(error) and "\n" not in str(error)
    assert num_read <= 16


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "empty"),
        (b"not a picture at all", "text"),
        ("é".encode() * 400, "text"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "PostScript data"),
        (b"%!PS-AdoWEBP EPSF-3.0", "PostScript data"),
        (b"II*\0" + bytes(64), "TIFF data"),
        (b"fLaC" + bytes(64), "FLAC data"),
        (bytes(64), "an unknown format"),
    ],
)
def test_other_files_are_named_not_opened(data, got):
    with pytest.raises(DecodeError, match=f"this file is {got}, not a picture"):
        decode_image(data)


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "FLOAT", 1e-6),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.2),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_audio_formats(tone, kind, subtype, error):
    waveform, rate = decode_audio(record(tone, 16000, kind, subtype))
    assert waveform.dtype == torch.float32 and waveform.shape == (2, 16000) and rate == 16000
    middle = slice(4000, 12000)
    assert (waveform[:, middle] - torch.tensor(tone.T[:, middle])).abs().max() < error


def test_silence_is_sound():
    assert decode_audio(record(np.zeros((160, 1))))[0].abs().max() == 0


@pytest.mark.parametrize("num_samples", [1, 2, 159])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_less_than_ten_milliseconds_are_too_short(num_samples, kind):
    with pytest.raises(DecodeError, match=f"has {num_samples} samples, less than 0.01 s") as caught:
        decode_audio(record(np.zeros((num_samples, 1)), kind=kind))
    assert caught.value.reason is Reason.TOO_SHORT


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((0, 1)), "holds no sample"),
        (np.full((160, 1), np.nan), "NaN"),
        (np.array([[0.1], [np.inf]] * 80), "infinite"),
        (np.array([[0.1], [1e30]] * 80), "absurdly large"),
    ],
)
def test_useless_samples_are_refused(samples, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_audio(record(samples, subtype="FLOAT"))


@pytest.mark.parametrize("rate", [1, 999, 384_001, 2**31 - 1])
def test_absurd_rates_are_refused(wav, rate):
    forged = wav[:24] + struct.pack("<I", rate) + wav[28:]
    with pytest.raises(DecodeError, match=f"{rate} samples a second"):
        decode_audio(forged)
    assert decode_audio(wav)[1] == 8000


def test_audio_limits_are_what_refuses(tone):
    data = record(tone, kind="FLAC")
    assert decode_audio(data, max_seconds=1.0, max_bytes=128_000)[0].shape == (2, 16000)
    with pytest.raises(DecodeError, match="claims 1 s, more than the limit of 0.9"):
        decode_audio(data, max_seconds=0.9)
    with pytest.raises(DecodeError, match="limit of 127999 bytes"):
        decode_audio(data, max_bytes=127_999)


def test_a_forged_flac_length_allocates_nothing(tone):
    data = bytearray(record(tone, kind="FLAC", subtype="PCM_16"))
    data[21] |= 0x0F  # the top bits of the 36-bit number of samples in STREAMINFO
    with pytest.raises(DecodeError, match="more than the limit"):
        decode_audio(bytes(data))


@pytest.mark.parametrize(("claimed", "reason"), [(0, "does not say how many"), (32_000, "damaged")])
def test_a_flac_header_that_lies(tone, claimed, reason):
    data = bytearray(record(tone, kind="FLAC", subtype="PCM_16"))
    assert int.from_bytes(data[21:26], "big") & (2**36 - 1) == 16_000
    data[22:26] = claimed.to_bytes(4, "big")
    with pytest.raises(DecodeError, match=reason) as caught:
        decode_audio(bytes(data))
    assert caught.value.reason is Reason.DAMAGED


def ogg_claiming(data: bytes, num_samples: int) -> bytes:
    """An OGG whose last page claims another end; its checksum fits (RFC 3533)."""
    start = data.rindex(b"OggS")
    page = bytearray(data[start:])
    page[6:14] = num_samples.to_bytes(8, "little")
    page[22:26] = bytes(4)
    check = 0
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1 ^ (0x04C11DB7 if check >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = check.to_bytes(4, "little")
    return data[:start] + bytes(page)


def test_an_opus_header_that_lies(tone):
    data = record(tone, 48_000, "OGG", "OPUS")
    whole = decode_audio(data)[0]
    longer = decode_audio(ogg_claiming(data, 48_000 * 500))[0]  # only what is there
    assert abs(longer.shape[1] - whole.shape[1]) < 960
    with pytest.raises(DecodeError, match="claims 22906492 s"):
        decode_audio(ogg_claiming(data, 2**40))
    shorter = decode_audio(ogg_claiming(data, 1_000))[0]  # no more than it claims
    assert shorter.shape[1] <= 1_000


def edges(wav: bytes) -> dict[str, tuple[bytes, Reason | None]]:
    """The edge cases of recordings: bytes, and why they are refused."""
    second = np.zeros((8000, 1))
    loud = np.full((8000, 1), 1e30)
    return {
        "no sample": (record(np.zeros((0, 1))), Reason.EMPTY),
        "one sample": (record(np.zeros((1, 1))), Reason.TOO_SHORT),
        "silence": (record(second), None),
        "NaN": (record(second * np.nan, subtype="FLOAT"), Reason.NOT_FINITE),
        "infinite": (record(second + np.inf, subtype="FLOAT"), Reason.NOT_FINITE),
        "absurdly loud": (record(loud, subtype="FLOAT"), Reason.NOT_FINITE),
        "truncated": (wav[: len(wav) // 2], Reason.DAMAGED),
        "0 Hz": (wav[:24] + bytes(4) + wav[28:], Reason.ABSURD_RATE),
        "2^31 Hz": (wav[:24] + struct.pack("<I", 2**31) + wav[28:], Reason.ABSURD_RATE),
        "65535 channels": (wav[:22] + b"\xff\xff" + wav[24:], Reason.DAMAGED),
        "8 bits": (record(second, subtype="PCM_U8"), None),
    }


@pytest.mark.parametrize("name", edges(b"\0" * 64))
def test_edges_of_audio(wav, name):
    data, reason = edges(wav)[name]
    if reason is None:
        waveform, _ = decode_audio(data)
        spectrum = torch.stft(waveform[0], 400, window=torch.hann_window(400), return_complex=True)
        assert spectrum.abs().clamp_min(1e-10).log().isfinite().all()
        return
    with pytest.raises(DecodeError) as caught:
        decode_audio(data)
    assert caught.value.reason in (reason, Reason.DAMAGED)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_recording_is_refused(tone, kind, share):
    data = record(tone, kind=kind, subtype="PCM_16")
    with pytest.raises(DecodeError, match="truncated|damaged"):
        decode_audio(data[: int(share * len(data))])


def test_a_streamed_wav_without_its_size_is_read(wav):
    assert decode_audio(b"RIFF\xff\xff\xff\xff" + wav[8:])[0].shape == (2, 800)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x20ftypM4A "])
def test_other_files_are_not_recordings(data):
    with pytest.raises(DecodeError, match="not a recording"):
        decode_audio(data)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("this is wrong", Reason.DAMAGED)))
    assert str(error) == "this is wrong" and error.reason is Reason.DAMAGED


def test_text():
    assert decode_text("\ufeff A café. \n".encode()) == "A café."
    assert decode_text(b"x" * 10_000) == "x" * 10_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        ("café".encode("latin-1"), "not UTF-8 at 3"),
        (b"\x89PNG\r\n\x1a\n....", "PNG data"),
        (b"a\0b", "NUL"),
        (b"x" * 10_001, "10001 characters"),
        (b"x" * 10**6, "1000000 bytes"),
        ("café".encode("utf-16"), "UTF-16 data"),
    ],
)
def test_bad_text_is_refused(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_text(data)


def test_metadata():
    assert decode_metadata(b'{"a": [1, 2.5]}') == {"a": [1, 2.5]}


@pytest.mark.parametrize(
    "data",
    [b"", b"[1]", b'{"a": NaN}', b'{"a": 1', b"[" * 100_000, b'{"a": "' + b"x" * 2**20 + b'"}'],
)
def test_bad_metadata_is_refused(data):
    with pytest.raises(DecodeError, match="this metadata"):
        decode_metadata(data)


def test_only_our_error_escapes_mutated_files(scene, tone):
    random = np.random.default_rng(0)
    originals = [("image", encode(scene, kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    originals += [("audio", record(tone[:2000], kind=k)) for k in ("WAV", "FLAC", "OGG")]
    outcomes = {"decoded": 0, "refused": 0}
    for modality, data in originals:
        for _ in range(100):
            mutated = np.frombuffer(data, np.uint8).copy()
            places = random.integers(4, min(len(data), 200), size=3)
            mutated[places] = random.integers(0, 256, size=3)
            try:
                DECODERS[modality](mutated.tobytes())
                outcomes["decoded"] += 1
            except DecodeError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
