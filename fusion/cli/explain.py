"""fusion explain: what the iteration did with an input, as a page with pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from datamodules.decode import DECODERS
from datamodules.samples import MEMBERS, collate
from datamodules.shards import read_folder
from encoders.base import Encoder
from fusion.block import FusionBlock
from fusion.checkpoint import find_checkpoint
from fusion.cli.display import printable
from fusion.diagnostics import trajectory
from fusion.explain import Exhibit, Part, write_explanation
from fusion.explain.naming import pieces_of
from fusion.explain.writer import pictures_of
from fusion.inference import Inputs, Item, Pipeline
from fusion.tokens import Tokens, concat

Titled = tuple[str, Item]


def explain(run: str, *inputs: str, text: str | None = None, out: str | None = None) -> None:
    """Shows how inputs were fused: what shares a slot, how the rounds went, how certain it is.

    All files, with the words of --text, are fused into one sample: one picture, one recording,
    one text at most. Each folder adds samples of its own: its files that share a name, such as
    cat.jpg, cat.txt and cat.wav, are one sample. Several samples make one page.

    Examples:
        fusion explain runs/quickstart frog.webp frog.ogg --text "a green frog"
        fusion explain runs/quickstart ~/Pictures --out pictures.html

    Args:
        run: run folder or checkpoint.
        inputs: pictures, recordings, texts (.txt), or folders of them.
        text: words that are fused with the files.
        out: page to write, with its pictures in a folder beside it; without this option
            explain.html beside the checkpoint.
    """
    paths = [Path(name) for name in inputs]
    single = _fused([path for path in paths if not path.is_dir()], text)
    pipeline = Pipeline.from_run(run)
    samples = [single] if single else []
    for folder in filter(Path.is_dir, paths):
        samples += _samples(folder, pipeline.model.modalities)
    if not samples:
        raise ValueError('There is no input; give files, folders, or words (--text "a bird").')
    exhibits = [_exhibit(pipeline, printable(title), item) for title, item in samples]
    page = Path(out) if out else find_checkpoint(run).parent / "explain.html"
    write_explanation(page, exhibits)
    num = len(exhibits)
    print(f"Explained {num} sample{'' if num == 1 else 's'}: {page}")
    print(f"Its pictures: {pictures_of(page)}")


def _fused(files: Sequence[Path], text: str | None) -> Titled | None:
    """The sample of all files and words together; None if there are none."""
    item: dict[str, Any] = {} if text is None else {"text": text}
    for path in files:
        modality = _modality(path)
        if modality in item:
            raise ValueError(
                f"Got {path} beside {item[modality]}: a sample has one {modality} at most; put "
                "samples into a folder, files of one sample under one name."
            )
        item[modality] = path
    names = [path.name for path in files] + ([] if text is None else [f"“{text}”"])
    return (" + ".join(names), item) if item else None


def _modality(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; check the path.")
    for modality, extensions in MEMBERS.items():
        if path.name.lower().endswith(tuple(f".{ext}" for ext in extensions)):
            return modality
    known = sorted({ext.split(".")[-1] for extensions in MEMBERS.values() for ext in extensions})
    raise ValueError(f"Got {path}; the files that are read end in {', '.join(known)}.")


def _samples(folder: Path, modalities: Sequence[str]) -> Iterator[Titled]:
    """The samples of a folder, with those modalities that the model has."""
    members = {name: MEMBERS[name] for name in modalities if name in MEMBERS}
    for sample in read_folder(folder, members):
        files = sample.meta["files"]
        yield f"{folder.name}/{sample.key}", {name: folder / path for name, path in files.items()}


def _exhibit(pipeline: Pipeline, title: str, item: Item) -> Exhibit:
    """Runs the model on one item, with its iterations recorded."""
    inputs = pipeline.prepare(item)
    model = pipeline.model
    names = [name for name in model.modalities if name in inputs]
    sample: Any = {"key": title, "caption": "", "group_id": 0, "weight": 1.0, "inputs": inputs}
    with torch.no_grad():
        found = model.encode(collate([sample]), names)
        encoded = {name: _real(part) for name, part in found.items()}
        tokens, blocks = concat(list(encoded.values())), []
        for module in model.blocks:
            block = cast(FusionBlock, module)
            blocks.append(trajectory(block, *tokens))
            tokens = tokens._replace(values=block(*tokens).values)
    parts = [
        Part(name, _shown(pipeline, name, item[name], inputs, part), part.position[0])
        for name, part in encoded.items()
    ]
    return Exhibit(title, parts, blocks)


def _real(tokens: Tokens) -> Tokens:
    """The real tokens of a single sample."""
    modality = tokens.modality if tokens.modality.dim() == 1 else tokens.modality[0]
    own, mask = tokens._replace(modality=modality[None]), tokens.mask[0]
    return own.per_sample(lambda column: column[:, mask])


def _shown(pipeline: Pipeline, name: str, value: Any, inputs: Inputs, tokens: Tokens) -> Any:
    """What the tokens of a modality are drawn over; see `fusion.explain.Part`."""
    if name == "text":
        encoder = cast(Encoder, pipeline.model.encoders[name])
        return pieces_of(encoder, inputs[name].tolist(), tokens.mask.shape[1])
    if name in DECODERS and isinstance(value, Path):
        return DECODERS[name](value.read_bytes())
    return None
