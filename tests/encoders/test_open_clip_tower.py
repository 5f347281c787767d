import time

import open_clip
import pytest
import torch

from encoders.open_clip_tower import OpenClipImage, OpenClipText

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8},
    "text_cfg": {"layers": 2, "width": 32, "heads": 2, "context_length": 20},
}


def test_image_tokens_are_the_patches_of_the_tower():
    encoder = OpenClipImage(TINY).eval()
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    out = encoder(encoder.transform(picture)[None], torch.ones(1, 1, dtype=torch.bool))
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    patches = encoder.net.forward_intermediates(
        ((picture / 255 - mean) / std)[None],
        indices=[1],
        normalize_intermediates=True,
        intermediates_only=True,
        output_fmt="NLC",
    )["image_intermediates"][0]
    assert out.values.shape == (1, 16, 64)
    torch.testing.assert_close(out.values, patches, atol=1e-5, rtol=1e-5)


def test_text_ids_are_those_of_open_clip_up_to_the_end_marker():
    transform = OpenClipText(TINY).transform
    expected = open_clip.tokenize("a cat &amp; a dog!", 20)[0]
    ids = transform("a cat &amp; a dog!")
    assert len(ids) == 8 and torch.equal(ids, expected[:8]) and (expected[8:] == 0).all()
    assert len(transform("")) == 2
    assert len(transform("cat " * 500)) == 20


def test_ids_under_the_mask_are_not_seen_even_without_causal_mask():
    text = {**TINY["text_cfg"], "no_causal_mask": True}
    encoder = OpenClipText({**TINY, "text_cfg": text}).eval()
    ids = encoder.transform("a cat")[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    rubbish, wide = torch.cat([ids, ids], dim=1), torch.cat([mask, ~mask], dim=1)
    alone, padded = encoder(ids, mask).values, encoder(rubbish, wide).values
    torch.testing.assert_close(padded[:, : ids.shape[1]], alone)


def test_hostile_text_is_cut_before_it_is_cleaned():
    transform = OpenClipText(TINY).transform
    start = time.process_time()
    transform("&#x26" * 400_000)
    assert time.process_time() - start < 1.0


def test_a_model_can_be_named():
    assert OpenClipText("ViT-S-32").dim == 384
    with pytest.raises(ValueError, match="knows no model ViT-Z"):
        OpenClipImage("ViT-Z")


@pytest.mark.parametrize(
    ("cls", "part", "setting"),
    [
        (OpenClipImage, "vision_cfg", {"timm_model_name": "resnet18"}),
        (OpenClipImage, "vision_cfg", {"layers": [1, 1, 1, 1]}),
        (OpenClipImage, "vision_cfg", {"attentional_pool": True}),
        (OpenClipText, "text_cfg", {"hf_model_name": "roberta-base"}),
        (OpenClipText, "text_cfg", {"vocab_size": 32000}),
    ],
)
def test_other_towers_are_refused(cls: type, part: str, setting: dict):
    with pytest.raises(ValueError, match="choose"):
        cls({**TINY, part: {**TINY[part], **setting}})


def test_frozen_towers():
    assert OpenClipImage(TINY, frozen=True).frozen
    assert not any(p.requires_grad for p in OpenClipText(TINY, frozen=True).parameters())
