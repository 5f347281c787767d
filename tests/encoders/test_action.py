import math

import pytest
import torch

from encoders.action import ActionEncoder


def encode(encoder: ActionEncoder, raw):
    inputs = encoder.transform(raw)[None]
    return encoder(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool))


def test_one_token_for_each_action_at_its_time():
    encoder = ActionEncoder(7, (2,), dim=16, rate=5.0).eval()
    actions = torch.cat([torch.randn(12, 7), torch.randint(2, (12, 1))], dim=1)
    out = encode(encoder, actions)
    assert out.values.shape == (1, 12, 16)
    torch.testing.assert_close(out.position[0, :, 0], torch.arange(12) / 5)
    times = torch.rand(12).cumsum(0)
    torch.testing.assert_close(encode(encoder, (actions, times)).position[0, :, 0], times)


@pytest.mark.parametrize(
    ("encoder", "raw"),
    [
        (ActionEncoder(3, dim=8), torch.randn(5, 3)),
        (ActionEncoder(num_options=(6,), dim=8), torch.randint(6, (5,))),
        (ActionEncoder(num_options=(6, 3), dim=8), torch.randint(3, (5, 2))),
    ],
    ids=["continuous", "one choice", "several choices"],
)
def test_each_kind_of_action_alone(encoder: ActionEncoder, raw):
    out = encode(encoder, raw)
    assert out.values.shape == (1, 5, 8) and out.mask.all()
    out.values.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_each_option_has_its_own_token():
    encoder = ActionEncoder(num_options=(4,), dim=8, rate=1e9).eval()
    values = encode(encoder, torch.tensor([0, 1, 2, 3, 1])).values[0]
    assert torch.cdist(values[:4], values[:4]).fill_diagonal_(1).min() > 0.1
    torch.testing.assert_close(values[4], values[1], atol=1e-4, rtol=1e-4)


def test_the_future_is_not_seen():
    encoder = ActionEncoder(2, (3,), dim=16).eval()
    actions = torch.cat([torch.randn(10, 2), torch.randint(3, (10, 1))], dim=1)
    changed = actions.clone()
    changed[6:] = torch.tensor([9.0, -9.0, 0.0])
    first, second = encode(encoder, actions).values, encode(encoder, changed).values
    assert torch.equal(first[:, :6], second[:, :6]) and not torch.equal(first, second)


def test_missing_parts_are_neither_zero_nor_the_first_option():
    encoder = ActionEncoder(1, (3,), dim=16).eval()
    full = encode(encoder, torch.tensor([[0.0, 0.0]])).values
    for row in ([math.nan, 0.0], [0.0, math.nan]):
        assert (encode(encoder, torch.tensor([row])).values - full).abs().max() > 1e-2


@pytest.mark.parametrize("choice", [3.0, -1.0, 0.5, 1e9])
def test_what_is_no_option_is_refused(choice: float):
    with pytest.raises(ValueError, match="a whole number from 0 to 2"):
        ActionEncoder(1, (3,)).transform(torch.tensor([[0.0, 1.0], [0.0, choice]]))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="at least one channel or choice"):
        ActionEncoder()
    for settings in ({"num_options": (0,)}, {"dim": 9}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="an even dim, and all other numbers above 0"):
            ActionEncoder(1, **settings)
    with pytest.raises(ValueError, match=r"\(steps, 2\)"):
        ActionEncoder(1, (3,)).transform(torch.zeros(4, 1))
