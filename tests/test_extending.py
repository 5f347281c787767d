"""The depth maps of docs/extending.md, from the page to a trained model."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.writer import write_shard
from fusion import Pipeline
from fusion.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
sys.path.append(str(ROOT / "tests/encoders"))


def block(language: str) -> str:
    """The first fenced block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def depth_map(metres: float, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    depth = metres + 0.1 * torch.rand(20 + seed, 30, generator=draw)
    return depth.masked_fill(torch.rand(depth.shape, generator=draw) < 0.2, float("nan"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A user's folder: the file of the page, a shard of depth maps, and a config plus one line."""
    (tmp_path / "depth.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "depth", raising=False)
    monkeypatch.chdir(tmp_path)
    samples = []
    for index in range(16):
        file = io.BytesIO()
        np.save(file, depth_map(1.0 + index % 4, index).numpy())
        caption = f"A wall {1 + index % 4} m away."
        samples.append((f"d{index:02d}", {"npy": file.getvalue(), "txt": caption.encode()}))
    write_shard(samples, tmp_path / "depth-000000.tar")
    config = (ROOT / "configs/scratch.yaml").read_text()
    line = block("yaml")
    assert line.count("\n") == 1
    (tmp_path / "depth.yaml").write_text(
        config.replace("      encoders:\n", f"      encoders:\n{line}")
    )
    return tmp_path


def test_one_file_and_one_line_train(folder):
    shard = folder / "depth-000000.tar"
    args = [f"--data.train=['{shard}']", "--trainer.max_epochs=1", "--data.held_out=2"]
    assert main(["fit", "--config", "depth.yaml", *args]) == 0
    pipeline = Pipeline.from_run(folder / "runs/scratch")
    rows = pipeline.encode([{"sensor": depth_map(1.0, 0)}, {"text": "a wall"}])
    assert rows.shape == (2, 64) and rows.isfinite().all()


@pytest.mark.parametrize("check", ["shapes", "absent", "independence", "gradients"])
def test_it_keeps_the_contract(folder, check):
    import test_contract
    from depth import DepthEncoder

    raws = [depth_map(1.0, 0), depth_map(3.0, 5), torch.full((4, 4), float("nan"))]
    checks = {name: getattr(test_contract, f"check_{name}") for name in ("shapes", check)}
    checks[check](DepthEncoder(dim=16).eval(), raws)


def test_what_is_not_known_is_no_distance(folder):
    from depth import DepthMap

    whole = torch.full((8, 8), 2.0)
    holed = whole.clone()
    holed[:, ::2] = float("nan")
    for depth, share in ((whole, 1.0), (holed, 0.5)):
        near, known = DepthMap(4)(depth)[0]
        torch.testing.assert_close(near, torch.full((4, 4), 0.5))
        torch.testing.assert_close(known, torch.full((4, 4), share))


def test_the_page_names_what_there_is():
    for dotted in set(re.findall(r"`(encoders\.[\w.]+)`", PAGE)):
        module, _, name = dotted.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name), dotted
    assert issubclass(__import__("encoders").FrameEncoder, nn.Module)
