"""`pika probes`: what one does with probe artifacts. Each subcommand is an import string, loaded when it is called."""

import sys
from importlib import import_module

COMMANDS = {
    "list": ("offline.hub_commands:list_", "the probes of a Hub repository or a folder"),
    "show": ("offline.hub_commands:show", "one probe: what it predicts, how well, and how it was trained"),
    "verify": ("offline.verify_command:main", "check a probe's files, and that it fits its probe model"),
    "download": ("offline.hub_commands:download", "copy a probe from the Hub into a folder"),
    "pull": ("offline.hub_commands:pull", "fetch a pool's probes, or a whole repository, into the cache"),
    "push": ("offline.push_command:main", "publish a probe: files, manifest and model card in one commit"),
    "convert": ("offline.convert:main", "a folder of the research project -> a probe artifact"),
    "calibrate": ("offline.calibrate:main", "a new revision of a probe, calibrated on other data or another label"),
}

USAGE = """\
usage: pika probes COMMAND [options]

commands:
{commands}

A probe is a folder, or hf://owner/repo/folder[@revision].

examples:
  pika probes list CoffeeGitta/pika-probes --model gpt-oss-20b
  pika probes show probes/qwen-7b
  pika probes push probes/qwen-7b me/my-probes --dry-run
  pika probes pull --config pool.yaml

`pika probes COMMAND --help` shows options and more examples.
"""


def main(argv: list[str]) -> int:
    """Run one subcommand; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = (f"  {name:<10}{help_}" for name, (_, help_) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name not in COMMANDS:
        print(f"pika probes: unknown command {name!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    code: int = getattr(import_module(module), function)(rest)
    return code
