"""`pika probes convert`: a probe folder of the research project becomes a probe artifact of ours, without pickle."""

import argparse
import json
import os
import sys
from pathlib import Path

from probes.artifact import Artifact, save_artifact
from probes.base import ProbeError
from probes.card import ProbeCard
from probes.checks import CHECKS
from probes.fingerprint import fingerprint_of
from probes.hub_errors import HubAwayError
from probes.legacy import is_legacy
from probes.prompt import CANARY_PROMPT, Renderer
from probes.reference import load_probe
from probes.source import model_file

EXAMPLES = """examples:
  pika probes convert golden/FOLDER --out probes/medium --probe-model models/medium
  pika probes convert hf://CoffeeGitta/pika-probes/FOLDER --out probes/oss-low --probe-model openai/gpt-oss-20b

With --probe-model the artifact names that model, and records its type, template, tokenizer, revision and weights, so
that serving it with another is noticed. Without it nothing is known of them: they are never checked, and the model is
taken to run in float32. Predictions stay what they were.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    renderers: list[Renderer] = []
    try:
        if is_legacy(options.out):
            raise ProbeError(f"{options.out} holds a probe of the research project, which stays: choose another --out")
        if options.probe_model is None:
            artifact = load_probe(options.probe, verify=False)
        else:
            artifact = load_probe(
                options.probe, allow=options.allow_mismatch, probe_model=options.probe_model, renderers=renderers
            )
        if not is_legacy(artifact.folder):
            raise ProbeError(f"{options.probe} is a probe artifact already: use it as it is")
        card = recorded(artifact, renderers[0], options.out) if renderers else artifact.card
        save_artifact(options.out, card, artifact.probe)
    except ProbeError as error:
        print(f"pika probes convert: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except OSError as error:
        print(f"pika probes convert: cannot write {options.out}: {error}; choose another --out", file=sys.stderr)
        return 1
    assert card.pass_ is not None
    if not renderers:
        print(
            f"pika probes convert: nothing of {card.pass_.probe_model} is recorded: it is taken to run in "
            f"{card.pass_.dtype}, and cannot be checked; --probe-model records it",
            file=sys.stderr,
        )
    print(
        json.dumps(
            {
                "folder": str(options.out),
                "from": artifact.source,
                "kind": card.kind,
                "probe_model": card.pass_.probe_model,
                "dtype": card.pass_.dtype,
                "label": card.label,
                "revision": load_probe(options.out, verify=False).revision,
                "checked": bool(renderers),
            }
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika probes convert",
        description="Make a probe artifact of a probe folder of the research project; its pickles run nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("probe", metavar="REF", help="folder, or hf://owner/repo/folder[@revision]")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the artifact goes")
    parser.add_argument("--probe-model", metavar="FOLDER|ID", help="the model that the probe was trained with")
    parser.add_argument(
        "--allow-mismatch", action="append", default=[], choices=CHECKS, help="a check that may fail; repeatable"
    )
    return parser


def recorded(artifact: Artifact, renderer: Renderer, out: Path) -> ProbeCard:
    """The artifact's card with what can be said of the probe model that it runs on here."""
    pass_ = artifact.pass_
    assert pass_ is not None
    local = Path(pass_.probe_model).is_dir()
    if local:
        name, revision = Path(os.path.relpath(pass_.probe_model, out.resolve())).as_posix(), None
    else:
        # The Hub's cache keeps each commit's files in a folder that bears the commit's name.
        name, revision = pass_.probe_model, model_file(pass_, "config.json").parent.name
    recipe = pass_.recipe.model_copy(update={"chat_template_sha256": renderer.chat_template_sha256})
    return artifact.card.model_copy(
        update={
            "pass_": pass_.model_copy(update={"probe_model": name, "revision": revision, "recipe": recipe}),
            "probe_model_fingerprint": fingerprint_of(pass_),
            "canary_prompt": CANARY_PROMPT,
            "canary_token_ids": renderer.tokenize(CANARY_PROMPT),
        }
    )
