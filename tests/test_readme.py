"""The pages are true: their Python runs, their commands exist, their links lead somewhere."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from fusion.cli.main import main
from fusion.cli.table import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SET_UP = "python -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[{}]' && .venv/bin/"


def blocks_of(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


SNIPPETS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks_of(page.read_text(), "python"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_shard) -> Path:
    """A working directory with what the pages speak of: a run and a user's files."""
    path = tmp_path_factory.mktemp("user")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(path / "bird.jpg")
    soundfile.write(path / "chirp.wav", (torch.rand(8000) * 2 - 1).numpy(), 16000)
    (path / "shards").mkdir()
    shutil.copy(tiny_shard, path / "shards")
    config = ["--config", str(ROOT / "configs/scratch.yaml"), f"--data.train=['{tiny_shard}']"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["fit", *config, "--trainer.max_epochs=1"]) == 0
    (path / "runs/scratch").rename(path / "runs/quickstart")
    return path


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_python_of_the_pages_runs(snippet, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(snippet, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_the_examples_run(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_the_block_alone_needs_torch_only():
    """The README's lines, where no other third-party package can be imported."""
    (snippet,) = [b for b in blocks_of(PAGES[0].read_text(), "python") if "FusionBlock" in b]
    guard = (
        "import sys, torch\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'lightning', 'timm', 'transformers', 'jsonargparse',\n"
        "                                  'encoders', 'datamodules', 'matplotlib', 'rich'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    end = "\nassert out.stats.converged.all()\n"
    for module, ok in (("", True), ("import lightning\n", False)):
        code = guard + module + snippet + end
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
        assert (done.returncode == 0) == ok, done.stderr.decode()
    assert len(snippet.strip().splitlines()) <= 10


def test_there_are_snippets_and_each_is_found():
    assert len(SNIPPETS) >= 3
    page = "a\n```python\nx = 1\n```\nb\n```\ny\n```\n"
    assert blocks_of(page, "python") == ["x = 1\n"]
    assert blocks_of(page, "") == ["y\n"]


def test_the_set_up_commands_are_the_ones_that_are_tested():
    shell = [line for b in blocks_of(PAGES[0].read_text(), "") for line in b.splitlines()]
    set_up = [line for line in shell if line.startswith("python -m venv")]
    quickstart, tests = SET_UP.format("quickstart"), SET_UP.format("dev")
    assert set_up == [f"{quickstart}fusion quickstart", f"{tests}pytest"]
    install = tests.rpartition(" && ")[0].replace("pip install", "pip install -q")
    assert install in (ROOT / ".ci/run").read_text()


def test_the_commands_of_the_pages_exist():
    names = {
        line.split()[1]
        for page in PAGES
        for block in blocks_of(page.read_text(), "")
        for line in block.splitlines()
        if line.startswith("fusion ")
    }
    assert {"fit", "index", "search", "caption"} <= names <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_local_links_lead_somewhere(page):
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []
