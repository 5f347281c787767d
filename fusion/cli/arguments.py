"""A command line out of a typed function: signature to arguments, docstring to help."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser, DefaultHelpFormatter


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and descriptions as they are written."""


def call(function: Callable[..., Any], args: Sequence[str], name: str) -> None:
    """Parses `args` and calls `function`.

    A parameter with a default, or keyword-only, is an option; the others are arguments, `*names`
    any number of them.

    Raises:
        SystemExit: 0 after --help, 2 if the arguments do not fit.
    """
    text = inspect.getdoc(function) or ""
    parser = ArgumentParser(
        prog=f"fusion {name}",
        description=text.partition("\nArgs:")[0],
        formatter_class=_Formatter,
    )
    parameters, hints = inspect.signature(function).parameters.values(), get_type_hints(function)
    described = {param.arg_name.lstrip("*"): param.description for param in parse(text).params}
    for parameter in parameters:
        _add(parser, parameter, hints[parameter.name], described.get(parameter.name))
    parsed = parser.parse_args(list(args))
    positional: list[Any] = []
    options: dict[str, Any] = {}
    for parameter in parameters:
        value = parsed[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += value
        elif _is_option(parameter):
            options[parameter.name] = value
        else:
            positional.append(value)
    function(*positional, **options)


def _is_option(parameter: inspect.Parameter) -> bool:
    has_default = parameter.default is not parameter.empty
    return has_default or parameter.kind is parameter.KEYWORD_ONLY


def _add(
    parser: ArgumentParser, parameter: inspect.Parameter, hint: Any, description: str | None
) -> None:
    name, default = parameter.name, parameter.default
    if parameter.kind is parameter.VAR_POSITIONAL:
        parser.add_argument(name, type=hint, nargs="*", help=description, default=[])
    elif not _is_option(parameter):
        parser.add_argument(name, type=hint, help=description)
    elif default is parameter.empty:
        parser.add_argument(f"--{name}", type=hint, required=True, help=description)
    elif default is False:
        parser.add_argument(f"--{name}", action="store_true", help=description)
    else:
        parser.add_argument(f"--{name}", type=hint, default=default, help=description)
