"""`pika probes list, show, download, pull`: probes in folders and on the Hub."""

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from rich.table import Table

from offline.hub_cli import REFERENCE, cell, facts, opened, parser, print_json, printable, repository, run
from offline.model_card import probe_readme
from probes.artifact import CONFIG
from probes.base import ProbeError
from probes.hub import FILE_LIMITS, FORM, MANIFEST, SCHEME, Reference, fetch, is_reference, parse
from probes.json_text import json_of
from probes.manifest import Entry, entries_of, entry_of, is_probe, list_probes
from server.config import load

LIST_EXAMPLES = """\
  pika probes list CoffeeGitta/pika-probes
  pika probes list CoffeeGitta/pika-probes --model gpt-oss-20b --dataset MATH --probe-type linear_eoi
  pika probes list probes/
"""
SHOW_EXAMPLES = """\
  pika probes show probes/qwen-7b
  pika probes show hf://CoffeeGitta/pika-probes/some-probe@main
  pika probes show probes/qwen-7b --json
"""
DOWNLOAD_EXAMPLES = """\
  pika probes download hf://CoffeeGitta/pika-probes/some-probe@main --out probes/some-probe
"""
PULL_EXAMPLES = """\
  pika probes pull hf://CoffeeGitta/pika-probes/some-probe --revision v1
  pika probes pull CoffeeGitta/pika-probes
  pika probes pull --config pool.yaml
"""


def list_(argv: list[str]) -> int:
    """`pika probes list`."""
    arguments = parser("probes list", "The probes of a Hub repository or a folder.", LIST_EXAMPLES)
    arguments.add_argument("repo", metavar="REPO", help="owner/name on the Hub, or a folder of probe folders")
    arguments.add_argument("--revision", help="branch, tag or commit (default: main)")
    arguments.add_argument("--model", help="only probes of models whose name contains this")
    arguments.add_argument("--dataset", help="only probes trained on benchmarks whose name contains this")
    arguments.add_argument("--probe-type", help="only this kind, such as linear_eoi")
    arguments.add_argument("--json", action="store_true", help="the JSON line alone")
    return run(arguments, argv, _list)


def _list(args: Namespace) -> int:
    folder = Path(args.repo)
    if folder.is_dir():
        commit, entries = None, _local(folder)
    else:
        asked = repository(args.repo, args.revision)
        found = list_probes(asked.repo, asked.revision)
        commit, entries = found.commit, found.entries
    entries = tuple(entry for entry in entries if _asked_for(entry, args))
    if not args.json:
        count = f"{len(entries)} probe{'s' * (len(entries) != 1)}"
        table = Table(title=cell(f"{count} of {args.repo}" + (f" at {commit[:12]}" if commit else "")))
        for heading in ("probe", "model", "dataset", "probe type", "label"):
            table.add_column(heading, overflow="fold")
        for entry in entries:
            table.add_row(
                *map(cell, (entry.name, entry.model, entry.dataset, entry.probe_type, entry.label_type)),
            )
        Console().print(table)
    print_json(
        {"repo": args.repo, "commit": commit, "probes": [entry.model_dump(exclude_none=True) for entry in entries]}
    )
    return 0


def show(argv: list[str]) -> int:
    """`pika probes show`."""
    arguments = parser("probes show", "One probe: what it predicts, how well, and how it was trained.", SHOW_EXAMPLES)
    arguments.add_argument("reference", metavar="REF", help=REFERENCE)
    arguments.add_argument("--json", action="store_true", help="the whole card, as JSON")
    return run(arguments, argv, _show)


def _show(args: Namespace) -> int:
    artifact, fetched = opened(args.reference)
    facts = {"reference": args.reference, "commit": fetched and fetched.commit, "revision": artifact.revision}
    if args.json:
        print_json({**facts, "card": artifact.card.model_dump(mode="json", by_alias=True)})
        return 0
    console = Console()
    console.print(Markdown(printable(probe_readme(artifact.card, args.reference.partition("@")[0], artifact.revision))))
    if artifact.card.metrics and artifact.card.metrics[-1].reliability:
        table = Table("predicted", "observed", "95% interval", "problems", title="reliability")
        for bin_ in artifact.card.metrics[-1].reliability:
            observed = bin_.observed
            interval = f"{observed.low:.3f} to {observed.high:.3f}"
            table.add_row(f"{bin_.predicted:.3f}", f"{observed.value:.3f}", interval, f"{bin_.weight:.0%}")
        console.print(table)
    print_json(facts)
    return 0


def download(argv: list[str]) -> int:
    """`pika probes download`."""
    arguments = parser("probes download", "Copy a probe from the Hub into a folder.", DOWNLOAD_EXAMPLES)
    arguments.add_argument("reference", metavar="REF", help=FORM)
    arguments.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="must not exist yet")
    return run(arguments, argv, _download)


def _download(args: Namespace) -> int:
    if args.out.exists():
        raise ProbeError(f"{args.out} exists: remove it, or give another --out")
    fetched = fetch(args.reference)
    args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}-", dir=args.out.absolute().parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for name in FILE_LIMITS:
            if (fetched.folder / name).is_file():
                shutil.copyfile(fetched.folder / name, new / name)
        new.rename(args.out)
    print_json({**facts(fetched), "folder": str(args.out)})
    return 0


def pull(argv: list[str]) -> int:
    """`pika probes pull`."""
    arguments = parser(
        "probes pull",
        "Fetch probes into the Hub's cache, where gateways find them when the Hub is away.",
        PULL_EXAMPLES,
    )
    arguments.add_argument(
        "targets", metavar="REF|REPO", nargs="*", help=f"{FORM}, or owner/name for all of its probes"
    )
    arguments.add_argument("--config", metavar="POOL.YAML", help="fetch what this configuration's arms name")
    arguments.add_argument("--revision", help="of targets that name none: branch, tag or commit (default: main)")
    return run(arguments, argv, _pull)


def _pull(args: Namespace) -> int:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # one bar, over the probes
    references = [reference for target in args.targets for reference in _expanded(target, args.revision)]
    if args.config is not None:
        named = [arm.probe for arm in load(args.config).arms.values() if arm.probe is not None]
        references += [parse(probe) for probe in named if is_reference(probe)]
    if not references:
        raise ProbeError(f"nothing to pull: name {FORM}, a repository, or a --config whose arms name probes on the Hub")
    progress = track(dict.fromkeys(references), "fetching probes", console=Console(stderr=True), transient=True)
    pulled = [fetch(reference) for reference in progress]
    table = Table("probe", "commit", "from", title="in the Hub's cache")
    for one in pulled:
        table.add_row(cell(f"{one.repo}/{one.path}"), one.commit, "cache: the Hub is away" if one.from_cache else "Hub")
    Console().print(table)
    print_json({"pulled": [facts(one) for one in pulled]})
    return 0


def _expanded(target: str, revision: str | None) -> list[Reference]:
    """One reference, or those of all probes of a repository at one commit."""
    text = target if is_reference(target) else SCHEME + target
    reference = parse(text if revision is None or "@" in text else f"{text}@{revision}")
    if reference.folder or is_reference(target):
        return [reference]
    found = list_probes(reference.repo, reference.revision)
    return [Reference(reference.repo, entry.name, reference.revision) for entry in found.entries]


def _local(folder: Path) -> tuple[Entry, ...]:
    manifest = folder / MANIFEST
    if manifest.is_file():
        return entries_of(json_of(manifest.read_bytes(), str(manifest)), str(manifest))
    configs = {file.parent.name: json_of(file.read_bytes(), str(file)) for file in sorted(folder.glob(f"*/{CONFIG}"))}
    entries = [entry_of(name, config) for name, config in configs.items() if is_probe(config)]
    if not entries:
        raise ProbeError(f"{folder} holds no folder with a probe's {CONFIG}: name one that `pika train` wrote to")
    return entries_of({"probes": entries}, str(folder))


def _asked_for(entry: Entry, args: Namespace) -> bool:
    def holds(asked: str | None, value: str) -> bool:
        return asked is None or asked.lower() in value.lower()

    kind = args.probe_type and args.probe_type.removesuffix("_probe")
    return (
        holds(args.model, entry.model)
        and holds(args.dataset, entry.dataset)
        and (kind is None or kind == entry.probe_type.removesuffix("_probe"))
    )
