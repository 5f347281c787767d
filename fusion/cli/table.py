"""The one table of commands. It names modules without importing them, so that help is instant."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        module: where its function is.
        function: name of the function; see `fusion.cli.arguments`.
        summary: one line for the overview.
    """

    module: str
    function: str
    summary: str


COMMANDS = {
    "quickstart": Command(
        "fusion.cli.quickstart",
        "quickstart",
        "train, evaluate, index and search the sample data, and write a report",
    ),
    "fit": Command("fusion.cli.fit", "fit", "train a task from a YAML configuration"),
    "validate": Command("fusion.cli.fit", "validate", "evaluate a checkpoint on held-out data"),
    "test": Command("fusion.cli.fit", "test", "evaluate a checkpoint on test data"),
    "predict": Command("fusion.cli.fit", "predict", "run a checkpoint over data"),
    "doctor": Command(
        "fusion.cli.doctor", "doctor", "examine data, model and losses before a long run"
    ),
    "index": Command("fusion.cli.index", "index", "embed a folder or shards into an index"),
    "search": Command(
        "fusion.cli.search", "search", "find entries by text, picture, sound, or all together"
    ),
    "caption": Command("fusion.cli.caption", "caption", "describe files in words"),
    "explain": Command(
        "fusion.cli.explain", "explain", "show how inputs were fused, as a page with pictures"
    ),
    "pack": Command("fusion.cli.pack", "pack", "pack files or shards into checked shards"),
    "data": Command("fusion.cli.data", "data", "make shards of a public set"),
    "bench-data": Command(
        "fusion.cli.bench_data", "bench_data", "time how fast shards are read, stage by stage"
    ),
}
TRAINING = frozenset({"fit", "validate", "test", "predict", "doctor"})
"""Commands that take Lightning's own arguments."""


def overview() -> str:
    """What `fusion --help` prints."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return "\n".join(
        [
            "usage: fusion COMMAND [ARGUMENTS]",
            "",
            "Multimodal fusion: train, search and describe with any subset of modalities.",
            "",
            "commands:",
            *lines,
            "",
            "example:",
            "  fusion quickstart",
            '  fusion search runs/quickstart "a red bird" --k 3',
            "",
            "fusion COMMAND --help tells more; fusion --version prints the version.",
            "FUSION_DEBUG=1 in the environment shows where an error comes from.",
        ]
    )
