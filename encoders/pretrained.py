"""Weights that ordinary packages carry, so that nothing is fetched from a model hub."""

import importlib
from importlib import resources
from pathlib import Path
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises:
        ModuleNotFoundError: If it is not installed; the message names the command that helps.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the module is there and something it needs is not
            raise
        raise ModuleNotFoundError(
            f"This encoder needs {module}, which is not installed: "
            "run pip install 'assim[quickstart]'.",
            name=module,
        ) from None


def packaged_file(package: str, name: str) -> Path:
    """Path of the file `name` inside an installed `package`.

    Raises:
        ModuleNotFoundError: If the package is not installed.
        FileNotFoundError: If it holds no such file.
    """
    path = Path(str(resources.files(require(package)) / name))
    if not path.is_file():
        raise FileNotFoundError(
            f"The package {package} holds no {name}: "
            "run pip install --force-reinstall 'assim[quickstart]'."
        )
    return path
