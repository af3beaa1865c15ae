"""`pika label`: a probe's success probability and difficulty of every problem in a file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from offline.evaluate import DataError
from offline.problem_file import Problems, read_problems, suffix, write_columns
from offline.progress import bars
from offline.provenance import provenance
from probes import calibration
from probes.base import FloatArray, ProbeError
from probes.checks import CHECKS
from probes.engine.base import Prompt
from probes.hub_errors import HubAwayError
from probes.prompt import bounded
from probes.reference import load_probe

if TYPE_CHECKING:
    from probes.artifact import Artifact
    from probes.prompt import Renderer

CHUNK = 256
"""Problems per step of the progress bar."""
EXAMPLES = """examples:
  pika label --probe probes/large --data problems.jsonl --out labels.jsonl
  pika label --probe hf://CoffeeGitta/pika-probes/FOLDER --probe-model models/gpt-oss-20b \\
      --data math.parquet --split val --out labels.csv

FILE is parquet, jsonl, json or csv, as its suffix says. --data needs problem_id or idx, and problem or question; where
it has formatted_prompt in the form of the probe model's template, that is the prompt, as it stands. Rows of other arms
than the probe's, and repetitions of a problem, are left out. Where the labels come from stands in parquet's metadata,
or in FILE.provenance.json beside another file.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        _check_out(options)
        renderers: list[Renderer] = []
        artifact = load_probe(
            options.probe, allow=options.allow_mismatch, probe_model=options.probe_model, renderers=renderers
        )
        problems = read_problems(options.data, options.split, artifact.card.target.arm)
        prompts, source = _prompts(artifact, renderers, problems)
        raw = _raw(artifact, prompts, options.device)
    except (DataError, ProbeError) as error:
        print(f"pika label: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    success = calibration.apply(artifact.card.calibration, raw)
    columns = {
        problems.id_column: problems.ids,
        **({} if problems.splits is None else {"split": problems.splits}),
        "success_probability": success.tolist(),
        "raw": raw.tolist(),
        "difficulty": (1 - success).tolist(),
    }
    try:
        origin = provenance("label", argv, None, [options.data])
        about = {"probe": artifact.source, "revision": artifact.revision, "mismatches": list(artifact.mismatches)}
        write_columns(options.out, columns, origin | about)
    except OSError as error:
        print(f"pika label: cannot write {options.out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 1
    summary = {
        "file": str(options.out),
        "problems": len(problems.ids),
        "prompts": source,
        "mean_success_probability": float(success.mean()),
        "calibrated_to": artifact.card.calibration.of,
        **about,
    }
    print(json.dumps(summary))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika label",
        description="Write a probe's success probability and difficulty (1 - it) of every problem in a file, in its "
        "order; beside them the probe's raw output: uncalibrated, unclipped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--probe", required=True, metavar="REF", help="folder, or hf://owner/repo/folder[@revision]")
    parser.add_argument("--probe-model", metavar="PATH", help="where the probe model is (default: as the probe says)")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="the problems")
    parser.add_argument("--split", help="label these alone; val means validation (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the labels; its suffix is the format")
    parser.add_argument(
        "--allow-mismatch", action="append", default=[], choices=CHECKS, help="a check that may fail; repeatable"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or auto (default)")
    return parser


def _check_out(options: argparse.Namespace) -> None:
    suffix(options.out)
    if not options.out.parent.is_dir():
        raise DataError(f"there is no folder {options.out.parent}: make it, or choose another --out")
    if options.out.resolve() == options.data.resolve():
        raise DataError(f"--out would replace the problems in {options.data}: choose another")


def _prompts(artifact: "Artifact", renderers: "Sequence[Renderer]", problems: Problems) -> tuple[list[Prompt], str]:
    """One per problem, and which column they come from."""
    if artifact.pass_ is None:
        if problems.texts is None:
            raise DataError("this probe reads text, and the problems have only formatted_prompt: add problem")
        return [Prompt((), bounded(text)) for text in problems.texts], "problem"
    renderer = next(one for one in renderers if one.pass_ == artifact.pass_)
    if problems.formatted is not None:
        accepted = [renderer.accept(prompt).token_ids for prompt in problems.formatted]
        n = len(renderer.eoi_tokens)
        if all(ids[len(ids) - n :] == renderer.eoi_tokens for ids in accepted):
            return [Prompt((ids,), "") for ids in accepted], "formatted_prompt"
        message = f"formatted_prompt does not end as {artifact.pass_.probe_model} ends a prompt"
        if problems.texts is None:
            raise DataError(f"{message}, and there is no problem to render: add problem")
        print(f"pika label: {message}: the problems are rendered anew", file=sys.stderr)
    assert problems.texts is not None
    rendered = [renderer.render([{"role": "user", "content": text}]).token_ids for text in problems.texts]
    return [Prompt((ids,), text) for ids, text in zip(rendered, problems.texts, strict=True)], "problem"


def _raw(artifact: "Artifact", prompts: Sequence[Prompt], device: str) -> FloatArray:
    """Uncalibrated outputs, (n,)."""
    import numpy as np

    from probes.engine.local import LocalEngine

    with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("labelling", total=len(prompts))
        engine = LocalEngine([artifact], device)
        parts = []
        for start in range(0, len(prompts), CHUNK):
            parts.append(engine.raw(prompts[start : start + CHUNK])[:, 0])
            progress.advance(task, len(parts[-1]))
    return np.concatenate(parts)
