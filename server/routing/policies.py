"""The configured policy, and the others that requests may ask for."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from routing_policies.base import Policy, PolicyError, build
from server.config import ConfigError, Settings, pool_sha256
from server.sections.policy import Policy as PolicySection

logger = logging.getLogger(__name__)


class Guarantee(BaseModel):
    """What `pika tune --guarantee` found."""

    model_config = ConfigDict(frozen=True)

    level: float
    """Confidence."""
    table: list[tuple[float, float | None]]
    """(target, threshold on success probabilities); None: out of reach."""


class Tuning(BaseModel):
    """What the gateway reads of the file that `pika tune` writes; the rest is for people."""

    model_config = ConfigDict(frozen=True)

    pool_sha256: str
    policy: str
    knobs: dict[str, Any]
    table: list[tuple[float, float]]
    """(mean accuracy, mu) pairs, for any target of `target_accuracy`."""
    guarantee: Guarantee | None = None
    """For any target of `min_success`."""


@dataclass(frozen=True)
class Course:
    """A policy, with the bound on cost that goes with it."""

    name: str
    policy: Policy
    max_cost_usd: float | None


class Policies:
    """Builds policies from knobs; a request's knobs win over the configuration's, those over the tuning file's.

    Args:
        tier_cost: mean USD of one answer per arm, (k,).
        probes: hash of what each arm's probe predicts, by arm (`Pool.probes_sha256`).
        section: the policy; default: the configuration's own.
        where: the section's place in the configuration, for errors.

    Raises:
        ConfigError: the tuning file is missing or broken, or the configured knobs are out of range.
    """

    def __init__(
        self,
        settings: Settings,
        tier_cost: tuple[float, ...],
        probes: Mapping[str, str],
        section: PolicySection | None = None,
        where: str = "policy",
    ) -> None:
        section = section or settings.policy
        tuning = None if section.tuned is None else read_tuning(settings.resolve(section.tuned), where)
        self.stale = tuning is not None and tuning.pool_sha256 != pool_sha256(settings, probes)
        if self.stale:
            logger.warning("%s was tuned for another pool: run `pika tune` again", section.tuned)
        self.knobs: dict[str, Any] = {}
        if tuning is not None:
            self.knobs = {**tuning.knobs, "table": tuning.table}
            if tuning.guarantee is not None:
                self.knobs["guarantee"] = tuning.guarantee.table
        self.knobs |= section.knobs()
        name = section.name or (tuning.policy if tuning is not None else None)
        assert name is not None  # the configuration holds one of the two
        self.name = name
        self.tier_cost = tier_cost
        self._cached = lru_cache(maxsize=256)(self._build)
        try:
            self.default = Course(name, build(name, self.knobs, self.tier_cost), self.knobs.get("max_cost_usd"))
        except PolicyError as error:
            raise ConfigError(f"{where}: {error}") from error

    def get(self, knobs: Mapping[str, Any]) -> Course:
        """The policy that a request asks for, under the configuration's own bound on cost.

        Raises:
            PolicyError: a knob is out of range.
        """
        if not knobs:
            return self.default
        key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(knobs.items()))
        return Course(knobs.get("policy", self.name), self._cached(key), self.default.max_cost_usd)

    def _build(self, key: tuple[tuple[str, Any], ...]) -> Policy:
        asked: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in key}
        return build(asked.pop("policy", self.name), self.knobs | asked, self.tier_cost)


def read_tuning(path: Path, where: str = "policy") -> Tuning:
    """The file that `pika tune` wrote.

    Raises:
        ConfigError: it is missing or not of that form.
    """
    try:
        return Tuning.model_validate(orjson.loads(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{where}.tuned: cannot read {path}: {error.strerror}; `pika tune` writes it") from error
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ConfigError(
            f"{where}.tuned: {path} is no tuning file ({error}); write it again with `pika tune`"
        ) from error
