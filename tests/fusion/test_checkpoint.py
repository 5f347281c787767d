"""Towers with pretrained weights come back from a checkpoint alone, whatever trained of them."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import encoders
from fusion.checkpoint import restore
from fusion.model import FusionModel

sys.path.append(str(Path(__file__).parent.parent / "encoders"))
from towers import clip_model, text_folder, timm_model


def settings_of(folder: Path, train: str) -> dict[str, Any]:
    """Settings of towers as a config has them, their files copied to a folder."""
    _, config, clip = clip_model()
    clip, vit = (shutil.copy(path, folder) for path in (clip, timm_model("test_vit")[1]))
    text = str(shutil.copytree(text_folder(), folder / "text"))
    towers = {
        "image": ("OpenClipImage", {"config": config, "weights": clip}),
        "photo": ("TimmImage", {"name": "test_vit", "weights": vit}),
        "text": ("HuggingFaceText", {"folder": text, "dim": 32, "max_tokens": 30}),
        "caption": ("OpenClipText", {"config": config, "weights": clip}),
    }
    return {
        name: {"class_path": f"encoders.{cls}", "init_args": {**args, "train": train}}
        for name, (cls, args) in towers.items()
    }


@pytest.mark.parametrize("train", ["frozen", "lora", "full", "scratch"])
def test_towers_are_restored_without_their_files(train: str, tmp_path: Path):
    files, path = tmp_path / "files", tmp_path / "model.ckpt"
    files.mkdir()
    settings = settings_of(files, train)
    built = {
        name: getattr(encoders, one["class_path"].split(".")[1])(**one["init_args"])
        for name, one in settings.items()
    }
    model = FusionModel(built, dim=16, hidden=8).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    given = {"model": {"encoders": settings, "dim": 16, "hidden": 8}}
    torch.save({"hyper_parameters": given, "state_dict": state}, path)
    shutil.rmtree(files)

    restored = restore(path).model
    assert restored.frozen == model.frozen
    raws = {name: "a red apple" for name in ("text", "caption")}
    raws |= {n: torch.arange(150, dtype=torch.uint8).view(3, 5, 10) for n in ("image", "photo")}
    for name, raw in raws.items():
        before, after = built[name], restored.encoders[name]
        inputs = before.transform(raw)[None]
        assert torch.equal(after.transform(raw)[None], inputs)
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
        assert torch.equal(after(inputs, mask).values, before(inputs, mask).values)
