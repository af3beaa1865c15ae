"""`pika probes verify`: check a probe's files, and that it fits its probe model."""

from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from offline.hub_cli import REFERENCE, cell, opened, parser, print_json, run
from probes.artifact import Artifact, served_pass
from probes.base import ProbeError
from probes.card import Check
from probes.checks import CHECKS, differences
from probes.hub_errors import HubAwayError
from probes.prompt import Renderer

EXAMPLES = """\
  pika probes verify probes/qwen-7b
  pika probes verify hf://CoffeeGitta/pika-probes/some-probe --probe-model models/qwen-1.5b
  pika probes verify probes/qwen-7b --allow-mismatch tokenizer
"""
COLOURS = {"ok": "green", "no": "bold red", "allowed": "yellow", "not recorded": "dim", "not needed": "dim"}


def main(argv: list[str]) -> int:
    """`pika probes verify`; 1 where a check fails."""
    arguments = parser("probes verify", "Check a probe's files, and that it fits its probe model.", EXAMPLES)
    arguments.add_argument("reference", metavar="REF", help=REFERENCE)
    arguments.add_argument(
        "--probe-model", metavar="FOLDER|ID", help="in place of the one that the card names; ID may end in @revision"
    )
    arguments.add_argument(
        "--allow-mismatch", metavar="NAME", action="append", default=[], choices=CHECKS, help=" or ".join(CHECKS)
    )
    return run(arguments, argv, _verify)


def _verify(args: Namespace) -> int:
    results: dict[str, str] = {}
    reasons: dict[str, str] = {}
    commit = revision = None
    try:
        artifact, fetched = opened(args.reference, args.probe_model)
        commit, revision = fetched and fetched.commit, artifact.revision
        results["files"] = "ok"
        reasons["files"] = "schema version, values, shapes, sizes, names"
        named = artifact.card.pass_
        models = {} if named is None or args.probe_model is None else {named.probe_model: args.probe_model}
        # For its error: reading the files alone does not ask for the probe model.
        served_pass(artifact.card, artifact.folder, models, needed=True, foreign=fetched is not None)
        for check, (result, reason) in _checks(artifact, args.allow_mismatch).items():
            results[check], reasons[check] = result, reason
    except HubAwayError:
        raise  # nothing was checked
    except ProbeError as error:
        name = "probe-model" if "files" in results else "files"
        results[name], reasons[name] = "no", str(error)
    table = Table("check", "", "", title=cell(args.reference))
    for name, result in results.items():
        table.add_row(name, cell(result, COLOURS[result]), cell(reasons[name]))
    Console().print(table)
    ok = "no" not in results.values()
    print_json({"reference": args.reference, "commit": commit, "revision": revision, "ok": ok, "checks": results})
    return 0 if ok else 1


def _checks(artifact: Artifact, allow: Collection[str]) -> dict[Check, tuple[str, str]]:
    """(result, why) of each check that compares the card with the probe model at hand.

    Raises:
        ProbeError: there is no probe model at hand.
    """
    card, served = artifact.card, artifact.pass_
    if card.pass_ is None or served is None:
        return dict.fromkeys(CHECKS, ("not needed", "the probe reads text alone"))
    failed = dict(differences(card, served, Renderer(served)))
    local = Path(served.probe_model).is_dir()
    unrecorded: dict[Check, bool] = {
        "probe-model": local and card.probe_model_fingerprint is None,
        "revision": local,
        "dtype": False,
        "chat-template": card.pass_.recipe.chat_template_sha256 is None,
        "tokenizer": card.canary_prompt is None or card.canary_token_ids is None,
    }
    results: dict[Check, tuple[str, str]] = {}
    for name in CHECKS:
        if name in failed:
            results[name] = ("allowed" if name in allow else "no", failed[name])
        elif unrecorded[name]:
            results[name] = ("not recorded", "a folder has none" if name == "revision" else "the card does not say")
        else:
            results[name] = ("ok", served.probe_model if name == "probe-model" else "")
    return results
