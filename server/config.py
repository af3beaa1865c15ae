"""Settings from one YAML file; `sections/` are its keys. pydantic and YAML only: `offline` reads pools with it too.

from server.config import load
settings = load("pool.yaml")
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypedDict

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from yaml.composer import ComposerError

from probes.card import Check, Dtype
from probes.source import is_path
from server.ledger.section import Ledger
from server.sections.base import Section
from server.sections.engine import Engine
from server.sections.outcomes import Audit, Outcomes
from server.sections.policy import ROUTING_FIELDS, OutOfDistribution, Policy, RoutingField
from server.sections.pool import Arm, Model
from server.sections.routing import Canary, Session, Shadow
from server.sections.serving import Admin, Keys, Limits, Server  # fmt: skip


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and the fix."""


HUB = "hf://"
MERGE = "tag:yaml.org,2002:merge"
"""YAML's `<<`."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of an arm."""
MODEL_NAME = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._/-]{0,199}")
"""vLLM's own name for a model is its Hub id or path."""
LEDGER_ARMS = 63
"""So many bits has a whole number of the databases."""
LEDGER_URL = "sqlite:///pika-ledger.sqlite"


class ProbeOptions(TypedDict):
    """What the file says of loading probes, as `probes.reference.load_probe` takes it."""

    allow: list[Check]
    probe_models: dict[str, str]
    dtype: Dtype | None


class Settings(Section):
    """The whole file."""

    server: Server = Server()
    models: dict[str, Model] = Field(min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    engine: Engine = Engine()
    out_of_distribution: OutOfDistribution = OutOfDistribution()
    policy: Policy
    allow_request: list[RoutingField] = Field(default=list(ROUTING_FIELDS))
    """What requests may ask of routing; anything else in their `routing` is a 400."""
    limits: Limits = Limits()
    keys: Keys | None = None
    admin: Admin | None = None
    audit: Audit | None = None
    outcomes: Outcomes = Outcomes()
    ledger: Ledger | None = None
    session: Session | None = None
    shadow: Shadow | None = None
    canary: Canary | None = None
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _refer(self) -> Self:
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"model {name[:200]!r}: names have up to 200 letters, digits, '.', '_', '-' and '/'")
        for name in self.arms:
            if not NAME.fullmatch(name):
                raise ValueError(f"arm {name[:200]!r}: names have up to 64 letters, digits, '.', '_' and '-'")
        for name, arm in self.arms.items():
            if name.startswith("auto"):
                raise ValueError(f"arm {name!r}: names that begin with 'auto' are kept for routing; rename it")
            if arm.model not in self.models:
                near = difflib.get_close_matches(arm.model, self.models, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"models: {', '.join(self.models)}"
                raise ValueError(f"arm {name!r} names the unknown model {arm.model!r}: {hint}")
        fallback = self.engine.when_unavailable
        if fallback != 503 and fallback not in self.arms:
            raise ValueError(
                f"engine.when_unavailable: {fallback!r} is no arm; name one of {', '.join(self.arms)} or 503"
            )
        safe = self.out_of_distribution.safe_arm
        if safe is not None and safe not in self.arms:
            raise ValueError(f"out_of_distribution.action: {safe!r} is no arm; name one of {', '.join(self.arms)}")
        if self.ledger is not None and len(self.arms) > LEDGER_ARMS:
            raise ValueError(f"a ledger takes pools of up to {LEDGER_ARMS} arms; leave arms out, or the ledger")
        if self.shadow is not None and self.shadow.arm not in self.arms:
            raise ValueError(f"shadow.arm: {self.shadow.arm!r} is no arm; name one of {', '.join(self.arms)}")
        return self

    def resolve(self, path: str) -> Path:
        """A path of the file: relative ones stand against its folder."""
        return self._folder / Path(path).expanduser()

    @property
    def probes(self) -> dict[str, str]:
        """References of the arms' probes by arm, paths resolved."""
        references = {name: arm.probe for name, arm in self.arms.items() if arm.probe is not None}
        return {
            name: reference if reference.startswith(HUB) else str(self.resolve(reference))
            for name, reference in references.items()
        }

    @property
    def unserved(self) -> dict[str, str]:
        """Models that arms ask and no replica serves, with what to do; pools that are not served may have them."""
        asked = {arm.model for arm in self.arms.values()}
        return {
            name: f"models.{name} has no replicas: say where it runs, replicas: [{{url: http://HOST:PORT/v1}}], or let "
            "`pika up` start it, replicas: [{launch: {}}]"
            for name, model in self.models.items()
            if name in asked and not model.replicas
        }

    @property
    def ledger_url(self) -> str | None:
        """Of the ledger's database, a relative file resolved; None where there is no ledger. It may hold a password.

        Raises:
            ConfigError: the variable that `ledger.url_env` names is not set.
        """
        if self.ledger is None:
            return None
        url = self.ledger.url or LEDGER_URL
        if self.ledger.url_env is not None:
            url = os.environ.get(self.ledger.url_env, "")
            if not url:
                raise ConfigError(f"ledger.url_env: set the environment variable {self.ledger.url_env} to the URL")
        scheme, slashes, file = url.partition(":///")
        return f"{scheme}:///{self.resolve(file)}" if slashes and scheme.startswith("sqlite") and file else url

    @property
    def probe_options(self) -> ProbeOptions:
        models = {}
        for name, instead in self.engine.probe_models.items():
            folder = self.resolve(instead)
            models[name] = str(folder) if folder.is_dir() else instead
        return {"allow": self.engine.allow_mismatch, "probe_models": models, "dtype": self.engine.dtype}

    def model_source(self, reference: str) -> str:
        """A model reference as vLLM and Transformers take it: an absolute path where it is a folder, else a Hub id.

        Raises:
            ConfigError: it looks like a path, and nothing is there.
        """
        path = self.resolve(reference)
        if path.is_dir():
            return str(path.resolve())
        if is_path(reference):
            raise ConfigError(f"model {reference!r}: no folder at {path}; give a folder or a Hub id such as owner/name")
        return reference


def load(path: str | os.PathLike[str]) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a key or value is wrong; names each.
    """
    file = Path(path)
    data = read_yaml(file, "with the keys models, arms and policy")
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {_where(problem['loc'])}: {_message(problem)}" for problem in error.errors())
        raise ConfigError(f"{file}:\n{problems}") from error
    settings._folder = file.resolve().parent
    return settings


class _Loader(yaml.SafeLoader):
    """As `yaml.SafeLoader`, but for keys that stand twice, of which it would take the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in lines and key.tag != MERGE:
                told = f"the key {key.value!r} stands twice, first in line {lines[name]}: keep one"
                raise ComposerError(None, None, told, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


def read_yaml(file: Path, form: str) -> dict[str, Any]:
    """
    Args:
        form: what the mapping is to be like, for the error.

    Raises:
        ConfigError: the file cannot be read, is no YAML mapping, or has a key twice.
    """
    try:
        found = _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except Exception as error:  # PyYAML lets through what a value raises: the date 2024-99-99, say, or deep nesting
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} must be a mapping {form}")
    return {str(key): value for key, value in found.items()}


def pool_sha256(settings: Settings, probes: Mapping[str, str]) -> str:
    """Hash of what decisions rest on: arms in order, with models, requests, prices, mean tokens and probes.

    Args:
        probes: hash of what each arm's probe predicts, by arm (`Artifact.predictions_sha256`).
    """
    arms = []
    for name, arm in settings.arms.items():
        model = settings.models[arm.model]
        fields = arm.model_dump(include={"request", "defaults", "success_probability", "mean_tokens"})
        prices = model.usd_per_million_tokens.model_dump()
        arms.append({"arm": name, "model": model.model, "prices": prices, "probe": probes.get(name), **fields})
    pool = {"arms": arms, "prefill": settings.engine.usd_per_million_tokens}
    return hashlib.sha256(json.dumps(pool, sort_keys=True, default=str).encode()).hexdigest()


def prefill_usd_per_token(settings: Settings, probe_model: str) -> float | None:
    """What one prefilled token of a probe model costs: as configured, else as the pool charges for the same weights.

    None where neither says.

    Raises:
        ConfigError: the path of a pool model that is served leads nowhere.
    """
    if settings.engine.usd_per_million_tokens is not None:
        return settings.engine.usd_per_million_tokens / 1e6
    for model in settings.models.values():
        try:
            source = settings.model_source(model.model)
        except ConfigError:
            if model.replicas:
                raise
            continue  # only its answers are known here
        if source == probe_model:
            return model.usd_per_million_tokens.input / 1e6
    return None


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"


def _message(problem: Any) -> str:
    if problem["type"] == "missing":
        return "is missing; docs/configuration.md says what it is"
    return str(problem["msg"]).removeprefix("Value error, ")
