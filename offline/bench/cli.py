"""`pika bench`: one measurement per file. Each name is an import string, as in `server/__main__.py`."""

import sys
from importlib import import_module

COMMANDS = {
    "training": ("offline.bench.training:main", "fitting linear probes: our sweep against a loop over scikit-learn"),
    "policies": ("offline.bench.policies:main", "a policy over its knob: our sweep against a loop with pandas"),
    "scoring": ("offline.bench.scoring:main", "reading prompts: our engine against the research code's way"),
    "rollouts": ("offline.bench.rollouts:main", "rollouts from a vLLM server: our client against `vllm bench serve`"),
    "gateway": ("offline.bench.gateway:main", "what the gateway costs per request, beside nginx and LiteLLM's proxy"),
    "replay": ("offline.bench.replay:main", "a million decisions in a ledger, replayed and shown by the dashboard"),
    "soak": ("offline.bench.soak:main", "the gateway with a thousand clients, before upstreams that fail at times"),
}

USAGE = """\
usage: pika bench NAME [options]

measurements:
{commands}

Each compares ways on the same input in the same run (soak: compares nothing, looks for what goes wrong), prints a
table, and one line of JSON last.
`pika bench NAME --help` shows its options.

examples:
  pika bench training --quick
  pika bench policies
"""


def main(argv: list[str]) -> int:
    """Run one measurement; returns its exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<10}{help_}" for name, (_, help_) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        print(f"pika bench: unknown measurement {name!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    code: int = getattr(import_module(module), function)(rest)
    return code
