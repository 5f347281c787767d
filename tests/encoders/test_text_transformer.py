import torch

from encoders.text_transformer import TextTransformer


def test_a_token_sees_what_follows_it():
    torch.manual_seed(0)
    encoder = TextTransformer(16, 1, 2).eval()
    first, second = encoder.transform("a red cat")[None], encoder.transform("a red dog")[None]
    mask = torch.ones_like(first, dtype=torch.bool)
    a, b = encoder(first, mask).values, encoder(second, mask).values
    assert (a[:, 1] - b[:, 1]).abs().max() > 1e-4


def test_word_order_matters_and_its_place_is_on_the_time_axis():
    torch.manual_seed(0)
    encoder = TextTransformer(16, 1, 2).eval()
    ids = encoder.transform("dog bites man")[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    out = encoder(ids, mask)
    assert (out.values.mean(1) - encoder(ids.flip(1), mask).values.mean(1)).abs().max() > 1e-4
    assert (out.position[0, 1:, 0] > out.position[0, :-1, 0]).all()


def test_long_texts_are_cut():
    assert len(TextTransformer(16, 1, 2, max_tokens=10).transform("cat " * 1000)) == 10
