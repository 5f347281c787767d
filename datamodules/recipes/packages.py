"""Public packages and the ordinary clients that fetch them: apt-get and npm."""

import subprocess
import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final


class RecipeError(ValueError):
    """The source of a recipe cannot be had or is not what the recipe expects."""


@dataclass(frozen=True)
class Package(ABC):
    """A public package.

    Attributes:
        name: Its name in its index.
    """

    name: str

    @abstractmethod
    def fetch(self, into: Path) -> None:
        """Downloads the package and extracts its files under `into`.

        Raises:
            RecipeError: When the client is missing or the download fails.
        """


@final
@dataclass(frozen=True)
class DebianPackage(Package):
    """A package of a Debian-like distribution; its files keep their absolute paths."""

    def fetch(self, into: Path) -> None:
        """Runs `apt-get download` and `dpkg-deb -x`; needs no root and installs nothing."""
        _run(["apt-get", "download", self.name], into, "run `apt-get update` first")
        # Debian quotes the epoch's colon in the file name, so the name is looked up, not built.
        archive = _single(into, f"{self.name}_*.deb")
        _run(["dpkg-deb", "-x", archive.name, "."], into, "download it again")
        archive.unlink()


@final
@dataclass(frozen=True)
class NpmPackage(Package):
    """A package of the npm registry, laid out as in a `node_modules` folder.

    Attributes:
        version: Exact version, so that a rebuild reads the same drawings and names.
    """

    version: str

    def fetch(self, into: Path) -> None:
        """Runs `npm pack` and extracts the archive; runs none of the package's scripts."""
        wanted = f"{self.name}@{self.version}"
        _run(["npm", "pack", "--silent", wanted], into, "check the network")
        archive = _single(into, "*.tgz")
        folder = into / self.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as tar:
                members = [_without_top(member) for member in tar if "/" in member.name]
                tar.extractall(folder, members, filter="data")
        except tarfile.TarError as error:
            raise RecipeError(f"The archive of {wanted} is unfit ({error}); report it.") from error
        archive.unlink()


def _without_top(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(name=member.name.split("/", 1)[1], deep=False)


def _single(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise RecipeError(
            f"Expected one file {pattern} in {folder} after the download, found {len(found)}; "
            "empty the folder and try again."
        )
    return found[0]


def _run(command: list[str], folder: Path, advice: str) -> None:
    otherwise = f"{advice}, or give an already extracted tree with --source"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RecipeError(
            f"The command {command[0]!r} was not found; install it, "
            "or give an already extracted tree with --source."
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise RecipeError(f"`{' '.join(command)}` failed, saying {said[-1]!r}; {otherwise}.")
