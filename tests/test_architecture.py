"""The laws of CONTRIBUTING.md that can be read off the source; each guard is shown to bite."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("fusion", "encoders", "datamodules")
MAX_LINES, MAX_PARAMETERS = 300, 8

# Files of `fusion` that are pure torch: no config, trainer, encoder or file ever reaches them.
BLOCKS = (
    *("fusion.accom", "fusion.assim", "fusion.block", "fusion.certificate", "fusion.choice"),
    *("fusion.cider", "fusion.delta", "fusion.diagnostics", "fusion.layers", "fusion.losses"),
    *("fusion.metrics", "fusion.phase", "fusion.projection", "fusion.recursion"),
    *("fusion.accumulation", "fusion.ranking", "fusion.relations", "fusion.safeguards"),
    *("fusion.solver", "fusion.subsets", "fusion.tokens"),
)
# Who may import a package of the first column, beside itself.
IMPORTERS = {
    "lightning": (
        *("datamodules.memory", "datamodules.module", "datamodules.resumable"),
        *("datamodules.trainer", "fusion.tasks", "fusion.cli"),
    ),
    "fusion": (),
    "encoders": ("fusion",),
    "datamodules": ("fusion.cli", "fusion.inference"),
    "fusion.tasks": ("fusion.cli",),
    "fusion.inference": (
        "fusion.cli",
        "fusion.retrieval",
    ),  # and the lazy name in fusion/__init__.py
    "fusion.cli": ("fusion.__main__",),
}
LIGHT = {*sys.stdlib_module_names, "torch", *PACKAGES}
# What every command loads; the other files of `fusion.cli` belong to one command each and may be
# heavy, as may files that import lightning anyway.
COMMAND_LINE = ("fusion.cli", "fusion.cli.main", "fusion.cli.table")


class Import(NamedTuple):
    name: str
    line: int
    at_start: bool  # runs when the module is imported


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(source: str) -> Iterator[Import]:
    """Every import, as `package.module.name`; those under `if TYPE_CHECKING` never run."""

    def walk(node: ast.AST, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(f"{prefix}.{alias.name}", node.lineno, at_start)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_start and not lazy and not typing_only)

    yield from walk(ast.parse(source), True)


def wrong_imports(module: str, source: str) -> list[str]:
    """Against the direction of the packages, or heavier at import time than torch."""
    wrong = []
    for found in imports_of(source):
        package = found.name.split(".")[0]
        banned = found.name.startswith(".") or (
            package == "pickle" and found.name not in {"pickle", "pickle.UnpicklingError"}
        )
        lazy_name = module == "fusion" and not found.at_start
        for target, importers in IMPORTERS.items():
            allowed = is_within(module, target, *importers) or (
                lazy_name and target == "fusion.inference"
            )
            banned |= is_within(found.name, target) and not allowed
        if is_within(module, *BLOCKS) or (module == "fusion" and not lazy_name):
            ours = is_within(found.name, *BLOCKS)
            banned |= package not in {*sys.stdlib_module_names, "torch"} and not ours
        heavy = is_within(module, *IMPORTERS["lightning"]) and module not in COMMAND_LINE
        banned |= found.at_start and package not in LIGHT and not heavy
        if banned:
            wrong.append(f"{module}:{found.line} imports {found.name}")
    return wrong


def unsafe_calls(module: str, source: str) -> list[str]:
    """Calls that run what a file or a string says."""
    unsafe = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        called = ast.unparse(node.func)
        if (
            called in {"eval", "exec", "os.system", "os.popen"}
            or (called == "torch.load" and keywords.get("weights_only") != "True")
            or keywords.get("weights_only", "True") != "True"
            or keywords.get("allow_pickle", "False") != "False"
            or keywords.get("shell", "False") != "False"
            or called.startswith("pickle.")
        ):
            unsafe.append(f"{module}:{node.lineno} calls {ast.unparse(node)}")
    return unsafe


def long_signatures(module: str, source: str) -> list[str]:
    """Constructors of more than eight parameters."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]) - 1
            if count > MAX_PARAMETERS or arguments.vararg or arguments.kwarg:
                found.append(f"{module}:{node.lineno} takes {count} parameters or */**")
    return found


def undocumented(module: str, source: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""

    def walk(node: ast.Module | ast.ClassDef) -> Iterator[str]:
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name[0] != "_":
                if ast.get_docstring(child) is None:
                    yield f"{module}:{child.lineno} {child.name} has no docstring"
                if isinstance(child, ast.ClassDef):
                    yield from walk(child)

    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) or not tree.body else [f"{module} has no docstring"]
    return missing + list(walk(tree))


def too_long(module: str, source: str) -> list[str]:
    """Files beyond what one reads in one go."""
    count = source.count("\n")
    return [f"{module} has {count} lines"] if count > MAX_LINES else []


GUARDS = [wrong_imports, unsafe_calls, long_signatures, undocumented, too_long]


@pytest.mark.parametrize("guard", GUARDS)
def test_the_source_keeps_the_law(guard):
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 40
    assert [found for p in paths for found in guard(module_name(p), p.read_text())] == []


@pytest.mark.parametrize(
    ("guard", "module", "source"),
    [
        (wrong_imports, "fusion.block", "import lightning"),
        (wrong_imports, "fusion.block", "from encoders import Encoder"),
        (wrong_imports, "fusion.assim.anchored", "from fusion.model import FusionModel"),
        (wrong_imports, "fusion.accom.slots", "def f():\n    import numpy"),
        (wrong_imports, "fusion", "from fusion.inference import Pipeline"),
        (wrong_imports, "fusion", "def f():\n    from fusion import tasks"),
        (wrong_imports, "fusion.model", "from datamodules import collate"),
        (wrong_imports, "fusion.model", "def f():\n    from fusion.tasks import ContrastiveTask"),
        (wrong_imports, "fusion.model", "from fusion import inference"),
        (wrong_imports, "fusion.tasks.contrastive", "import datamodules.module"),
        (wrong_imports, "fusion.inference", "from fusion import tasks"),
        (wrong_imports, "fusion.inference", "import fusion.cli.search"),
        (wrong_imports, "fusion.cli.main", "import lightning"),
        (wrong_imports, "fusion.cli.main", "import rich"),
        (wrong_imports, "fusion.plots", "import matplotlib"),
        (wrong_imports, "encoders.text", "import transformers"),
        (wrong_imports, "encoders.text", "from fusion.layers import MLP"),
        (wrong_imports, "encoders.text", "from . import image"),
        (wrong_imports, "datamodules.shards", "import lightning"),
        (wrong_imports, "datamodules.shards", "from encoders.base import Encoder"),
        (wrong_imports, "datamodules.shards", "def f():\n    from pickle import loads"),
        (unsafe_calls, "m", "pickle.loads(data)"),
        (unsafe_calls, "m", "torch.load(path)"),
        (unsafe_calls, "m", "torch.load(path, weights_only=False)"),
        (unsafe_calls, "m", "Task.load_from_checkpoint(path, weights_only=False)"),
        (unsafe_calls, "m", "np.load(path, allow_pickle=True)"),
        (unsafe_calls, "m", "subprocess.run(command, shell=True)"),
        (unsafe_calls, "m", "def f():\n    return eval(text)"),
        (long_signatures, "m", "class A:\n    def __init__(self, a, b, c, d, e, *, f, g, h, i): 0"),
        (long_signatures, "m", "class A:\n    def __init__(self, **options): 0"),
        (undocumented, "m", '"""Docs."""\ndef f(): 0'),
        (undocumented, "m", '"""Docs."""\nclass A:\n    """Docs."""\n    def f(self): 0'),
        (undocumented, "m", "import torch"),
        (too_long, "m", "\n" * (MAX_LINES + 1)),
    ],
)
def test_each_guard_bites(guard, module, source):
    assert guard(module, source) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fusion.plots", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
        ("encoders.text", "def f():\n    import transformers"),
        ("fusion.model", "from encoders.base import Encoder\nfrom fusion.block import FusionBlock"),
        ("fusion.cli.train", "import lightning\nfrom datamodules.module import ShardDataModule"),
        ("fusion", "def f():\n    from fusion.inference import Pipeline"),
        ("fusion.__main__", "from fusion.cli import main"),
    ],
)
def test_the_import_guard_lets_the_right_ones_pass(module, source):
    assert wrong_imports(module, source) == []


def test_every_block_is_there():
    paths = [ROOT / name.replace(".", "/") for name in BLOCKS]
    assert [p for p in paths if not (p.is_dir() or p.with_suffix(".py").is_file())] == []
