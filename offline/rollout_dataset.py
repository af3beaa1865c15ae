"""Rollouts as a dataset repository: a configuration per model and effort, a parquet file per split.

    openai--gpt-oss-20b_low/train-00000-of-00001.parquet
    openai--gpt-oss-20b_low/test-00000-of-00001.parquet
    README.md      its front matter tells `datasets.load_dataset(repo, "openai--gpt-oss-20b_low")` where they are

The layout of CoffeeGitta/pika-math-generations, as `datasets` writes it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from offline.evaluate import DataError, reading_parquet
from offline.provenance import noted
from offline.rollout_store import REQUIRED
from probes.source import is_path

README = "README.md"
MAX_LEN = "max_len"
"""What the research project calls `max_tokens`; its tools find it beside ours."""
BEGIN, END = "<!-- pika rollouts: begin -->", "<!-- pika rollouts: end -->"
"""Between these the list of configurations is ours; all else in a card is its owner's."""
_SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_SPLIT = re.compile(r"\w+(?:\.\w+)*")
_SHARD = re.compile(r"(?:data/)?(?:(?P<config>[^/]+)/)?(?P<split>\w+)(?:-\d{5}-of-\d{5}|/[^/]+)?\.parquet")
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)

Layout = dict[str, dict[str, list[str]]]
"""Configuration -> split -> paths of its files."""


@dataclass(frozen=True)
class DataFile:
    config: str
    split: str
    path: str
    """In the repository."""
    local: Path
    rows: int


def read_rollouts(file: Path) -> pa.Table:
    """
    Raises:
        DataError: it cannot be read as parquet, or lacks a column of rollouts.
    """
    with reading_parquet(file):
        rollouts = pq.read_table(file)
    missing = [name for name in REQUIRED if name not in rollouts.column_names]
    if missing:
        raise DataError(f"{file} lacks the columns {', '.join(missing)}; `pika rollouts` writes them")
    return rollouts


def write_files(rollouts: pa.Table, folder: Path) -> list[DataFile]:
    """One file per configuration and split, in the rows' order.

    Raises:
        DataError: a split's name is none that a dataset may have.
    """
    rollouts = rollouts.append_column(MAX_LEN, rollouts["max_tokens"].cast(pa.int64()))
    files = []
    for arm, config in configurations(rollouts).items():
        of_arm = rollouts.filter(pc.equal(rollouts["arm"], arm))
        for split in of_arm["split"].unique().to_pylist():
            if split is None or not _SPLIT.fullmatch(split):
                raise DataError(f"{split!r} cannot be the name of a dataset's split: use letters, digits and '_'")
            rows = of_arm.filter(pc.equal(of_arm["split"], split))
            path = f"{config}/{split}-00000-of-00001.parquet"
            local = folder / path
            local.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, local, compression="zstd")
            files.append(DataFile(config, split, path, local, rows.num_rows))
    return files


def configurations(rollouts: pa.Table) -> dict[str, str]:
    """The configuration of each arm, named by its model and effort; by the arm too where these do not tell apart."""
    models = dict(zip(*(rollouts[name].to_pylist() for name in ("arm", "model")), strict=True))
    arms = sampled_arms(rollouts.schema)
    named = {}
    for arm, model in models.items():
        known = arms.get(arm, {})
        source = str(known.get("source", ""))
        effort = known.get("reasoning_effort")
        named[arm] = _safe(model if is_path(source) else source) + (f"_{_safe(str(effort))}" if effort else "")
    taken = list(named.values())
    return {arm: name if taken.count(name) == 1 else f"{name}--{_safe(arm)}" for arm, name in named.items()}


def sampled_arms(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `pika rollouts` noted of each arm that was sampled together; empty where it did not write the rows."""
    try:
        arms = noted(schema.metadata)["settings"]["arms"]
        return {str(name): dict(arm) for name, arm in arms.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def locate(readme: str, paths: Iterable[str]) -> Layout:
    """Where the rows of each configuration and split are: as the card says, else by the files' names."""
    parquet = sorted(path for path in paths if path.endswith(".parquet"))
    layout: Layout = {}
    for config in _configs(readme):
        for entry in config["data_files"]:
            if not isinstance(entry, dict) or "split" not in entry:
                continue
            patterns = entry.get("path", [])
            wanted = [patterns] if isinstance(patterns, str) else patterns
            found = [path for path in parquet if any(fnmatchcase(path, str(pattern)) for pattern in wanted)]
            if found:
                layout.setdefault(str(config["config_name"]), {})[str(entry["split"])] = found
    if layout:
        return layout
    for path in parquet:
        if match := _SHARD.fullmatch(path):
            splits = layout.setdefault(match["config"] or "default", {})
            splits.setdefault(match["split"], []).append(path)
    return layout


def readme(files: Iterable[DataFile], repo: str, before: str | None) -> str:
    """The dataset's card: its configurations are put into what stands there already."""
    head: dict[str, Any] = {"pretty_name": repo.partition("/")[2], "tags": ["llm-routing", "rollouts"]}
    body = _BODY.format(name=repo.partition("/")[2], repo=repo, begin=BEGIN, end=END)
    if before is not None:
        head, body = _front(before)
    configs = {str(config["config_name"]): config for config in _configs(before or "")}
    rows: dict[str, dict[str, int]] = {}
    for file in files:
        rows.setdefault(file.config, {})[file.split] = file.rows
    for config, splits in rows.items():
        data_files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        configs[config] = {**configs.get(config, {}), "config_name": config, "data_files": data_files}
    head["configs"] = list(configs.values())
    names = "\n".join(f"- `{name}`: {_splits(config)}" for name, config in configs.items())
    section = f"{BEGIN}\n{names}\n{END}"
    if _SECTION.search(body):
        body = _SECTION.sub(lambda _: section, body, count=1)
    else:
        body = f"{body.rstrip()}\n\n## Configurations\n\n{section}\n"
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def _splits(config: Mapping[str, Any]) -> str:
    return ", ".join(str(entry.get("split")) for entry in config["data_files"] if isinstance(entry, dict))


def _configs(readme: str) -> list[dict[str, Any]]:
    head, _ = _front(readme)
    configs = head.get("configs")
    return [
        config
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict) and "config_name" in config and isinstance(config.get("data_files"), list)
    ]


def _front(readme: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card.

    Raises:
        DataError: the front matter is no YAML mapping.
    """
    match = _FRONT.match(readme)
    if match is None:
        return {}, readme
    try:
        head = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise DataError(f"the front matter of {README} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(head, dict):
        raise DataError(f"the front matter of {README} is no YAML mapping: mend it there")
    return head, readme[match.end() :]


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--"))


_BODY = """
# {name}

Rollouts: k sampled answers per problem of several language models, verified. One configuration per model and effort;
each row is one problem with its answers (`generated_solutions`), whether each is correct (`correct`, `success_rate`,
`majority_vote_is_correct`), and how they were sampled (`k`, `temperature`, `max_tokens`, `seed`).

```python
from datasets import load_dataset

rollouts = load_dataset("{repo}", "CONFIGURATION", split="train")
```

`pika data pull {repo} --out rollouts.parquet` makes one file of all of them, for `pika train` and `pika tune`.

## Configurations

{begin}
{end}
"""
