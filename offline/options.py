"""A command's options as a YAML mapping: its keys are the command's own long options, `-` and `_` alike.

{kind: mlp, next-token: true, layers: 0..5, test-on: [a.parquet, b.parquet]}
"""

import difflib
import math
from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offline.evaluate import DataError
from server.config import read_yaml

FORM = "of options, such as `seed: 0`"


def with_file(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The arguments with those of the YAML file that `--options` names before them; the command line wins.

    Raises:
        ConfigError: the file cannot be read.
        DataError: it names an unknown option.
    """
    ahead = ArgumentParser(add_help=False, allow_abbrev=False)
    ahead.add_argument("--options", type=Path)
    file = ahead.parse_known_args(argv)[0].options
    if file is None:
        return list(argv)
    known = actions(parser)
    given = {id(known.get(_name(word.partition("=")[0]))) for word in argv if word.startswith("--")}
    options = {key: value for key, value in read_yaml(file, FORM).items() if id(known.get(_name(key))) not in given}
    return [*to_argv(parser, options, str(file)), *argv]


def to_argv(parser: ArgumentParser, options: Mapping[str, Any], where: str) -> list[str]:
    """Options and positional arguments (by their names in the parser) as words.

    Args:
        where: names the mapping in errors.

    Raises:
        DataError: a key is none of the command's, or its value has not the form that the option takes.
    """
    known = actions(parser)
    words: list[str] = []
    positional: dict[str, list[str]] = {}
    for key, value in options.items():
        action = known.get(_name(key))
        if action is None:
            raise DataError(f"{where}: {unknown(key, known)}")
        values = value if isinstance(value, list) else [value]
        takes_value = action.nargs != 0
        if any(isinstance(one, bool) == takes_value or isinstance(one, dict | list) or one is None for one in values):
            form = "one value, or a list of them" if takes_value else "true or false"
            raise DataError(f"{where}: {key} takes {form}, not {value!r}")
        if not takes_value:
            words += [action.option_strings[0]] * (value is True)
        elif not action.option_strings:
            positional[action.dest] = [str(one) for one in values]
        elif repeatable(action):
            words += [f"{action.option_strings[0]}={one}" for one in values]
        else:
            words.append(f"{action.option_strings[0]}={','.join(map(str, values))}")
    return [*(word for action in parser._actions for word in positional.get(action.dest, ())), *words]


def actions(parser: ArgumentParser) -> dict[str, Action]:
    """What a parser takes, by name without dashes in front."""
    found = [action for action in parser._actions if action.dest != "help"]
    return {_name(name): action for action in found for name in action.option_strings or [action.dest]}


def repeatable(action: Action) -> bool:
    return type(action).__name__ == "_AppendAction"


def unknown(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(_name(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(known)}"
    return f"unknown key {key!r}: {hint}"


def _name(key: str) -> str:
    return key.lstrip("-").replace("_", "-")


def positive(text: str) -> int:
    """As `type=` of an option.

    Raises:
        ArgumentTypeError: it is no whole number above 0.
    """
    if not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def seconds(text: str) -> float:
    """As `type=` of an option.

    Raises:
        ArgumentTypeError: it is no number above 0, or has no end.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:  # NaN fails too
        raise ArgumentTypeError(f"{text!r} are no seconds: a finite number above 0")
    return found
