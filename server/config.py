"""Settings from one YAML file. pydantic and YAML only: `offline` reads pools with this module too.

from server.config import load
settings = load("pool.yaml")
"""

import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

RoutingField = Literal[
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms"
]
ROUTING_FIELDS: tuple[RoutingField, ...] = (
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms",
)  # fmt: skip
Capability = Literal["tools", "images"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and the fix."""


class Section(BaseModel):
    """A mapping of the YAML file. An unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in valid and key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), valid, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
                    raise ValueError(f"unknown key {key!r}: {hint}")
        return data


class Server(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: Literal[1] = 1


class Prices(Section):
    """USD per million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)


class Launch(Section):
    """A vLLM server that `pika up` starts on this machine."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """None: any free port."""
    gpus: list[int] = []
    """CUDA_VISIBLE_DEVICES of this server; empty leaves the environment's."""
    args: list[str] = []
    """Passed to vLLM's API server after the ones that PIKA sets."""
    env: dict[str, str] = {}


class Replica(Section):
    """One vLLM process: a URL where it runs, or how to launch it."""

    url: str | None = None
    """Base URL, ending in /v1."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key sent upstream."""
    launch: Launch | None = None

    @field_validator("url")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError where it is no port
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http(s) URL, such as http://127.0.0.1:8101/v1")
        if not url.rstrip("/").endswith("/v1"):
            raise ValueError(f"{url!r} must be the base URL of an OpenAI-compatible server, which ends in /v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.url is None) == (self.launch is None):
            raise ValueError("a replica has either url (it runs already) or launch (`pika up` starts it)")
        return self


class Model(Section):
    """What vLLM serves under one --served-model-name."""

    model: str
    """Hub id, or a path; relative paths are resolved against the YAML file's folder."""
    max_context_tokens: int = Field(gt=0)
    supports: list[Capability] = []
    usd_per_million_tokens: Prices
    replicas: list[Replica] = Field(min_length=1)


class MeanTokens(Section):
    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Arm(Section):
    """What policies choose among: a pool model under fixed request fields."""

    model: str
    """A key of `models`."""
    request: dict[str, Any] = {}
    """Always set in the body; they define the arm."""
    defaults: dict[str, Any] = {}
    """Set where the client says nothing."""
    probe: str | None = None
    """Folder of the probe artifact."""
    success_probability: float | None = Field(default=None, ge=0, le=1)
    """Instead of a probe: a constant, flagged `uncalibrated`."""
    mean_tokens: MeanTokens | None = None

    @field_validator("probe")
    @classmethod
    def _local(cls, probe: str | None) -> str | None:
        if probe is not None and probe.startswith("hf://"):
            raise ValueError(f"{probe!r}: hf:// references are not supported yet; download the folder and name it here")
        return probe

    @field_validator("request", "defaults")
    @classmethod
    def _no_reserved_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name in ("model", "messages", "stream", "stream_options", "routing"):
            if name in fields:
                raise ValueError(f"{name!r} is set by the gateway or the client and cannot stand here")
        return fields

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.probe is None) == (self.success_probability is None):
            raise ValueError("an arm has either probe (a folder) or success_probability (a constant)")
        if self.probe is None and self.mean_tokens is None:
            raise ValueError("an arm without a probe needs mean_tokens: {input: ..., output: ...}")
        return self


class Queue(Section):
    prompts: int = Field(default=512, gt=0)
    tokens: int = Field(default=200_000, gt=0)


class Engine(Section):
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    kind: Literal["process"] = "process"
    deadline_ms: float = Field(default=1000, gt=0, le=600_000)
    """A prompt not scored by then is answered as `when_unavailable` says."""
    queue: Queue = Queue()
    when_unavailable: str | Literal[503] = 503
    """An arm, or 503."""
    usd_per_million_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What a prefilled token costs; default: the input price of the pool model that has the probe model's weights."""


class Policy(Section):
    """A policy and its knob, or the file that `pika tune` wrote."""

    name: str | None = None
    tuned: str | None = None
    """Path of policy.tuned.json. Knobs that stand beside it win over the file's."""
    variant: str | None = None
    lam: float | None = Field(default=None, alias="lambda", ge=0, allow_inf_nan=False)
    value: float | None = Field(default=None, allow_inf_nan=False)
    thresholds: float | list[float] | None = None
    min_success: float | None = Field(default=None, ge=0, le=1)
    accuracy: float | None = Field(default=None, ge=0, le=1)
    max_cost_usd: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is None and self.tuned is None:
            raise ValueError("policy needs a name (such as utility) or tuned (the file that `pika tune` wrote)")
        return self

    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, by the words of the API's `routing` object."""
        knobs = self.model_dump(by_alias=True, exclude_none=True)
        return {key: value for key, value in knobs.items() if key not in ("name", "tuned")}


class Limits(Section):
    """Bounds on what one gateway process takes on; times in seconds."""

    in_flight: int = Field(default=1000, gt=0)
    body_mb: float = Field(default=10, gt=0)
    connect_s: float = Field(default=2, gt=0)
    first_byte_s: float = Field(default=120, gt=0)
    between_chunks_s: float = Field(default=60, gt=0)
    total_s: float = Field(default=900, gt=0)


class Settings(Section):
    """The whole file."""

    server: Server = Server()
    models: dict[str, Model] = Field(min_length=1)
    arms: dict[str, Arm] = Field(min_length=1)
    engine: Engine = Engine()
    policy: Policy
    allow_request: list[RoutingField] = list(ROUTING_FIELDS)
    limits: Limits = Limits()
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _refer(self) -> Self:
        for name in (*self.models, *self.arms):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r}: names have up to 64 letters, digits, '.', '_' and '-'")
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
        return self

    def resolve(self, path: str) -> Path:
        """A path of the file: relative ones stand against its folder."""
        return self._folder / Path(path).expanduser()

    def model_source(self, reference: str) -> str:
        """A model reference as vLLM and Transformers take it: an absolute path where it is a folder, else a Hub id.

        Raises:
            ConfigError: it looks like a path, and nothing is there.
        """
        path = self.resolve(reference)
        if path.is_dir():
            return str(path.resolve())
        if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
            raise ConfigError(f"model {reference!r}: no folder at {path}; give a folder or a Hub id such as owner/name")
        return reference


def load(path: str | os.PathLike[str]) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a key or value is wrong; names each.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must be a mapping with the keys models, arms and policy")
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {_where(problem['loc'])}: {_message(problem)}" for problem in error.errors())
        raise ConfigError(f"{file}:\n{problems}") from error
    settings._folder = file.resolve().parent
    return settings


def pool_sha256(settings: Settings) -> str:
    """Hash of what decisions rest on: arms in order, with models, requests, prices, mean tokens and probes.

    Raises:
        ConfigError: a probe's files cannot be read.
    """
    arms = []
    for name, arm in settings.arms.items():
        model = settings.models[arm.model]
        fields = arm.model_dump(include={"request", "defaults", "success_probability", "mean_tokens"})
        prices = model.usd_per_million_tokens.model_dump()
        arms.append(
            {"arm": name, "model": model.model, "prices": prices, "probe": _probe_sha256(settings, arm), **fields}
        )
    pool = {"arms": arms, "prefill": settings.engine.usd_per_million_tokens}
    return hashlib.sha256(json.dumps(pool, sort_keys=True, default=str).encode()).hexdigest()


def _probe_sha256(settings: Settings, arm: Arm) -> str | None:
    if arm.probe is None:
        return None
    folder = settings.resolve(arm.probe)
    file = folder / "config.json"
    try:
        card = json.loads(file.read_bytes())
        file = folder / "probe.safetensors"
        weights = hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}; name a folder that `pika train` wrote") from error
    if not isinstance(card, dict):
        raise ConfigError(
            f"cannot read {folder / 'config.json'}: no JSON object; name a folder that `pika train` wrote"
        )
    # The rest, such as the date and the metrics, changes no prediction.
    parts = [weights, *(card.get(key) for key in ("calibration", "site", "mean_tokens", "pass"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prefill_usd_per_token(settings: Settings, probe_model: str) -> float | None:
    """What one prefilled token of a probe model costs: as configured, else as the pool charges for the same weights.

    None where neither says.

    Raises:
        ConfigError: a pool model's path leads nowhere.
    """
    if settings.engine.usd_per_million_tokens is not None:
        return settings.engine.usd_per_million_tokens / 1e6
    for model in settings.models.values():
        if settings.model_source(model.model) == probe_model:
            return model.usd_per_million_tokens.input / 1e6
    return None


def _where(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"


def _message(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")
