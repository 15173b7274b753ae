"""Words into options, and what was misspelt into the nearest there is."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..errors import ConfigError, known

__all__ = ["parse", "parser_of"]

# What a type is called where a value is none of it.
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "list": "a list such as [400,200]",
    "dict": "name: value pairs such as {name: Vamp, components: 500}",
    "NoneType": "null",
}


def parser_of(name: str, command: Callable[..., Any]) -> ArgumentParser:
    """Return an empty parser that says what the command does."""
    text = inspect.getdoc(command)
    options: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    # jsonargparse would take the word --print_config for itself, and does not know what is filled in.
    return ArgumentParser(prog=f"ppl-vae {name}", description=text, print_config=None, **options)


def parse(parser: ArgumentParser, words: list[str], config: dict[str, Any]) -> Namespace:
    """Parse the words over the configuration; an unknown option is met with the nearest one there is."""
    try:
        return parser.parse_args(words, namespace=parser.parse_object(config) if config else None)
    except argparse.ArgumentError as error:
        found = re.search(r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)' is not accepted", str(error))
        found = found or re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", str(error))
        if found is None:
            raise _refused(str(error)) from error
        key = ".".join(part for part in found.groups() if part)
        known("option", key, [action.dest for action in parser._actions])
        raise


def _refused(message: str) -> Exception:
    """The error of a value that its option does not take, in words; the parser's own where it says something else."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    # Of a list, what was in it is told before all of it.
    given = re.findall(r"(?:Got|Given) value: (.*)", message)
    kinds = dict.fromkeys(re.findall(r"Expected a (?:<class '(\w+)'>|typing\.Literal\[(.*)\])", message))
    expected = ["one of " + names.replace("'", "") if names else _WORDS.get(kind, kind) for kind, names in kinds]
    if key is None or not given or not expected:
        return argparse.ArgumentError(None, message)
    return ConfigError(f"{key[1]}: expected {' or '.join(expected)}, got {given[-1]}")
