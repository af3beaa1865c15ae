"""Model cards: what a probe's folder and a repository of probes say of themselves on the Hub."""

import re
from collections.abc import Iterable

from offline.metrics import with_interval
from offline.reliability_plot import reliability_svg
from probes.card import Metrics, ProbeCard
from probes.hub import is_reference
from probes.manifest import Entry
from probes.source import is_path, short_name

README = "README.md"
PLOT = "reliability.svg"
BEGIN, END = "<!-- pika probes: begin -->", "<!-- pika probes: end -->"
"""Between these the list of probes is ours; all else in a repository's card is its owner's."""
_SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)

LABELS = {
    "success_rate": "the share of correct samples",
    "majority_vote_is_correct": "whether the majority vote of the samples is correct",
    "sample_is_correct": "whether each single sample is correct",
}


def probe_readme(card: ProbeCard, reference: str, revision: str) -> str:
    """The card of one probe, in Markdown.

    Args:
        reference: `hf://owner/repo/folder`, as a gateway is to name it.
        revision: the artifact's short hash.
    """
    parts = [f"# {card.target.arm}: success before generation", _what(card), _trained(card, revision), _how_well(card)]
    return "\n\n".join((*parts, _use(card, reference))) + "\n"


def plot(card: ProbeCard) -> str | None:
    """The reliability plot, where the card has the curve."""
    if not card.metrics or not card.metrics[-1].reliability:
        return None
    last = card.metrics[-1]
    return reliability_svg(last.reliability, f"{card.target.arm}, {last.n:,} {last.split} problems")


def _what(card: ProbeCard) -> str:
    target = card.target
    request = "".join(f", {name} {value}" for name, value in target.request.items())
    what = "one sampled answer" if card.calibration.of == "success" else "the majority vote over samples"
    text = (
        f"The probability that {what} of `{target.model}` (temperature {target.temperature:g}, at most "
        f"{target.max_tokens:,} tokens{request}) to a prompt is correct, told before anything is generated"
    )
    if card.calibration.of is None:
        text += "; what exactly its numbers are probabilities of is not on record"
    return text + f". {_reads(card)}"


def _reads(card: ProbeCard) -> str:
    if card.pass_ is None:
        return "It reads the prompt's text alone: no probe model runs."
    name = card.pass_.probe_model
    model = f"`{name}`" + (f" at revision `{card.pass_.revision}`" if card.pass_.revision else "")
    how = card.pass_.dtype + ("; a folder where it was trained" if name.startswith((".", "/", "~")) else "")
    if card.site is None:
        return f"It reads how many tokens {model} makes of the prompt."
    position = card.site.position
    where = "all prompt tokens" if position is None else f"position {position} from the prompt's end"
    return f"It reads the activation of {model} ({how}) at layer {card.site.layer}, {where}."


def _trained(card: ProbeCard, revision: str) -> str:
    tokens, head, statistics = card.mean_tokens, card.output_tokens, card.statistics
    facts = {
        "kind": f"`{card.kind}`, {card.task_type}",
        "benchmark": card.benchmark,
        "label": f"{LABELS[card.label]} ({card.target.k} samples per problem)",
        "calibration": card.calibration.method,
        "mean tokens of an answer": tokens and f"{tokens.input:.0f} in, {tokens.output:.0f} out",
        "output-token head": head
        and f"error {head.log_rmse:.2f} in log tokens; always the mean: {head.log_rmse_of_mean:.2f}",
        "activation statistics": statistics and f"of {statistics.n:,} prompts",
        **{name.replace("_", " "): value for name, value in card.training.items() if _is_short(value)},
        "libraries": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "made": card.exported_at,
        "revision": f"`{revision}`",
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in (None, "", {}, [])]
    return "\n".join(("## How it was trained", "", "| | |", "| --- | --- |", *rows))


def _is_short(value: object) -> bool:
    return isinstance(value, (bool, int, float, str)) or (
        isinstance(value, dict) and all(isinstance(one, (bool, int, float, str)) for one in value.values())
    )


def _how_well(card: ProbeCard) -> str:
    lines = ["## How well it does", ""]
    if not card.metrics:
        return "\n".join((*lines, "Not on record."))
    lines += [
        "On problems that it was not fitted on; values with 95% bootstrap confidence intervals. The baselines read "
        "text alone: a probe that does not beat them knows nothing that the text does not show.",
        "",
        "| | problems | AUROC | Spearman | ECE | Brier |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_measured(f"this probe, {metrics.split}", metrics) for metrics in card.metrics]
    lines += [_measured(f"baseline `{name}`, {metrics.split}", metrics) for name, metrics in card.baselines.items()]
    if not card.beats_length:
        lines += ["", "**It does not surely rank better than the prompt's length alone does.**"]
    if card.metrics[-1].reliability:
        lines += ["", f"![Reliability: predicted probability against observed success rate]({PLOT})"]
    return "\n".join(lines)


def _measured(name: str, metrics: Metrics) -> str:
    values = (metrics.auroc, metrics.spearman, metrics.ece, metrics.brier)
    return f"| {name} | {metrics.n:,} | {' | '.join(map(with_interval, values))} |"


def _use(card: ProbeCard, reference: str) -> str:
    published = is_reference(reference)
    pin = f"; `pika probes pull {reference}` prints the commit to pin" if published else ""
    engine = python = option = ""
    if published and card.pass_ is not None and is_path(card.pass_.probe_model):
        # Whoever reads this has the probe model elsewhere.
        name = short_name(card.pass_.probe_model)
        engine = f"\nengine:\n  probe_models: {{{name}: FOLDER}}  # where you have it"
        python, option = f', probe_models={{"{name}": "FOLDER"}}', " --probe-model FOLDER"
    return f"""\
## Use

In a gateway of PIKA Router, for an arm that asks `{card.target.model}` as above{pin}:

```yaml
arms:
  {card.target.arm}:
    probe: {reference}{"@main" if published else ""}{engine}
```

From Python:

```python
from probes import LocalEngine, load_probe

engine = LocalEngine([load_probe("{reference}"{python})])
engine.score(engine.render(["a prompt", "another"])).success  # (prompts, probes)
```

`pika probes verify {reference}{option}` checks that it fits the probe model at hand. It speaks of this model, asked
this way, on prompts like those of {card.benchmark}; on others it has not been measured."""


def repository_readme(entries: Iterable[Entry], repo: str, before: str | None) -> str:
    """The repository's card: the list of its probes, put into what stands there already."""
    rows = [
        f"| [{_cell(entry.name)}]({entry.name}) | {_cell(entry.model)} | {_cell(entry.dataset)} "
        f"| {_cell(entry.probe_type)} | {_cell(entry.label_type)} |"
        for entry in entries
    ]
    section = "\n".join(
        (BEGIN, "| probe | predicts | benchmark | probe type | label |", "| --- | --- | --- | --- | --- |", *rows, END)
    )
    if before is None:
        return f"""\
---
library_name: pika-router
tags: [probe, llm-routing, difficulty-prediction]
---

# {repo.partition("/")[2]}

Probes that tell, before anything is generated, how probable it is that a language model answers a prompt correctly.
Each is one folder, named in a gateway as `hf://{repo}/FOLDER@REVISION`; its page says what it predicts, how it was
trained and how well it does. Weights are safetensors, never pickles, but for folders of the research project's format.

{section}
"""
    if _SECTION.search(before):
        return _SECTION.sub(lambda _: section, before, count=1)
    return f"{before.rstrip()}\n\n## Probes\n\n{section}\n"


def _cell(value: object) -> str:
    """A value that cannot break out of its table cell, nor be taken for HTML."""
    if isinstance(value, dict):
        value = ", ".join(f"{name} {one}" for name, one in value.items())
    text = " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")
