"""A pool's configuration for models that others have sampled: prices and tokens, but nowhere to reach them."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from offline.evaluate import DataError
from server.config import NAME
from server.sections.pool import Prices

CONTEXT_TOKENS = 131_072
"""The data does not tell; it must be set before such a pool is served."""
HEAD = """\
# Written by `pika data convert`, to train, tune and evaluate with. To serve it too, give each model `replicas` and its
# own max_context_tokens, which the data does not tell.
"""


def arm_names(models: Sequence[str]) -> dict[str, str]:
    """A valid name for each model's arm: what follows the last slash, where that is unique, else all of it.

    Raises:
        DataError: two models would be called the same.
    """
    short = [_slug(model.rpartition("/")[2]) for model in models]
    names = {
        model: name if short.count(name) == 1 else _slug(model.replace("/", "--"))
        for model, name in zip(models, short, strict=True)
    }
    for model, name in names.items():
        twin = next((other for other in models if other != model and names[other] == name), None)
        if twin is not None:
            raise DataError(f"models {model!r} and {twin!r} would both be the arm {name!r}: rename one in the data")
        if not NAME.fullmatch(name):
            raise DataError(f"model {model!r} has no letter or digit to name an arm by: rename it in the data")
    return names


def _slug(model: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")
    return (f"model-{name}" if name.startswith("auto") else name)[:64]


def read_prices(pairs: Sequence[str], file: Path | None) -> dict[str, Prices]:
    """Prices by model, in USD per million tokens; what `--price` says wins over the file.

    Args:
        pairs: MODEL=IN/OUT each.
        file: JSON or YAML, {MODEL: {input: ..., output: ...}}.

    Raises:
        DataError: the file cannot be read, or a price is none.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = yaml.safe_load(file.read_text("utf-8"))  # JSON is YAML
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"cannot read {file}: {' '.join(str(error).split())}") from error
        if not isinstance(raw, dict):
            raise DataError(f"{file} must be a mapping: MODEL: {{input: USD, output: USD}}, per million tokens")
    for pair in pairs:
        model, _, price = pair.rpartition("=")
        input_usd, _, output_usd = price.partition("/")
        raw[model] = {"input": input_usd, "output": output_usd}
    prices = {}
    for model, price in raw.items():
        try:
            prices[str(model)] = Prices.model_validate(price)
        except ValidationError as error:
            raise DataError(
                f"the price of {model!r} is none: write --price MODEL=IN/OUT, such as gpt-4=10/30, or "
                "{input: 10, output: 30} in a file, in USD per million tokens"
            ) from error
    return prices


def price_arms(prices: Mapping[str, Prices], models: Mapping[str, str]) -> dict[str, Prices]:
    """By arm; the user may have named the model or the arm.

    Args:
        models: the model's name by arm.

    Raises:
        DataError: an arm has no price, or a price is of no arm.
    """
    unknown = set(prices) - {*models, *models.values()}
    if unknown:
        raise DataError(
            f"there is a price of {min(unknown)!r}, but no such model: the models are {', '.join(models.values())}"
        )
    lacking = [model for arm, model in models.items() if not {arm, model} & set(prices)]
    if lacking:
        raise DataError(
            f"no price of {', '.join(lacking)}: give --price {lacking[0]}=IN/OUT for each, in USD per million tokens, "
            "or --prices FILE"
        )
    return {arm: prices[arm] if arm in prices else prices[model] for arm, model in models.items()}


def pool_text(
    rows: Sequence[Mapping[str, Any]],
    prices: Mapping[str, Prices],
    one_sided: Collection[str],
    name: str,
    notes: Sequence[str],
) -> str:
    """The YAML of a pool with an arm per model, cheapest first.

    Args:
        rows: of rollouts.
        prices: by arm.
        one_sided: arms that can have no probe; they get a constant.
        name: of the pool's file, which the tuned policy's follows.
        notes: go into comments.
    """
    train = [row for row in rows if row["split"] == "train"] or rows  # as a probe's card takes its means
    arms = {arm: [row for row in train if row["arm"] == arm] for arm in prices}
    means = {arm: _mean_tokens(own) for arm, own in arms.items()}
    usd = {arm: sum(means[arm][kind] * getattr(prices[arm], kind) for kind in means[arm]) for arm in arms}
    pool: dict[str, Any] = {"models": {}, "arms": {}, "policy": {"tuned": f"{name}.tuned.json"}}
    for arm in sorted(arms, key=usd.__getitem__):
        pool["models"][arm] = {
            "model": arms[arm][0]["model"],
            "max_context_tokens": CONTEXT_TOKENS,
            "usd_per_million_tokens": prices[arm].model_dump(),
        }
        knows: dict[str, Any] = {"probe": f"probes/{arm}"}
        if arm in one_sided:
            knows = {"success_probability": sum(row["success_rate"] for row in arms[arm]) / len(arms[arm])}
        pool["arms"][arm] = {"model": arm, **knows, "mean_tokens": means[arm]}
    return HEAD + "".join(f"# {note}\n" for note in notes) + yaml.safe_dump(pool, sort_keys=False, allow_unicode=True)


def _mean_tokens(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    outputs = [count for row in rows for count in row["output_tokens"]]
    return {
        "input": round(sum(row["input_tokens"] for row in rows) / len(rows), 2),
        "output": round(sum(outputs) / len(outputs), 2),
    }
