import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from encoders.sensor import SensorEncoder, TimeSeries

NAN = math.nan


def encode(encoder: SensorEncoder, raw):
    inputs = encoder.transform(raw)[None]
    return encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))


def test_rows_hold_time_values_and_what_was_measured():
    rows = TimeSeries(2, rate=10.0, max_steps=100)(torch.tensor([[1.0, NAN], [NAN, NAN], [0, 5]]))
    expected = [[0.0, 1.0, 0.0, 1.0, 0.0], [0.2, 0.0, 5.0, 1.0, 1.0]]
    torch.testing.assert_close(rows, torch.tensor(expected))


def test_times_and_rates_agree():
    values, transform = torch.randn(50, 3), TimeSeries(3, rate=25.0, max_steps=40)
    plain = transform(values)
    assert plain.shape == (40, 7)
    assert torch.equal(transform((values, 25)), plain)
    assert torch.equal(transform((values, torch.arange(50) / 25)), plain)
    assert not torch.equal(transform((values, 50.0)), plain)
    single = TimeSeries(1, 25.0, 40)
    assert torch.equal(single(values[:, 0]), single(values[:, :1]))


def test_integers_and_times_of_double_precision_are_taken():
    times = torch.tensor([90_000.001, 90_000.012], dtype=torch.float64)
    rows = TimeSeries(1, 1.0, 9)((torch.tensor([[3], [-4]]), times))
    assert rows[:, 1].tolist() == [3.0, -4.0]
    assert rows[:, 0].diff() > 0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.zeros(5, 2), r"\(steps, 3\)"),
        (torch.zeros(0, 3), "at least one step"),
        (torch.zeros(5, 3, 1), r"\(steps, 3\)"),
        (torch.full((5, 3), math.inf), "mark what is missing with NaN"),
        ((torch.zeros(5, 3), torch.arange(4)), "needs as many times"),
        ((torch.zeros(2, 3), torch.tensor([1.0, 0.0])), "do not fall"),
        ((torch.zeros(2, 3), torch.tensor([0.0, NAN])), "do not fall"),
        ((torch.zeros(2, 3), torch.tensor([-1.0, 0.0])), "from the start of the recording"),
        ((torch.zeros(2, 3), torch.tensor([1.7e9, 1.7e9])), "from the start of the recording"),
        ((torch.zeros(2, 3), 0.0), "not above 0"),
    ],
)
def test_what_is_no_series_is_refused(raw, message: str):
    with pytest.raises(ValueError, match=message):
        TimeSeries(3, 50.0, 100)(raw)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.integers(1, 70),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 3e38]),
    missing=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_series_gives_finite_tokens(steps: int, scale: float, missing: float):
    draw = torch.Generator().manual_seed(steps)
    values = (2 * torch.rand(steps, 2, generator=draw) - 1) * scale
    values[torch.rand(steps, 2, generator=draw) < missing] = NAN
    out = encode(SensorEncoder(2, dim=8, num_heads=2).eval(), values)
    assert out.values.isfinite().all() and out.position.isfinite().all()
    assert bool(out.mask.any()) == bool(values.isfinite().any())


def test_a_missing_value_is_no_zero():
    encoder = SensorEncoder(2, dim=16).eval()
    there = torch.zeros(16, 2)
    gone = there.clone()
    gone[3:9, 1] = NAN
    assert (encode(encoder, there).values - encode(encoder, gone).values).abs().max() > 1e-2
    with torch.no_grad():  # the control: without the marks zeros and gaps are one
        encoder.channels.weight[:, 2:] = 0
    torch.testing.assert_close(encode(encoder, there).values, encode(encoder, gone).values)


def test_steps_without_any_value_are_as_if_they_were_not_there():
    encoder, values = SensorEncoder(2, dim=16).eval(), torch.randn(20, 2)
    times = torch.arange(20) / 50
    holed = torch.cat([values[:7], torch.full((5, 2), NAN), values[7:]])
    more = torch.cat([times[:7], times[6] + torch.arange(1, 6) / 500, times[7:]])
    for one, other in zip(
        encode(encoder, (values, times)), encode(encoder, (holed, more)), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not encode(encoder, torch.full((9, 2), NAN)).mask.any()


def test_tokens_have_the_time_of_their_first_step():
    times = torch.rand(50).cumsum(0)
    out = encode(SensorEncoder(3, dim=16, steps_per_token=5), (torch.randn(50, 3), times))
    torch.testing.assert_close(out.position[0, :, 0], times[::5])
    assert (out.position[..., 1:] == 0).all()


def test_pace_matters_and_the_hour_does_not():
    encoder, values = SensorEncoder(3, dim=16).eval(), torch.randn(64, 3)
    times = torch.arange(64) / 64  # whole steps of a float32
    now = encode(encoder, (values, times))
    later = encode(encoder, (values, times + 512))
    slower = encode(encoder, (values, times * 2))
    torch.testing.assert_close(later.values, now.values)
    torch.testing.assert_close(later.position[..., 0], now.position[..., 0] + 512)
    assert (slower.values - now.values).abs().max() > 1e-2


def test_long_series_go_window_by_window():
    encoder = SensorEncoder(2, dim=16, steps_per_token=2, rate=10.0).eval()
    values = torch.randn(700, 2)  # 128 tokens are 256 steps
    out = encode(encoder, values)
    assert out.values.shape[1] == 350 and out.mask.all()
    for start in (0, 256, 512):
        alone = encode(encoder, values[start : start + 256]).values
        got = out.values[:, start // 2 : start // 2 + alone.shape[1]]
        torch.testing.assert_close(got, alone, atol=1e-3, rtol=1e-3)


def test_it_learns_through_gaps_and_uneven_steps():
    """Slow and fast sines are told apart, a third of their values gone, within 200 steps."""
    torch.manual_seed(0)
    encoder, head = SensorEncoder(2, dim=32, depth=1, rate=20.0), torch.nn.Linear(32, 2)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)

    def scores(count: int) -> tuple[Tensor, Tensor]:
        labels, rows = torch.randint(2, (count,)), []
        for label in labels.tolist():
            times = (torch.rand(64) / 10).cumsum(0)
            angles = 2 * math.pi * (0.5 + 1.5 * label) * times + 6 * torch.rand(())
            values = torch.stack([angles.sin(), angles.cos()], dim=1) + 0.1 * torch.randn(64, 2)
            values[torch.rand(64, 2) < 0.33] = NAN
            rows.append(encoder.transform((values, times)))
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        out = encoder(pad_sequence(rows, batch_first=True), mask)
        return head(out.values.sum(1) / out.mask.sum(1, keepdim=True)), labels

    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(*scores(16)).backward()
        optimizer.step()
    encoder.eval()
    guessed, labels = scores(64)
    assert (guessed.argmax(dim=1) == labels).float().mean() > 0.85


def test_settings_out_of_range_are_refused():
    for settings_ in ({"num_channels": 0}, {"num_channels": 1, "rate": 0.0}):
        with pytest.raises(ValueError, match="not positive"):
            SensorEncoder(**settings_)
    with pytest.raises(ValueError, match="heads"):
        SensorEncoder(1, dim=10, num_heads=4)
    with pytest.raises(ValueError, match="even"):
        SensorEncoder(1, dim=9, num_heads=3)
