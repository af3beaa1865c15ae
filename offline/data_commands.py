"""`pika data`: rollouts to and from the Hub, as a dataset that `datasets.load_dataset` reads, and other forms."""

import difflib
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from offline.data_convert import convert
from offline.evaluate import DataError
from offline.hub_cli import cell, not_pushed, parser, print_json, repository, run
from offline.progress import bars
from probes.hub import MAIN
from probes.hub_errors import HubAwayError

if TYPE_CHECKING:  # pyarrow comes with it
    from offline.dataset_hub import Pulled

PULL_EXAMPLES = """\
  pika data pull me/my-rollouts --out rollouts.parquet
  pika data pull CoffeeGitta/pika-math-generations --config openai--gpt-oss-20b_low --out low.parquet
"""
PUSH_EXAMPLES = """\
  pika data push rollouts.parquet me/my-rollouts --dry-run
  pika data push rollouts.parquet me/my-rollouts
"""
USAGE = """\
usage: pika data COMMAND [options]

commands:
  pull     one parquet file of rollouts from a dataset on the Hub
  push     publish a parquet file of rollouts as a dataset
  convert  a correctness set or success-rate files as rollouts, or rollouts as success-rate files

examples:
  pika data convert answers.csv --out rollouts.parquet --pool pool.yaml --price small=0.1/0.1 --price large=1/3
  pika data push rollouts.parquet me/my-rollouts
  pika data pull me/my-rollouts --out rollouts.parquet

`pika data COMMAND --help` shows options and more examples.
"""


def main(argv: list[str]) -> int:
    """`pika data`; returns the exit code."""
    commands = {"pull": pull, "push": push, "convert": convert}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if argv else 2)
    if argv[0] not in commands:
        print(f"pika data: unknown command {argv[0]!r}; one of: {', '.join(commands)}", file=sys.stderr)
        return 2
    return commands[argv[0]](argv[1:])


def pull(argv: list[str]) -> int:
    """`pika data pull`."""
    arguments = parser(
        "data pull", "One parquet file of rollouts from a dataset on the Hub, for `pika train`.", PULL_EXAMPLES
    )
    arguments.add_argument("repo", metavar="REPO", help="owner/name of the dataset")
    arguments.add_argument("--config", metavar="NAME", help="one configuration, a model at one effort (default: all)")
    arguments.add_argument("--revision", default=MAIN, help="branch, tag or commit (default: main)")
    arguments.add_argument("--benchmark", help="what rows that name none were sampled on (default: REPO's name)")
    arguments.add_argument("--out", metavar="FILE.parquet", type=Path, required=True, help="must not exist yet")
    return run(arguments, argv, _pull)


def _pull(args: Namespace) -> int:
    repo = repository(args.repo, args.revision)
    if args.out.exists():
        raise DataError(f"{args.out} exists: remove it, or give another --out")
    try:
        pulled = _fetch(repo.repo, repo.revision, args)
    except HubAwayError as error:
        raise HubAwayError(f"the Hub is away ({error}): nothing was written; pull again later") from error
    table = Table("configuration", "split", "rows", title=cell(f"{repo.repo} at {pulled.commit[:12]}"))
    for config, splits in pulled.rows.items():
        for split, rows in splits.items():
            table.add_row(cell(config), cell(split), f"{rows:,}")
    Console().print(table)
    print_json({"repo": repo.repo, "commit": pulled.commit, "out": str(args.out), "rows": pulled.rows})
    return 0


def _fetch(repo: str, revision: str, args: Namespace) -> "Pulled":
    from offline import dataset_hub

    listing, layout = dataset_hub.find(repo, revision, args.config)
    files = sum(len(paths) for splits in layout.values() for paths in splits.values())
    benchmark = args.benchmark or repo.partition("/")[2]
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with bars(transient=True) as progress:
        task = progress.add_task("rollouts", total=files)
        return dataset_hub.pull(repo, listing, layout, args.out, benchmark, lambda: progress.advance(task))


def push(argv: list[str]) -> int:
    """`pika data push`."""
    arguments = parser(
        "data push",
        "Publish a parquet file of rollouts as a dataset: a configuration per model and effort, a file per split.\n"
        "Makes the repository where there is none, private unless told otherwise.",
        PUSH_EXAMPLES,
    )
    arguments.add_argument("file", metavar="FILE.parquet", type=Path, help="as `pika rollouts` writes it")
    arguments.add_argument("repo", metavar="REPO", help="owner/name of the dataset")
    arguments.add_argument("--overwrite", action="store_true", help="replace other rows of these configurations")
    arguments.add_argument("--public", action="store_true", help="a repository that is made for this is public")
    arguments.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    arguments.add_argument("--message", default="Rollouts", help="of the commit")
    return run(arguments, argv, _push)


def _push(args: Namespace) -> int:
    from offline import dataset_hub
    from offline.rollout_dataset import read_rollouts, write_files

    repo = repository(args.repo).repo
    with tempfile.TemporaryDirectory(prefix="pika-") as folder:
        files = write_files(read_rollouts(args.file), Path(folder))
        try:
            if args.dry_run:
                done = dataset_hub.plan(repo, files, args.overwrite)
            else:
                done = dataset_hub.push(repo, files, overwrite=args.overwrite, public=args.public, message=args.message)
        except HubAwayError as error:
            raise not_pushed(error, args.dry_run) from error
        sizes = {file.path: (f"{file.rows:,}", f"{file.local.stat().st_size:,}") for file in files}
    console = Console()
    table = Table("file", "", "rows", "bytes", title=cell(f"hf://datasets/{repo}"))
    for path, kind in done.files.items():
        table.add_row(cell(path), kind, *sizes.get(path, ("", "")))
    console.print(table)
    if args.dry_run:
        before, after = ((text or "").splitlines() for text in done.readme)
        for line in difflib.unified_diff(before, after, "README.md", "README.md", lineterm=""):
            console.print(cell(line), soft_wrap=True)
        if not done.listing.commit:
            console.print(f"The dataset {repo} would be made, {'public' if args.public else 'private'}.")
    print_json({"repo": repo, "commit": done.commit, "files": done.files})
    return 0
