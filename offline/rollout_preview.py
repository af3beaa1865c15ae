"""What `pika rollouts --dry-run` prints."""

import json

from rich.console import Console
from rich.table import Table

from offline.rollout_plan import Run
from offline.samplers import conversation, local_tokenizer, render
from probes.artifact import load_artifact
from probes.base import ProbeError
from server.config import Settings


def preview(run: Run, settings: Settings) -> None:
    """What the run would sample and cost, and a prompt of each arm, for people on stderr; a line of JSON on stdout."""
    console = Console(stderr=True)
    expected = {name: _expected(run, settings, name) for name in run.arms}
    shown = Table(box=None, pad_edge=False)
    for heading in ("arm", "problems", "answers", "input tokens", "output tokens", "USD"):
        shown.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for name, figures in expected.items():
        shown.add_row(
            name, str(len(run.problems)), *("?" if value is None else f"{value:,.6g}" for value in figures.values())
        )
    console.print(shown)
    console.print("Expected of each arm's mean tokens, which the configuration or its probe knows.\n", soft_wrap=True)
    first_jobs = {job.arm.name: job for job in reversed(run.jobs([]))}
    for name in run.arms:
        job = first_jobs[name]
        tokenizer = local_tokenizer(job.arm.source)
        messages = conversation(job, None if tokenizer is None else str(tokenizer.chat_template))
        prompt = json.dumps(messages, indent=1) if tokenizer is None else render(tokenizer, job.arm, messages)
        console.print(f"{name} is asked {job.problem_id}:", style="bold")
        console.print(prompt, markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"dry_run": True, "problems": len(run.problems), "expected": expected, "settings": run.settings}))


def _expected(run: Run, settings: Settings, name: str) -> dict[str, float | None]:
    """Of the whole run; tokens and cost are None where nobody knows the arm's mean tokens."""
    answers, means = len(run.problems) * run.k, _mean_tokens(settings, name)
    if means is None:
        return {"answers": answers, "input_tokens": None, "output_tokens": None, "cost_usd": None}
    # The prompt counts once per problem, as in the rollouts' costs.
    input_tokens, output_tokens = len(run.problems) * means[0], answers * means[1]
    cost_usd = (input_tokens * run.prices[name].input + output_tokens * run.prices[name].output) / 1e6
    return {
        "answers": answers,
        "input_tokens": round(input_tokens),
        "output_tokens": round(output_tokens),
        "cost_usd": cost_usd,
    }


def _mean_tokens(settings: Settings, name: str) -> tuple[float, float] | None:
    """(input, output) of one answer. Nothing is downloaded to know them."""
    means = settings.arms[name].mean_tokens
    if means is not None:
        return means.input, means.output
    try:
        card = load_artifact(settings.probes[name], verify=False).card
    except ProbeError:
        return None
    return None if card.mean_tokens is None else (card.mean_tokens.input, card.mean_tokens.output)
