from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from datamodules import urls
from datamodules.urls import FetchError, expand_shards, filesystem, is_remote, local_shards, shown


def test_local_patterns(tmp_path):
    for name in ("a-000.tar", "a-001.tar", "a-002.tar", "b.tar.gz"):
        (tmp_path / name).touch()
    root = str(tmp_path)
    paths = expand_shards([f"{root}/a-{{000..001}}.tar", f"{root}/*.tar"])
    assert paths == [f"{root}/a-00{i}.tar" for i in range(3)]
    assert expand_shards([tmp_path / "b.tar.gz"]) == [f"{root}/b.tar.gz"]
    assert local_shards([tmp_path / "b.tar.gz"]) == [tmp_path / "b.tar.gz"]


@pytest.mark.parametrize(
    "name", ["we#ird.tar", "wh?t.tar", "a b.tar", "[x].tar", "{0..9}.tar", "a*.tar", "été.tar"]
)
def test_a_file_that_exists_stands_for_itself(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "what.tar").touch()  # of wh?t.tar
    (tmp_path / "ab.tar").touch()
    assert expand_shards([tmp_path / name]) == [str(tmp_path / name)]


def test_remote_patterns_are_expanded_and_not_looked_up():
    assert expand_shards(["http://[::1]:1/a-{0..1}.tar?x=[1]", "s3://b/k.tar", "s3://b/k.tar"]) == [
        "http://[::1]:1/a-0.tar?x=[1]",
        "http://[::1]:1/a-1.tar?x=[1]",
        "s3://b/k.tar",
    ]
    remote = ["http://h/a", "HTTPS://h/a", "s3://b/k", "gs://b/k"]
    local = ["http:/h/a", "a/s3://b", "pipe:x", Path("http://h/a"), "ftp://h/a", "c:\\a"]
    assert all(map(is_remote, remote)) and not any(map(is_remote, local))


class Bucket(MemoryFileSystem):
    """An s3 of this process."""

    protocol = "s3"

    def __init__(self, config_kwargs=None):
        super().__init__()


@pytest.fixture
def bucket(monkeypatch):
    """An s3 with three files."""
    monkeypatch.setitem(_registry, "s3", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    for name in ("a-1.tar", "a-0.tar", "b.txt"):
        Bucket().pipe(f"/bucket/{name}", b"x")


def test_a_glob_on_s3_is_a_listing(bucket):
    assert expand_shards(["s3://bucket/a-*.tar"]) == [f"s3://bucket/a-{i}.tar" for i in range(2)]
    with pytest.raises(ValueError, match=r"no shard matches 's3://bucket/c-\*.tar'"):
        expand_shards(["s3://bucket/c-*.tar"])


def test_a_listing_that_fails_is_one_sentence_without_secrets(bucket, monkeypatch):
    def fail(self, path, **_):
        raise RuntimeError("secret")

    monkeypatch.setattr(Bucket, "glob", fail)
    with pytest.raises(FetchError, match=r"could not be listed \(RuntimeError\)") as caught:
        expand_shards(["s3://bucket/*.tar"])
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_missing_client_is_named(monkeypatch, scheme):
    def missing(*_, **__):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'assim\[{scheme}\]'"):
        filesystem(f"{scheme}://bucket/a.tar", 1.0)


REFUSED = [
    ([], "no shard was named"),
    (["missing.tar"], "no shard matches 'missing.tar'"),
    (["missing-*.tar"], "no shard matches"),
    (["a-{0..3.tar"], "braces of 'a-{0..3.tar' do not match"),
    (["{0..999999999}.tar"], "more than 100000 shards"),
    (["{0..999}{0..999}{0..999}.tar"], "more than 100000 shards"),
    (["http://h/{0..999999999}.tar"], "more than 100000 shards"),
    (["http://h/{0..60000}", "http://g/{0..60000}"], "more than 100000 shards"),
    (["."], "is a folder"),
    (["pipe:touch executed"], "http, https, s3, gs are read"),
    (["PIPE:touch executed"], "http, https, s3, gs are read"),
    (["file:a.tar"], "http, https, s3, gs are read"),
    (["file:///etc/passwd"], "http, https, s3, gs are read"),
    (["hf://datasets/a/b.tar"], "http, https, s3, gs are read"),
    (["ftp://h/a.tar"], "http, https, s3, gs are read"),
    (["gopher://h/a.tar"], "http, https, s3, gs are read"),
    (["simplecache::http://h/a.tar"], "http, https, s3, gs are read"),
    (["a.tar::http://h/a.tar"], "http, https, s3, gs are read"),
    (["http:/h/a.tar"], "http, https, s3, gs are read"),
    (["http://h/a.tar::pipe:touch executed"], "no chain"),
    (["s3://b/a.zip::file:///etc/passwd"], "no chain"),
    (["http:///a.tar"], "only plain URLs"),
    (["http://h/a\n.tar"], "only plain URLs"),
    (["http://[h/a.tar"], "not a URL"),
    (["http://user:secret@h/a.tar"], "user or password"),
    (["http://h/*.tar"], "http cannot list"),
    (["/x/a.tar::pipe:touch executed"], "no shard matches"),
    ([" pipe:touch executed"], "no shard matches"),
    (["${X}"], "no shard matches"),
    (["a" * 5000], "no shard matches"),
]


@pytest.mark.parametrize(("names", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_each_refusal_is_one_sentence(names, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason) as caught:
        expand_shards(names)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_guard_a_chain_would_reach_fsspec(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(urls, "_refuse_unsafe", lambda url: None)
    assert expand_shards(["http://h/a.tar::file:///etc/passwd", "http://u:secret@h/a.tar"])


def test_without_the_allow_list_a_command_is_taken_for_a_file(tmp_path, monkeypatch):
    """The negative control: it is the name of a file, and nothing more, even then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipe:touch executed").touch()
    with pytest.raises(ValueError, match="http, https, s3, gs are read"):
        expand_shards(["pipe:touch executed"])
    monkeypatch.setattr(urls, "_SCHEME", urls.re.compile("(?!)"))
    assert expand_shards(["pipe:touch executed"]) == ["pipe:touch executed"]
    assert not (tmp_path / "executed").exists()


def test_only_local_shards_where_nothing_is_fetched():
    with pytest.raises(ValueError, match="'http://h/a.tar'; only local shards are read here"):
        local_shards(["http://h/a.tar?signature=secret"])


def test_what_is_shown_holds_no_signature():
    assert shown("https://h/a.tar?X-Amz-Signature=secret") == "https://h/a.tar"
    assert shown("wh?t#.tar") == "wh?t#.tar"
