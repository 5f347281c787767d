"""The command `fusion`: finds the command, runs it, and turns errors into one line."""

import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module, metadata

from fusion.cli.table import COMMANDS, TRAINING, overview

FAILED, INTERRUPTED, CLOSED = 2, 130, 141  # of a shell: 128 + signal
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "RUST_LOG": "error",  # LanceDB
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit code: 0, 2 after an error of the user's, 130 when interrupted.

    Raises:
        SystemExit: with 143 when SIGTERM stopped a run in training, which has saved by then.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"assim {_version()}")
        return 0
    try:
        with warnings.catch_warnings():
            _run(args[0], args[1:])
        sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning ends an interrupted fit so
            return _fail("interrupted", INTERRUPTED)
        raise
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("FUSION_DEBUG", "0") not in ("", "0"):
            raise
        return _fail(_sentence(error), FAILED)
    return 0


def _run(name: str, args: list[str]) -> None:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "fusion --help lists the commands."
        raise ValueError(f"There is no command {name!r}; {hint}")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    command = COMMANDS[name]
    function = getattr(import_module(command.module), command.function)
    if name in TRAINING:
        function(args)
        return
    from fusion.cli.arguments import call

    # Libraries warn of what their next version will change; a user can do nothing about it.
    warnings.simplefilter("ignore")
    call(function, args, name)


def _version() -> str:
    try:
        return metadata.version("assim")
    except metadata.PackageNotFoundError:  # run out of a checkout
        return "(not installed)"


def _fail(message: str, code: int) -> int:
    print(f"fusion: error: {message}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
