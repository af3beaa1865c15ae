"""`pika probes push`: publish a probe on the Hub."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from offline.hub_cli import cell, not_pushed, parser, print_json, repository, run
from offline.hub_push import Plan, plan, push
from probes.base import ProbeError
from probes.hub import SCHEME, parse
from probes.hub_errors import HubAwayError
from probes.legacy import is_legacy
from probes.reference import load_probe
from probes.source import is_path, short_name

EXAMPLES = """\
  pika probes push probes/qwen-7b me/my-probes --dry-run
  pika probes push probes/qwen-7b me/my-probes
  pika probes push probes/qwen-7b me/my-probes --name qwen-7b-v2 --public
"""
COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def main(argv: list[str]) -> int:
    """`pika probes push`."""
    return run(_parser(), argv, _push)


def _parser() -> ArgumentParser:
    arguments = parser(
        "probes push",
        "Publish a probe: its files, the repository's manifest and the model cards, in one commit.\n"
        "Makes the repository where there is none, private unless told otherwise.",
        EXAMPLES,
    )
    arguments.add_argument("folder", metavar="FOLDER", help="a probe, as `pika train` writes it")
    arguments.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    arguments.add_argument("--name", help="its folder there (default: FOLDER's name)")
    arguments.add_argument("--overwrite", action="store_true", help="replace another probe of this name")
    arguments.add_argument("--public", action="store_true", help="a repository that is made for this is public")
    arguments.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    arguments.add_argument("--message", default="", help="of the commit")
    return arguments


def _push(args: Namespace) -> int:
    folder = Path(args.folder)
    if is_legacy(folder):
        raise ProbeError(f"{folder} holds pickles, which are not published: convert it with `pika probes convert`")
    artifact = load_probe(folder, verify=False)
    repo = repository(args.repo).repo
    name = args.name or folder.resolve().name
    parse(f"{SCHEME}{repo}/{name}")
    pass_ = artifact.card.pass_
    if pass_ is not None and is_path(pass_.probe_model):
        print(
            f"pika probes push: the card names its probe model by a path ({pass_.probe_model}), which nobody else has: "
            "tell users where to get it; they then say where they put it, as engine.probe_models: "
            f"{{{short_name(pass_.probe_model)}: FOLDER}} in a pool's configuration or --probe-model FOLDER",
            file=sys.stderr,
        )
    try:
        if args.dry_run:
            done = plan(artifact, repo, name, args.overwrite)
        else:
            done = push(artifact, repo, name, overwrite=args.overwrite, public=args.public, message=args.message)
    except HubAwayError as error:
        raise not_pushed(error, args.dry_run) from error
    _report(done, args)
    return 0


def _report(done: Plan, args: Namespace) -> None:
    console = Console()
    table = Table("file", "", "bytes", title=cell(str(done.reference).partition("@")[0]))
    for change in done.changes:
        sizes = [f"{len(content):,}" for content in (change.before, change.after) if content is not None]
        table.add_row(cell(change.path), change.kind, " -> ".join(dict.fromkeys(sizes)))
    console.print(table)
    if args.dry_run:
        for change in done.changed:
            if change.path.endswith((".json", ".md")):
                for line in change.diff():
                    console.print(cell(line, COLOURS.get(line[:1], "")), soft_wrap=True)
    if done.parent is None:
        visibility = "public" if args.public else "private"
        console.print(f"The repository {done.reference.repo} would be made, {visibility}.", highlight=False)
    elif args.public and done.private:
        console.print(f"{done.reference.repo} is private: --public is for repositories that are made.", highlight=False)
    if not done.changed:
        console.print("Nothing to change: all of it is there.", highlight=False)
    kinds = {
        kind: [change.path for change in done.changes if change.kind == kind]
        for kind in ("added", "changed", "removed", "unchanged")
    }
    print_json({"reference": str(done.reference), "commit": done.commit, "private": done.private, **kinds})
