import io

import numpy as np
import pytest
import soundfile

from datamodules.recipes.sound import SAMPLE_RATE, fixed_serial, to_opus


@pytest.fixture
def tone(tmp_path):
    """Half a second of stereo at 44.1 kHz: 440 Hz on the left, nothing on the right."""
    time = np.arange(22_050) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / "tone.ogg"
    soundfile.write(path, np.stack([left, 0 * left], axis=1), 44_100)
    return path


def encode(wave):
    out = io.BytesIO()
    soundfile.write(out, wave, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return out.getvalue()


def test_opus_is_16_khz_mono_and_keeps_the_pitch(tone):
    wave, rate = soundfile.read(io.BytesIO(to_opus(tone)))
    assert rate == SAMPLE_RATE and wave.shape == (8_000,)
    assert np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave) == pytest.approx(440, abs=4)
    assert np.abs(wave).max() == pytest.approx(0.25, abs=0.05)  # the mean of both channels


def test_opus_is_the_same_every_time(tone):
    assert to_opus(tone) == to_opus(tone)


def test_a_fixed_serial_changes_no_sample():
    wave = np.random.default_rng(0).normal(size=40_000) * 0.1
    first, second = encode(wave), encode(wave)
    assert first != second  # why fixed_serial is there
    assert fixed_serial(first) == fixed_serial(second)
    before, after = (soundfile.read(io.BytesIO(ogg))[0] for ogg in (first, fixed_serial(first)))
    np.testing.assert_array_equal(before, after)


def test_a_wrong_checksum_would_be_noticed():
    ogg = bytearray(fixed_serial(encode(np.ones(1_000) * 0.1)))
    ogg[22] ^= 1  # first byte of the first page's checksum
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(io.BytesIO(bytes(ogg)))


@pytest.mark.parametrize("damage", [lambda ogg: b"x" + ogg, lambda ogg: ogg[:-1]])
def test_what_is_no_ogg_stream_is_refused(damage):
    with pytest.raises(ValueError, match="whole OggS page"):
        fixed_serial(damage(encode(np.ones(1_000) * 0.1)))


@pytest.mark.parametrize("wave", [np.zeros(16_000), np.ones(100) * 0.5])
def test_silent_and_short_sounds_are_refused(tmp_path, wave):
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    with pytest.raises(ValueError, match="silent or too short"):
        to_opus(tmp_path / "a.wav")
