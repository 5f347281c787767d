"""Nothing in a shard, a name or a file of the project is ever run.

Every payload makes a folder of its own when it runs. All are tried in one child process, since a
payload that works may do anything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PICKLES = (
    *("pkl", "pickle", "pyd", "pth", "pkl.gz", "meta.pkl", "jpg.pyd", "PKL", "npy", "npz", "pt"),
    "pickle.gz.gz",
)
URLS = ("plain", "in a list", "chain", "variable", "YAML", "rewrite", "writer", "cache")
LOADS = ("checkpoint", "checkpoint on the command line", "token cache", "manifest")
STOCK = ("stock decode", "stock pipe")

TRY = """
import gzip, hashlib, io, json, os, pickle, sys, tarfile, warnings
from pathlib import Path

root, stock = Path(sys.argv[1]), sys.argv[2] == "stock"
warnings.simplefilter("ignore")
os.environ["WDS_X"] = f"pipe:mkdir {root}/variable;cat {root}/good.tar"
os.environ["X"] = os.environ["WDS_X"]
os.chdir(root)
if not stock:
    os.environ["GOPEN_REWRITE"] = f"{root}/good=pipe:mkdir {root}/rewrite;cat {root}/good"

class Payload:
    def __init__(self, name):
        self.name = name
    def __reduce__(self):
        return os.mkdir, (str(root / self.name),)

def payload(name, extension):
    data = pickle.dumps(Payload(name))
    if extension in ("npy", "npz"):
        import numpy
        array, buffer = numpy.empty(1, object), io.BytesIO()
        array[0] = Payload(name)
        save = numpy.save if extension == "npy" else numpy.savez
        save(buffer, array, **({"allow_pickle": True} if extension == "npy" else {}))
        return buffer.getvalue()
    if extension in ("pth", "pt"):
        import torch
        buffer = io.BytesIO()
        torch.save(Payload(name), buffer)
        return buffer.getvalue()
    for _ in range(extension.lower().count("gz")):
        data = gzip.compress(data)
    return data

def shard(name, members):
    path = root / f"{name}.tar"
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path

def picture():
    from PIL import Image
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()

good = shard("good", [("k.png", picture()), ("k.txt", b"text")])

def member(extension):
    from datamodules import decode_samples, read_shards
    name, data = f"member {extension}", payload(f"member {extension}", extension)
    beside = shard(name, [("k.png", picture()), ("k.txt", b"text"), (f"k.{extension}", data)])
    alone = shard(name + " alone", [(f"k.{extension}", data)])
    hidden = shard(name + " hidden", [(f"{e}.{e}", data) for e in ("png", "txt", "json", "wav")])
    rejected = []
    for path in (beside, alone, hidden):
        list(decode_samples(read_shards([path], rejected=rejected), rejected))
    assert len(rejected) >= 5

def urls(*urls):
    from datamodules import read_shards
    from datamodules.urls import expand_shards
    for read in (read_shards, expand_shards):
        list(read(list(urls)))

def pipe(name):
    return f"pipe:mkdir {root}/{name};cat {good}"

def write():
    from datamodules.writer import write_shard
    write_shard([("k", {"txt": b"x"})], Path(f"pipe:mkdir {root}/writer;cat > {root}/x.tar"))

def cache():
    from datamodules.cache import ShardCache
    ShardCache(root / "cached").local(pipe("cache"))

def yaml_spec():
    spec = root / "spec.yaml"
    spec.write_text(f"datasets:\\n- buckets: ['pipe:mkdir {root}/YAML;cat']\\n  shards: [x.tar]\\n")
    tag = root / "tag.yaml"
    tag.write_text(f"!!python/object/apply:os.mkdir ['{root}/YAML']")
    for path in (spec, tag):
        try:
            assert not list(__import__("datamodules").read_shards([path], rejected=[]))
        except ValueError:
            pass
    raise ValueError("refused")

def checkpoint():
    import torch
    from fusion.checkpoint import restore
    path = root / "model.ckpt"
    for content in ({"state_dict": Payload("checkpoint")}, Payload("checkpoint")):
        torch.save(content, path)
        try:
            restore(path)
            raise SystemExit("restored")
        except ValueError:
            pass
        path.write_bytes(pickle.dumps(content))
        try:
            restore(path)
        except ValueError as error:
            last = error
    raise last

def command():
    import torch
    from fusion.cli.main import main
    path = root / "model.ckpt"
    torch.save({"state_dict": Payload("checkpoint on the command line")}, path)
    if main(["caption", str(path), "x.png"]) or main(["index", str(path), str(root)]):
        raise ValueError("refused")

def token_cache():
    import torch
    from encoders.cache import TokenCache
    from encoders.base import Encoder, EncoderOutput
    class Same:
        def __repr__(self):
            return "Same()"
        def __call__(self, raw):
            return raw
    class Tower(Encoder):
        def __init__(self):
            super().__init__("image", 2, Same())
            self.weight = torch.nn.Linear(1, 1)
            self.set_train_mode("frozen")
        def forward(self, inputs, mask):
            return EncoderOutput(inputs, mask, torch.zeros(*mask.shape, 3))
    tower, cache = Tower(), TokenCache(root / "tokens")
    folder = root / "tokens" / f"image-{tower.fingerprint()[:16]}"
    folder.mkdir(parents=True)
    data = pickle.dumps(Payload("token cache"))
    (folder / f"{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    (folder / f"{'0' * 64}.safetensors").write_bytes(data)
    cache.encode(tower, ["a"], lambda index: torch.zeros(1, 2))

def manifest():
    from datamodules.manifest import read_manifest
    (root / "manifest.json").write_bytes(pickle.dumps(Payload("manifest")))
    read_manifest(root)

def stock_decode():
    import webdataset
    path = shard("stock", [("k.png", picture()), ("k.pkl", payload("stock decode", "pkl"))])
    list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb"))

def stock_pipe():
    import webdataset
    url = f"pipe:mkdir '{root}/stock pipe';cat {good}"
    list(webdataset.WebDataset(url, shardshuffle=False))

forms = {f"member {e}": lambda e=e: member(e) for e in json.loads(sys.argv[3])}
forms |= {
    "plain": lambda: __import__("datamodules").read_shards(pipe("plain")).__next__(),
    "in a list": lambda: urls(pipe("'in a list'")),
    "chain": lambda: urls(f"{good}::{pipe('chain')}"),
    "variable": lambda: urls("${X}"),
    "YAML": yaml_spec,
    "rewrite": lambda: urls(str(good)),
    "writer": write,
    "cache": cache,
    "checkpoint": checkpoint,
    "checkpoint on the command line": command,
    "token cache": token_cache,
    "manifest": manifest,
}
if stock:
    forms = {"stock decode": stock_decode, "stock pipe": stock_pipe}
found = {}
for name, run in forms.items():
    try:
        run()
        found[name] = ""
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps({name: [error, (root / name).exists()] for name, error in found.items()}))
"""


def outcomes(folder, which: str) -> dict[str, tuple[str, bool]]:
    """Form -> (the error that it ended in, whether its payload ran)."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("WDS_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", TRY, str(folder), which, json.dumps(PICKLES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return outcomes(tmp_path_factory.mktemp("code"), "ours")


def test_there_are_24_forms(found):
    assert len(found) == len(PICKLES) + len(URLS) + len(LOADS) == 24


@pytest.mark.parametrize("extension", PICKLES)
def test_members_are_never_run(found, extension):
    assert found[f"member {extension}"] == ["", False]


@pytest.mark.parametrize("name", [*URLS, *LOADS])
def test_names_and_files_are_never_run(found, name):
    error, ran = found[name]
    assert not ran
    told = ("ValueError", "ManifestError", "FetchError", "FileNotFoundError")
    # A rule of the environment that rewrites names is not looked at, so its shard is read as it
    # is; the writer makes a file of that odd name; a token cache is no business of this package.
    assert error.split(":")[0] in told or name in ("rewrite", "writer", "token cache")


def test_stock_webdataset_runs_them(tmp_path):
    """The negative control: the payloads work."""
    pytest.importorskip("webdataset")
    found = outcomes(tmp_path, "stock")
    assert [ran for _, ran in found.values()] == [True] * len(STOCK)
