"""Fetching, with small programs in place of apt-get and npm."""

import io
import shutil
import tarfile

import pytest

from datamodules.recipes import build
from datamodules.recipes.packages import DebianPackage, NpmPackage, RecipeError


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts programs of the given script alone on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, script):
        program = folder / name
        program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        program.chmod(0o755)

    return add


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def pack(path, name):
    with tarfile.open(path, "w:gz") as tar:
        header = tarfile.TarInfo(name)
        header.size = 2
        tar.addfile(header, io.BytesIO(b"{}"))


def test_npm_packages_are_laid_out_like_node_modules(client, into, tmp_path):
    pack(tmp_path / "packed.tgz", "package/icons.json")
    client("npm", f'echo "$@" > ../asked; cp {tmp_path}/packed.tgz noto-1.tgz')
    NpmPackage("@iconify-json/noto", "1.2.9").fetch(into)
    assert [path for path in into.rglob("*") if path.is_file()] == [
        into / "@iconify-json/noto/icons.json"
    ]
    assert (tmp_path / "asked").read_text().split() == [
        "pack",
        "--silent",
        "@iconify-json/noto@1.2.9",
    ]


def test_an_archive_that_climbs_out_is_refused(client, into, tmp_path):
    pack(tmp_path / "packed.tgz", "package/../../../climbed")
    client("npm", f"cp {tmp_path}/packed.tgz noto-1.tgz")
    with pytest.raises(RecipeError, match="unfit"):
        NpmPackage("noto", "1").fetch(into)
    assert not list(tmp_path.rglob("climbed"))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_packages_keep_their_paths(client, into, tmp_path):
    tree = tmp_path / "tree"
    (tree / "usr/share/cats").mkdir(parents=True)
    (tree / "usr/share/cats/cat.txt").write_text("A cat.")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: cats\nVersion: 1:2\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: cats\n"
    )
    client("apt-get", f"dpkg-deb -b {tree} $2_1%3a2_all.deb")
    client("dpkg-deb", 'dpkg-deb "$@"')
    DebianPackage("cats").fetch(into)
    assert (into / "usr/share/cats/cat.txt").read_text() == "A cat."
    assert not list(into.glob("*.deb"))


@pytest.mark.parametrize("package", [DebianPackage("cats"), NpmPackage("cats", "1")])
def test_a_missing_client_is_named(client, into, package):
    with pytest.raises(RecipeError, match="was not found; install it, or give .* --source"):
        package.fetch(into)


def test_a_failed_download_says_what_the_client_said(client, into):
    client("apt-get", "echo 'E: Unable to locate package cats' >&2; exit 100")
    with pytest.raises(RecipeError, match="locate package cats.*apt-get update.*--source"):
        DebianPackage("cats").fetch(into)


def test_a_client_that_brings_nothing_is_noticed(client, into):
    client("apt-get", "exit 0")
    with pytest.raises(RecipeError, match="found 0"):
        DebianPackage("cats").fetch(into)


def test_a_failed_build_leaves_no_files(client, tmp_path):
    with pytest.raises(RecipeError):
        build("stamps", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
