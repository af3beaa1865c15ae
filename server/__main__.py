"""The `pika` command. Each command is an import string, loaded when it is called, so that `--help` is quick."""

import os
import sys
from importlib import import_module

COMMANDS = {
    "init": ("server.commands.init:main", "ask running vLLM servers what they serve, write a first configuration"),
    "serve": ("server.commands.serve:serve", "run the gateway in front of running servers"),
    "up": ("server.commands.serve:up", "start the pool's vLLM servers on this machine, then the gateway"),
    "engine": ("server.commands.engine:main", "score prompts for gateways, apart from them"),
    "check": ("server.commands.check:main", "say whether configuration, probes and replicas fit together"),
    "keys": ("server.commands.keys:main", "users' keys: add, list, revoke"),
    "probe-server": (
        "server.commands.probe_server:main",
        "a vLLM server that reads probes, for `engine: {kind: vllm}`",
    ),
    "demo": ("offline.demo:main", "the nano pool with real vLLM: what routing saves, on this machine"),
    "run": ("offline.pipeline:main", "a whole chain from one file, each step where its inputs changed"),
    "rollouts": ("offline.rollouts:main", "sample k answers per problem and verify them"),
    "verify": ("offline.verify_rollouts:main", "grade solutions on record anew, list where verdicts disagree"),
    "train": ("offline.train:main", "train and calibrate a probe per arm from rollouts"),
    "sweep": ("offline.sweep:main", "train many probes side by side, the best chosen on validation data"),
    "tune": ("offline.tune:main", "choose policy and knob on validation data"),
    "evaluate": ("offline.evaluation.command:main", "every policy, baseline and control on the same test problems"),
    "probes": ("offline.probes_cli:main", "list, show, verify, download, push, convert, calibrate probes"),
    "label": ("offline.label_command:main", "success probability and difficulty of every problem in a file"),
    "report": ("offline.report.command:main", "a page, plots and tables of what an evaluation found"),
    "data": ("offline.data_commands:main", "rollouts to and from the Hub, and from other forms"),
    "ledger": ("offline.ledger_command:main", "export the decisions on record to parquet"),
    "replay": ("offline.replay:main", "what other policies would have done with requests on record"),
    "nano": ("offline.nano_pool.cli:main", "train the nano pool's language models from nothing"),
    "bench": ("offline.bench.cli:main", "measurements, ratios side by side in one run"),
}

USAGE = """\
usage: pika COMMAND [options]

Routes each prompt to the cheapest model that will answer it, read from a probe model's activations.

commands:
{commands}

`pika COMMAND --help` shows a command's options and examples.

examples:
  pika demo                          see it work, without a GPU
  pika init http://gpu-a:8000        a first pool.yaml, from servers that run
  pika check pool.yaml               before the first start
  pika up pool.yaml                  vLLM servers and gateway on this machine
  pika serve pool.yaml --port 8000   the gateway alone
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"pika: unknown command {name!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        code: int = getattr(import_module(module), function)(rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "server", "offline", "probes", "routing_policies"):
            raise
        extra = "offline" if module.startswith("offline") else "engine"
        print(f"pika {name} needs {missing}: pip install 'pika-router[{extra}]'", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return code


def _usage() -> str:
    lines = (f"  {name:<14}{help_}" for name, (_, help_) in COMMANDS.items())
    return USAGE.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
