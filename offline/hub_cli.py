"""What the commands about the Hub share: arguments, errors and what they print."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from offline.evaluate import DataError
from probes.artifact import Artifact
from probes.base import ProbeError
from probes.hub import FORM, SCHEME, Fetched, Reference, fetch, is_reference, parse
from probes.hub_errors import HubAwayError
from probes.reference import load_probe
from server.config import ConfigError

REFERENCE = f"a folder, or {FORM}"


def parser(command: str, description: str, examples: str) -> ArgumentParser:
    """
    Args:
        command: such as `probes list`.
    """
    return ArgumentParser(
        prog=f"pika {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=RawDescriptionHelpFormatter,
    )


def run(arguments: ArgumentParser, argv: Sequence[str], command: Callable[[Namespace], int]) -> int:
    """The command's exit code: 2 where the input is wrong, 1 where the Hub or the disk fails, each in one line."""
    args = arguments.parse_args(argv)
    try:
        return command(args)
    except (ProbeError, ConfigError, DataError) as error:
        print(f"{arguments.prog}: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except OSError as error:
        print(f"{arguments.prog}: {error}", file=sys.stderr)
        return 1


def repository(text: str, revision: str | None = None) -> Reference:
    """
    Raises:
        ProbeError: it does not name a repository, and nothing more.
    """
    reference = parse(text if is_reference(text) else SCHEME + text)
    if reference.folder:
        raise ProbeError(f"{text!r} names more than a repository: write owner/name")
    return reference if revision is None else parse(f"{SCHEME}{reference.repo}@{revision}")


def opened(reference: str, probe_model: str | None = None) -> tuple[Artifact, Fetched | None]:
    """A probe whose files are checked; of one on the Hub also what was fetched.

    Args:
        probe_model: in place of the one that the card names.

    Raises:
        ProbeError: it cannot be fetched or read.
    """
    fetched = fetch(reference) if is_reference(reference) else None
    folder = fetched.folder if fetched is not None else reference
    return load_probe(folder, verify=False, probe_model=probe_model), fetched


def facts(fetched: Fetched) -> dict[str, Any]:
    return {
        "reference": str(Reference(fetched.repo, fetched.path, fetched.commit)),
        "commit": fetched.commit,
        "folder": str(fetched.folder),
        "from_cache": fetched.from_cache,
    }


def printable(text: str) -> str:
    """What others wrote, without what a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def cell(text: str, style: str = "") -> Text:
    """The same for rich, which takes none of it for markup."""
    return Text(printable(text), style=style)


def print_json(value: Mapping[str, Any]) -> None:
    """The summary: one line, the last on stdout."""
    print(json.dumps(value, ensure_ascii=True))


def not_pushed(error: HubAwayError, dry_run: bool) -> HubAwayError:
    """What a push says where the Hub is away."""
    left = "nothing was changed" if dry_run else "what was pushed is there whole or not at all"
    return HubAwayError(f"the Hub is away ({error}): {left}; push again")
